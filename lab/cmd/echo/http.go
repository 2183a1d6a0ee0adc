// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// facts is what "/" answers.
type facts struct {
	self
	Proto   string              `json:"proto"`
	Method  string              `json:"method"`
	Host    string              `json:"host"`
	Path    string              `json:"path"`
	Query   string              `json:"query,omitempty"`
	Headers map[string][]string `json:"headers"`
	Client  string              `json:"client"`
	Body    string              `json:"body,omitempty"`
	TLS     *tlsFacts           `json:"tls,omitempty"`
	Calls   map[string]any      `json:"calls,omitempty"`
}

type tlsFacts struct {
	Version     string `json:"version"`
	CipherSuite string `json:"cipherSuite"`
	ServerName  string `json:"serverName,omitempty"`
	ALPN        string `json:"alpn,omitempty"`
	ClientCert  string `json:"clientCert,omitempty"` // its subject
}

const bodyShown = 64 << 10 // bytes of a request's body that are sent back

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
		s.grpc(w, r)
	case websocket.IsWebSocketUpgrade(r):
		s.websocket(w, r)
	default:
		s.plain(w, r)
	}
}

func (s *server) plain(w http.ResponseWriter, r *http.Request) {
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	code := http.StatusOK
	switch first {
	case "healthz":
		_, _ = io.WriteString(w, "ok\n")
		return
	case "readyz":
		if v, err := strconv.ParseBool(r.FormValue("ready")); r.Method == http.MethodPost && err == nil {
			s.ready.Store(v)
			return
		}
		if !s.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
		return
	case "status":
		n, err := strconv.Atoi(rest)
		if err != nil || n < 200 || n > 599 {
			http.Error(w, "want /status/CODE with a code from 200 to 599", http.StatusBadRequest)
			return
		}
		code = n
	case "delay":
		d, err := time.ParseDuration(rest)
		if err != nil {
			http.Error(w, "want /delay/TIME with a time such as 300ms", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(d):
		case <-r.Context().Done():
			return
		}
	case "bytes":
		n, err := strconv.ParseInt(rest, 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "want /bytes/N", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", rest)
		_, _ = io.CopyN(w, zeros{}, n)
		return
	}
	f := s.facts(r)
	if first == "" && len(s.calls) > 0 {
		f.Calls = s.callAll(r.Context())
	}
	w.Header().Set("Content-Type", "application/json")
	if code == http.StatusNoContent || code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(f)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (s *server) facts(r *http.Request) *facts {
	f := &facts{
		self: s.self, Proto: r.Proto, Method: r.Method, Host: r.Host, Path: r.URL.Path, Query: r.URL.RawQuery,
		Headers: r.Header, Client: r.RemoteAddr,
	}
	if body, err := io.ReadAll(io.LimitReader(r.Body, bodyShown)); err == nil {
		f.Body = string(body)
	}
	if t := r.TLS; t != nil {
		f.TLS = &tlsFacts{Version: tlsVersion(t.Version), CipherSuite: tlsSuite(t.CipherSuite), ServerName: t.ServerName, ALPN: t.NegotiatedProtocol}
		if len(t.PeerCertificates) > 0 {
			f.TLS.ClientCert = t.PeerCertificates[0].Subject.String()
		}
	}
	return f
}

// callAll asks the configured servers at once; what one answered, or why not, stands under its name.
func (s *server) callAll(ctx context.Context) map[string]any {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	type answer struct {
		name string
		v    any
	}
	answers := make(chan answer, len(s.calls))
	for _, c := range s.calls {
		go func() {
			var v any
			if err := fetchJSON(ctx, c.url, &v); err != nil {
				v = map[string]string{"error": err.Error()}
			}
			answers <- answer{c.name, v}
		}()
	}
	out := make(map[string]any, len(s.calls))
	for range s.calls {
		a := <-answers
		out[a.name] = a.v
	}
	return out
}

// grpc answers a call of any method with one message whose field 1 holds the facts as JSON, and echoes the length of
// what it got; the framing is gRPC's over HTTP/2 (grpc/grpc PROTOCOL-HTTP2.md).
func (s *server) grpc(w http.ResponseWriter, r *http.Request) {
	var head [5]byte
	status := "0"
	if _, err := io.ReadFull(r.Body, head[:]); err == nil {
		_, err = io.CopyN(io.Discard, r.Body, int64(binary.BigEndian.Uint32(head[1:])))
		if err != nil {
			status = "13"
		}
	}
	f := s.facts(r)
	f.Body = ""
	text, _ := json.Marshal(f)
	msg := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(text))) // field 1, length-delimited
	msg = append(msg, text...)
	w.Header().Set("Content-Type", "application/grpc+proto")
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...))
	w.Header().Set("Grpc-Status", status)
}

var upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}

// websocket sends the facts, then every message back.
func (s *server) websocket(w http.ResponseWriter, r *http.Request) {
	f := s.facts(r)
	c, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer c.Close()
	if c.WriteJSON(f) != nil {
		return
	}
	for {
		kind, data, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, data) != nil {
			return
		}
	}
}
