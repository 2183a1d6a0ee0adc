// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
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
	for _, h := range r.URL.Query()["header"] { // ?header=Name:value is a header of the answer
		if name, value, ok := strings.Cut(h, ":"); ok {
			w.Header().Add(name, value)
		}
	}
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

// Methods of the health service (grpc.health.v1), which a kubelet's gRPC probe calls.
const (
	grpcHealthCheck = "/grpc.health.v1.Health/Check"
	grpcHealthWatch = "/grpc.health.v1.Health/Watch"
)

// grpc answers each message of a call of any method, unary or streaming, with one whose field 1 holds the facts as
// JSON, and calls of the health service as that defines; the framing is gRPC's over HTTP/2 (grpc/grpc
// PROTOCOL-HTTP2.md).
func (s *server) grpc(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc+proto")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	flow := http.NewResponseController(w)
	end := func(status int, message string) {
		w.Header().Set("Grpc-Status", strconv.Itoa(status))
		w.Header().Set("Grpc-Message", message)
	}
	// Headers at once: the client of a stream may wait for them before it sends.
	w.WriteHeader(http.StatusOK)
	_ = flow.Flush()
	f := s.facts(&http.Request{
		Proto: r.Proto, Method: r.Method, Host: r.Host, URL: r.URL, Header: r.Header, RemoteAddr: r.RemoteAddr, TLS: r.TLS,
		Body: http.NoBody,
	})
	text, _ := json.Marshal(f)
	answer := append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(text))), text...) // field 1, length-delimited
	for {
		err := skipMessage(r.Body)
		if errors.Is(err, io.EOF) {
			end(0, "")
			return
		}
		if err != nil {
			end(3, err.Error()) // INVALID_ARGUMENT
			return
		}
		if r.URL.Path == grpcHealthCheck || r.URL.Path == grpcHealthWatch {
			answer = []byte{1 << 3, 1} // SERVING
			if !s.ready.Load() {
				answer[1] = 2 // NOT_SERVING
			}
		}
		head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(answer)))
		if _, err := w.Write(append(head, answer...)); err != nil {
			return
		}
		_ = flow.Flush()
		if r.URL.Path == grpcHealthWatch {
			<-r.Context().Done()
			return
		}
	}
}

// skipMessage reads a message of a call; io.EOF is the end of what the client sends.
func skipMessage(r io.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if head[0] != 0 {
		return errors.New("compressed messages are not understood")
	}
	if _, err := io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(head[1:]))); err != nil {
		return io.ErrUnexpectedEOF
	}
	return nil
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
