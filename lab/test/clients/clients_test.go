// SPDX-License-Identifier: Apache-2.0

// Package clients tests `weft gateway` with clients and servers that are not weft's: those of grpc-go and its suite of
// interoperability tests, gorilla's WebSockets, curl, nghttp and h2load. It needs no cluster: the gateway has its tables
// from a file, and all is on the loopback. It imports labtest, for where the program is.
package clients

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/weft-net/weft/lab/labtest"
)

const (
	grpcHost  = "grpc.test"  // grpc-go's server
	otherHost = "other.test" // nothing behind it
	h1Host    = "h1.test"    // net/http
	h2Host    = "h2.test"    // net/http, HTTP/2 with prior knowledge
	// quiet is how long the gateway lets clients be silent within a body.
	quiet = 2 * time.Second
)

// gateway is `weft gateway` at work.
type gateway struct {
	plain, secure string // HOST:PORT
	roots         *x509.CertPool
	ca            string // file
}

type object = map[string]any

func start(t *testing.T) *gateway {
	t.Helper()
	bin, err := labtest.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	endpoint := func(key, protocol, address string) (backend, set object) {
		return object{"key": key, "protocol": protocol, "endpoints": key}, object{"key": key, "endpoints": []object{{"address": address}}}
	}
	var backends, sets, routes []object
	for host, to := range map[string][2]string{
		grpcHost: {"HTTP2", grpcServer(t)}, otherHost: {"HTTP2", "127.0.0.1:1"}, h1Host: {"HTTP1", webServer(t, false)}, h2Host: {"HTTP2", webServer(t, true)},
	} {
		b, s := endpoint(host, to[0], to[1])
		backends, sets = append(backends, b), append(sets, s)
		routes = append(routes, object{"key": host, "kind": "HTTPRoute", "rules": []object{{"backends": []object{{"backend": host, "weight": 1}}}},
			"parents": []object{{"listener": "plain", "hostnames": []string{host}}, {"listener": "secure", "hostnames": []string{host}}}})
	}
	chain, key := certificate(t)
	plain, secure := freePort(t), freePort(t)
	tables, err := json.Marshal(object{
		"revision": 1, "complete": true, "routes": routes, "backends": backends, "endpoints": sets,
		"listeners": []object{
			{"key": "plain", "protocol": "HTTP", "port": plain, "addresses": []string{"127.0.0.1"}},
			{"key": "secure", "protocol": "HTTPS", "port": secure, "addresses": []string{"127.0.0.1"}, "tls": object{"certificates": []string{"c"}}},
		},
		"certificates": []object{{"key": "c", "chain": chain, "privateKey": key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	g := &gateway{plain: fmt.Sprint("127.0.0.1:", plain), secure: fmt.Sprint("127.0.0.1:", secure), roots: x509.NewCertPool(), ca: filepath.Join(dir, "ca.crt")}
	g.roots.AppendCertsFromPEM([]byte(chain))
	for name, text := range map[string]string{"tables.json": string(tables), "ca.crt": chain} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(bin, "weft"), "gateway", "--config", filepath.Join(dir, "tables.json"), "--metrics-bind-address", "", "--body-timeout", quiet.String(), "--drain", "1s")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the gateway ended: %v\n%s", err, log.String())
		}
	})
	labtest.Eventually(t, 30*time.Second, func() error {
		c, err := net.Dial("tcp", g.secure)
		if err == nil {
			c.Close()
		}
		return err
	})
	return g
}

// freePort is one that nobody had a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// certificate is one for all hosts, which is its own CA.
func certificate(t *testing.T) (chain, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{grpcHost, otherHost, "unknown.test", h1Host, h2Host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}))
}

func grpcServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(s, interop.NewTestServer())
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// webServer says back what it gets: bodies, and a WebSocket's messages.
func webServer(t *testing.T, two bool) string {
	t.Helper()
	up := websocket.Upgrader{Subprotocols: []string{"chat"}, EnableCompression: true}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			c, err := up.Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer c.Close()
			for {
				kind, msg, err := c.ReadMessage()
				if err != nil || c.WriteMessage(kind, msg) != nil {
					return
				}
			}
		}
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is so anyway
		w.Header().Set("X-Protocol", r.Proto)
		w.Header().Set("X-Method", r.Method)
		_, _ = io.Copy(w, r.Body)
		for name, values := range r.Trailer {
			w.Header()[http.TrailerPrefix+name] = values
		}
	}))
	if two {
		s.Config.Protocols = &http.Protocols{}
		s.Config.Protocols.SetUnencryptedHTTP2(true)
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// call connects to the gateway as grpc-go does.
func (g *gateway) call(t *testing.T, host string, secure bool) *grpc.ClientConn {
	t.Helper()
	to, creds := g.plain, insecure.NewCredentials()
	if secure {
		to, creds = g.secure, credentials.NewTLS(&tls.Config{RootCAs: g.roots, ServerName: host})
	}
	c, err := grpc.NewClient("passthrough:///"+to, grpc.WithTransportCredentials(creds), grpc.WithAuthority(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// grpc-go's own interoperability tests pass through the gateway. The suite ends the process where one does not.
func TestGRPC(t *testing.T) {
	g := start(t)
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			conn := g.call(t, grpcHost, secure)
			c := grpc_testing.NewTestServiceClient(conn)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for name, do := range map[string]func(context.Context, grpc_testing.TestServiceClient, ...grpc.CallOption){
				"empty_unary": interop.DoEmptyUnaryCall, "large_unary": interop.DoLargeUnaryCall, "client_streaming": interop.DoClientStreaming,
				"server_streaming": interop.DoServerStreaming, "ping_pong": interop.DoPingPong, "empty_stream": interop.DoEmptyStream,
				"timeout_on_sleeping_server": interop.DoTimeoutOnSleepingServer, "cancel_after_begin": interop.DoCancelAfterBegin,
				"cancel_after_first_response": interop.DoCancelAfterFirstResponse, "custom_metadata": interop.DoCustomMetadata,
				"status_code_and_message": interop.DoStatusCodeAndMessage, "special_status_message": interop.DoSpecialStatusMessage,
			} {
				t.Run(name, func(t *testing.T) { do(ctx, c) })
			}
			t.Run("unimplemented_service", func(*testing.T) {
				interop.DoUnimplementedService(ctx, grpc_testing.NewUnimplementedServiceClient(conn))
			})

			// A stream on which the client says nothing for long lives.
			stream, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(quiet + quiet/2) // silence is what is tested
			if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 10}}}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			_ = stream.CloseSend()
			if _, err := stream.Recv(); err != io.EOF {
				t.Error(err)
			}
			// What the gateway itself says is understood.
			for host, want := range map[string]codes.Code{otherHost: codes.Unavailable, "unknown.test": codes.Unimplemented} {
				_, err := grpc_testing.NewTestServiceClient(g.call(t, host, secure)).EmptyCall(ctx, &grpc_testing.Empty{})
				if status.Code(err) != want {
					t.Errorf("%s: %v, want %s", host, err, want)
				}
			}
		})
	}
}

