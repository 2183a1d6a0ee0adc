// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// running starts a server; stop ends it and returns its error. It returns the configuration with the ports that it
// has in the place of "0".
func running(t *testing.T, c config) (_ config, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done, opened := make(chan error, 1), make(chan config, 1)
	c.opened = func(c config) { opened <- c }
	go func() { done <- serve(ctx, c) }()
	stop = func() error { cancel(); return <-done }
	select {
	case c = <-opened:
		return c, stop
	case err := <-done:
		cancel()
		t.Fatalf("the server did not start: %v", err)
	}
	return c, stop
}

// TestSourcePorts: each request gets a port of its own, and the first again after the last there is.
func TestSourcePorts(t *testing.T) {
	p, err := newPorts(maxPort - 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{maxPort - 1, maxPort, maxPort - 1} {
		if got := p.take(); got != want {
			t.Errorf("port %d is %d, want %d", i, got, want)
		}
	}
	for _, bad := range []uint{0, maxPort + 1} {
		if _, err := newPorts(bad); err == nil {
			t.Errorf("%d was taken for a port", bad)
		}
	}
}

func TestEveryProtocolAnswers(t *testing.T) {
	c, stop := running(t, config{http: "0", https: "0", tcp: "0", udp: "0",
		self: self{Pod: "cart-1", Node: "n1", Namespace: "shop", IP: "127.0.0.1"}})
	for _, url := range []string{
		"http://127.0.0.1:" + c.http + "/cart?x=1", "https://127.0.0.1:" + c.https + "/", "tcp://127.0.0.1:" + c.tcp,
		"udp://127.0.0.1:" + c.udp, "udp://[::1]:" + c.udp,
	} {
		var out bytes.Buffer
		if err := get(t.Context(), []string{"-n", "3", "-body", url}, &out); err != nil {
			t.Errorf("%s: %v\n%s", url, err, out.String())
		}
		if !strings.Contains(out.String(), "n1") || strings.Count(out.String(), "127.0.0.1")+strings.Count(out.String(), "::1") < 3 {
			t.Errorf("%s: bodies missing:\n%s", url, out.String())
		}
		if !strings.Contains(out.String(), "sent 3, answered 3, failed 0") || !strings.Contains(out.String(), "3 answered by cart-1") {
			t.Errorf("%s:\n%s", url, out.String())
		}
	}
	t.Run("websocket", func(t *testing.T) {
		ws, _, err := websocket.DefaultDialer.Dial("ws://127.0.0.1:"+c.http+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		var f facts
		if err := ws.ReadJSON(&f); err != nil || f.Pod != "cart-1" || f.Path != "/ws" {
			t.Errorf("%+v, %v", f, err)
		}
		if err := ws.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, m, err := ws.ReadMessage(); err != nil || string(m) != "hello" {
			t.Errorf("%q, %v", m, err)
		}
	})
	t.Run("h2c and gRPC", func(t *testing.T) {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		tr.Protocols.SetUnencryptedHTTP2(true)
		req, _ := http.NewRequest("POST", "http://127.0.0.1:"+c.http+"/shop.Cart/Get", bytes.NewReader([]byte{0, 0, 0, 0, 2, 8, 1}))
		req.Header.Set("Content-Type", "application/grpc")
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		msg, err := io.ReadAll(resp.Body)
		if err != nil || resp.ProtoMajor != 2 || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Fatalf("%v, %s, trailer %v", err, resp.Proto, resp.Trailer)
		}
		if n := binary.BigEndian.Uint32(msg[1:5]); int(n) != len(msg)-5 {
			t.Errorf("message of %d bytes in a frame of %d", n, len(msg)-5)
		}
		size, w := binary.Uvarint(msg[6:])
		var f facts
		if err := json.Unmarshal(msg[6+w:][:size], &f); err != nil || f.Path != "/shop.Cart/Get" {
			t.Errorf("%+v, %v", f, err)
		}
	})
	t.Run("gRPC health, a real client", func(t *testing.T) {
		conn, err := grpc.NewClient("127.0.0.1:"+c.http, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		health := healthpb.NewHealthClient(conn)
		for _, ready := range []string{"true", "false"} {
			resp, err := http.Post("http://127.0.0.1:"+c.http+"/readyz?ready="+ready, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			got, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "shop"})
			want := map[string]healthpb.HealthCheckResponse_ServingStatus{
				"true": healthpb.HealthCheckResponse_SERVING, "false": healthpb.HealthCheckResponse_NOT_SERVING}[ready]
			if err != nil || got.Status != want {
				t.Errorf("ready=%s: %v, %v; want %v", ready, got, err, want)
			}
		}
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/shop.Cart/Talk")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			var answer wrapperspb.StringValue
			if err := stream.SendMsg(wrapperspb.String("hello")); err != nil {
				t.Fatal(err)
			}
			if err := stream.RecvMsg(&answer); err != nil || !strings.Contains(answer.Value, "/shop.Cart/Talk") {
				t.Errorf("message %d: %q, %v", i, answer.Value, err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&wrapperspb.StringValue{}); err != io.EOF {
			t.Errorf("end of stream: %v", err)
		}
	})
	if err := stop(); err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestReadinessCallsAndDrain(t *testing.T) {
	back, stopBack := running(t, config{http: "0", self: self{Pod: "cart-1"}})
	defer stopBack()
	front, stop := running(t, config{http: "0", self: self{Pod: "web-1"}, drain: 300 * time.Millisecond,
		calls: []call{{"cart", "http://127.0.0.1:" + back.http + "/items"}, {"gone", "http://127.0.0.1:1/"}}})
	base := "http://127.0.0.1:" + front.http

	var f struct {
		Pod   string
		Calls struct {
			Cart facts
			Gone struct{ Error string }
		}
	}
	if err := fetchJSON(t.Context(), base+"/", &f); err != nil || f.Calls.Cart.Pod != "cart-1" || f.Calls.Cart.Path != "/items" || f.Calls.Gone.Error == "" {
		t.Errorf("calls: %+v, %v", f, err)
	}
	status := func(method, path string) int {
		req, _ := http.NewRequest(method, base+path, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, step := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/readyz", 200}, {"POST", "/readyz?ready=false", 200}, {"GET", "/readyz", 503}, {"POST", "/readyz?ready=true", 200},
		{"GET", "/readyz", 200}, {"GET", "/status/418", 418}, {"GET", "/status/9", 400}, {"GET", "/delay/1ms", 200}, {"GET", "/bytes/100000", 200},
	} {
		if got := status(step.method, step.path); got != step.want {
			t.Errorf("%s %s: %d, want %d", step.method, step.path, got, step.want)
		}
	}
	// After the signal it goes on answering for the drain time.
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	var out bytes.Buffer
	if err := get(t.Context(), []string{"-n", "20", "-interval", "5ms", "-q", base + "/"}, &out); err != nil {
		t.Errorf("while draining: %v\n%s", err, out.String())
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestFailuresAreCounted(t *testing.T) {
	c, stop := running(t, config{http: "0"})
	defer stop()
	var out bytes.Buffer
	err := get(t.Context(), []string{"-n", "4", "-c", "2", "http://127.0.0.1:" + c.http + "/status/500"}, &out)
	if err != errFailed || !strings.Contains(out.String(), "sent 4, answered 0, failed 4") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestGivenCertificate serves TLS with the certificate of a directory.
func TestGivenCertificate(t *testing.T) {
	given, err := selfSigned(self{Pod: "given"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(given.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: given.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := config{certDir: dir}.certificate()
	if err != nil || !bytes.Equal(got.Certificate[0], given.Certificate[0]) {
		t.Errorf("serves another certificate, %v", err)
	}
	if _, err := (config{certDir: t.TempDir()}).certificate(); err == nil {
		t.Error("an empty directory was no error")
	}
}