// Messages of all kinds and sizes go through a WebSocket, and so does the reason of its end.
func TestWebSocket(t *testing.T) {
	g := start(t)
	for scheme, to := range map[string]string{"ws": g.plain, "wss": g.secure} {
		t.Run(scheme, func(t *testing.T) {
			d := websocket.Dialer{Subprotocols: []string{"chat"}, EnableCompression: true, HandshakeTimeout: 10 * time.Second, TLSClientConfig: &tls.Config{RootCAs: g.roots},
				NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", to)
				}}
			c, resp, err := d.Dial(scheme+"://"+h1Host+"/chat", nil)
			if err != nil || resp.StatusCode != 101 || c.Subprotocol() != "chat" {
				t.Fatalf("%v, %v", resp, err)
			}
			defer c.Close()
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			ponged := ""
			c.SetPongHandler(func(data string) error { ponged = data; return nil })
			if err := c.WriteControl(websocket.PingMessage, []byte("ping"), time.Now().Add(10*time.Second)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(quiet + quiet/2) // silence is what is tested
			for _, size := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
				for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
					msg := bytes.Repeat([]byte("m"), size)
					if err := c.WriteMessage(kind, msg); err != nil {
						t.Fatal(err)
					}
					if got, back, err := c.ReadMessage(); err != nil || got != kind || !bytes.Equal(back, msg) {
						t.Fatalf("%d bytes: %d of kind %d, %v", size, len(back), got, err)
					}
				}
			}
			if ponged != "ping" {
				t.Errorf("pong %q", ponged)
			}
			if err := c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4000, "enough"), time.Now().Add(10*time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 4000) {
				t.Errorf("the end is %v", err)
			}
		})
	}
}

// curl speaks each version of HTTP to endpoints of each.
func TestCurl(t *testing.T) {
	path := program(t, "curl")
	g := start(t)
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("0123456789abcdef", 1<<18)), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, proto := range map[string]string{h1Host: "HTTP/1.1", h2Host: "HTTP/2.0"} {
		for version, args := range map[string][]string{
			"HTTP/1.0": {"--http1.0"}, "HTTP/1.1": {"--http1.1"}, "h2c": {"--http2-prior-knowledge"}, "https HTTP/1.1": {"--http1.1", "--tls"}, "https HTTP/2": {"--http2", "--tls"},
		} {
			t.Run(version+" to "+proto, func(t *testing.T) {
				scheme, to := "http", g.plain
				if args[len(args)-1] == "--tls" {
					scheme, to, args = "https", g.secure, args[:len(args)-1]
				}
				_, port, _ := net.SplitHostPort(to)
				run := func(target string, more ...string) string {
					t.Helper()
					all := append([]string{"--silent", "--show-error", "--fail", "--max-time", "30", "--cacert", g.ca, "--resolve", host + ":" + port + ":127.0.0.1"}, args...)
					out, err := exec.Command(path, append(append(all, more...), scheme+"://"+host+":"+port+target)...).CombinedOutput()
					if err != nil {
						t.Errorf("%v: %v\n%.500s", more, err, out)
					}
					return string(out)
				}
				if out := run("/", "--head"); !strings.Contains(strings.ToLower(out), "x-method: head") || !strings.Contains(strings.ToLower(out), "x-protocol: "+strings.ToLower(proto)) {
					t.Errorf("%s", out)
				}
				if out := run("/", "--data", "hello"); out != "hello" {
					t.Errorf("%q", out)
				}
				if out := run("/", "--data-binary", "@"+big); len(out) != 1<<22 {
					t.Errorf("%d bytes came back", len(out))
				}
				if version != "HTTP/1.0" { // which knows neither of them
					if out := run("/", "--data-binary", "@"+big, "--header", "Expect: 100-continue"); len(out) != 1<<22 {
						t.Errorf("%d bytes came back", len(out))
					}
					if out := run("/", "--upload-file", big, "--header", "Transfer-Encoding: chunked"); len(out) != 1<<22 {
						t.Errorf("%d bytes came back", len(out))
					}
				}
			})
		}
	}
}
