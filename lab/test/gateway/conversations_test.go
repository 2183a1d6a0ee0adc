// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/weft-net/weft/lab/labtest"
)

// allProtocols is a Gateway with a listener of each protocol, and routes from all of them to one backend.
func allProtocols(backend string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {hostnames: [web.test], parentRefs: [{name: all, sectionName: https}], rules: [{backendRefs: [{name: %[1]s, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: grpc}
spec: {hostnames: [grpc.test], parentRefs: [{name: all, sectionName: https}], rules: [{backendRefs: [{name: %[1]s, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: pass}
spec: {hostnames: [pass.test], parentRefs: [{name: all, sectionName: pass}], rules: [{backendRefs: [{name: %[1]s, port: 8443}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: tcp}
spec: {parentRefs: [{name: all, sectionName: tcp}], rules: [{backendRefs: [{name: %[1]s, port: 9000}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {name: udp}
spec: {parentRefs: [{name: all, sectionName: udp}], rules: [{backendRefs: [{name: %[1]s, port: 9001}]}]}
---
`, backend)
}

const allListeners = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: all}
spec:
  gatewayClassName: weft
  listeners:
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: pass, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
  - {name: tcp, port: 9000, protocol: TCP}
  - {name: udp, port: 9001, protocol: UDP}
---
`

// speaker is an echo Deployment with a Service for each protocol.
func speaker(name string, replicas int) string {
	return labtest.EchoDeployment(name, replicas) + fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports:
  - {name: http, port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}
  - {name: https, port: 8443, targetPort: 8443}
  - {name: tcp, port: 9000, targetPort: 9000}
  - {name: udp, port: 9001, targetPort: 9000, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s-ws}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
---
`, name)
}

// socketRoute has WebSockets go to a Service that speaks HTTP/1.1.
func socketRoute(backend string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ws}
spec: {hostnames: [ws.test], parentRefs: [{name: all, sectionName: https}], rules: [{backendRefs: [{name: %s-ws, port: 80}]}]}
---
`, backend)
}

// certificate is one of a number, which is a CA as well, and its key, both in PEM.
func certificate(t *testing.T, serial int64) (cert, private []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"*.test"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// newCertificate is a Secret with a certificate of a number.
func newCertificate(t *testing.T, serial int64) string {
	t.Helper()
	cert, private := certificate(t, serial)
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: cert}
type: kubernetes.io/tls
data: {tls.crt: %s, tls.key: %s}
---
`, base64.StdEncoding.EncodeToString(cert), base64.StdEncoding.EncodeToString(private))
}

// No conversation fails, of whatever protocol: not when routes point elsewhere, a certificate is renewed, or the
// controller dies, and then those that last go on; nor when the backends' pods are replaced, where those that last may
// end with their pod, and the next one is served at once.
func TestNoConversationFails(t *testing.T) {
	gatewayAPI(t)
	ns := lab.Namespace(t)
	lab.Apply(t, ns, newCertificate(t, 1)+speaker("one", 2)+speaker("two", 1)+allListeners+allProtocols("one")+socketRoute("one"))
	for _, d := range []string{"one", "two"} {
		lab.Rollout(t, ns, "deploy/"+d)
	}
	addr := programmed(t, ns, "all")[0]
	lab.Rollout(t, ns, "deploy/all-weft")
	by := func(pod string) {
		t.Helper()
		for _, url := range []string{"tcp://" + net.JoinHostPort(addr, "9000"), "udp://" + net.JoinHostPort(addr, "9001")} {
			labtest.Eventually(t, 60*time.Second, func() error {
				out, err := lab.Exec(t.Context(), "outside", lab.Echo("outside"), "get", "-timeout", "3s", url)
				if err == nil && !strings.Contains(out, "pod="+pod+"-") {
					err = fmt.Errorf("%s is answered by %s, want %s", url, out, pod)
				}
				return err
			})
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	outside := func(mode string) []string {
		return []string{"exec", "--in", "outside", "--", "env", conversationsEnv + "=" + mode + " " + addr, self, "-test.run=^TestConversations$", "-test.v"}
	}
	by("one")
	// Everything is served before it counts.
	labtest.Eventually(t, 60*time.Second, func() error {
		out, err := lab.Run(t.Context(), outside("once")...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})

	talk := func(lasting bool, change func()) {
		t.Helper()
		tr := lab.Background(t, outside("on")...)
		change()
		out, err := tr.Stop()
		_, line, ok := strings.Cut(out, "RESULT ")
		var results map[string]*conversation
		if !ok || json.Unmarshal([]byte(strings.SplitN(line, "\n", 2)[0]), &results) != nil {
			t.Fatalf("no result, %v: %s", err, out)
		}
		for name, c := range results {
			t.Logf("%s: %d answered, %d failed, %d ended", name, c.Answered, c.Failed, c.Ended)
			if c.Failed > 0 || c.Answered == 0 || lasting && c.Ended > 0 {
				t.Errorf("%s: %d answered, %d failed, %d ended: %s", name, c.Answered, c.Failed, c.Ended, c.Why)
			}
		}
	}
	t.Run("sessions", func(t *testing.T) { // of TLS: they go on at whichever pod
		if pods := lab.Get(t, ns, "deploy/all-weft", "{.status.readyReplicas}"); pods != "2" {
			t.Fatalf("%s pods are ready", pods)
		}
		out, err := lab.Run(t.Context(), outside("sessions")...)
		if err != nil || !strings.Contains(out, "RESUMED 12 of 12\n") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("configuration", func(t *testing.T) {
		talk(true, func() {
			for i := range int64(3) {
				lab.Apply(t, ns, allProtocols("two")+socketRoute("two")+newCertificate(t, 2*i+2))
				by("two")
				lab.Apply(t, ns, allProtocols("one")+socketRoute("one")+newCertificate(t, 2*i+3))
				by("one")
			}
			labtest.Eventually(t, 60*time.Second, func() error {
				out, err := lab.Run(t.Context(), outside("serial")...)
				if err != nil || !strings.Contains(out, "SERIAL 7\n") {
					return fmt.Errorf("%v: %s", err, out)
				}
				return nil
			})
			lab.Kubectl(t, "delete", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/component=controller", "--force", "--grace-period=0")
			lab.Rollout(t, "kube-system", "deploy/weft-controller")
			lab.Apply(t, ns, allProtocols("two")+socketRoute("two"))
			by("two")
		})
	})
	t.Run("backends", func(t *testing.T) {
		lab.Apply(t, ns, allProtocols("one")+socketRoute("one"))
		by("one")
		talk(false, func() {
			lab.Kubectl(t, "rollout", "restart", "deploy/one", "-n", ns)
			lab.Rollout(t, ns, "deploy/one")
			labtest.Eventually(t, 60*time.Second, func() error {
				if got := lab.Kubectl(t, "get", "pods", "-n", ns, "-l", "app=one", "-o", "name"); strings.Count(got, "\n") != 2 {
					return fmt.Errorf("pods: %s", got)
				}
				return nil
			})
		})
	})
}

// conversationsEnv has the test's binary be the clients beyond the cluster: "mode address".
const conversationsEnv = "WEFT_CONVERSATIONS"

// conversation is how the conversations of a kind went.
type conversation struct {
	Answered, Failed int
	Ended            int // the other side ended them in the middle
	Why              string

	mu sync.Mutex
}

var errEnded = errors.New("ended")

func (c *conversation) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.Answered++
		return
	case errors.Is(err, errEnded):
		c.Ended++
	default:
		c.Failed++
	}
	if len(c.Why) < 2000 {
		c.Why += time.Now().Format("15:04:05.000 ") + err.Error() + "; "
	}
}

// TestConversations is the clients of TestNoConversationFails; by itself it does nothing. It talks until it is
// interrupted, or until everybody has been answered once.
func TestConversations(t *testing.T) {
	mode, addr, ok := strings.Cut(os.Getenv(conversationsEnv), " ")
	if !ok {
		return
	}
	s := speaking{addr: addr}
	if mode == "serial" {
		c, err := tls.Dial("tcp", net.JoinHostPort(addr, "443"), s.tls("web.test"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Printf("SERIAL %s\n", c.ConnectionState().PeerCertificates[0].SerialNumber)
		return
	}
	if mode == "sessions" {
		n, err := s.resumed(12)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("RESUMED %d of 12\n", n)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	results := map[string]*conversation{}
	var all sync.WaitGroup
	for name, begin := range map[string]func() (say func() error, end func(), err error){
		"HTTPS, kept":         func() (func() error, func(), error) { return s.requests("web.test", "443", false, false) },
		"HTTPS, anew":         s.anew(func() (func() error, func(), error) { return s.requests("web.test", "443", false, true) }),
		"HTTP/2":              func() (func() error, func(), error) { return s.requests("web.test", "443", true, false) },
		"gRPC":                s.calls,
		"gRPC stream":         s.stream,
		"WebSocket":           s.socket,
		"TCP":                 s.line,
		"TCP, anew":           s.anew(s.line),
		"TLS passed on":       func() (func() error, func(), error) { return s.requests("pass.test", "8443", false, false) },
		"TLS passed on, anew": s.anew(func() (func() error, func(), error) { return s.requests("pass.test", "8443", false, true) }),
		"UDP":                 s.datagrams,
	} {
		c := &conversation{}
		results[name] = c
		for range 2 {
			all.Go(func() {
				say, end, err := begin()
				for ctx.Err() == nil {
					if err == nil {
						err = say()
					}
					c.add(err)
					if err != nil {
						if end != nil {
							end()
						}
						say, end, err = begin()
					}
					if mode == "once" {
						break
					}
					select {
					case <-ctx.Done():
					case <-time.After(25 * time.Millisecond):
					}
				}
				if end != nil {
					end()
				}
			})
		}
	}
	all.Wait()
	out, err := json.Marshal(results)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("RESULT %s\n", out)
	if mode == "once" {
		for name, c := range results {
			if c.Failed+c.Ended > 0 {
				t.Errorf("%s: %s", name, c.Why)
			}
		}
	}
}

// speaking begins conversations: say asks something and waits for the answer.
type speaking struct{ addr string }

// resumed begins TLS so many times more, and tells how often that went on from an earlier session.
func (s speaking) resumed(times int) (n int, err error) {
	conf := s.tls("web.test")
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range times + 1 {
		c, err := tls.Dial("tcp", net.JoinHostPort(s.addr, "443"), conf)
		if err != nil {
			return n, err
		}
		_ = c.SetDeadline(time.Now().Add(answerWithin))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n")
		if _, err := io.ReadAll(c); err != nil { // tickets come with the first data
			return n, err
		}
		if i > 0 && c.ConnectionState().DidResume {
			n++
		}
		c.Close()
	}
	return n, nil
}

const answerWithin = 10 * time.Second

func (s speaking) tls(name string, protos ...string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: protos} // certificates come and go
}

// anew makes each question a conversation of its own.
func (s speaking) anew(begin func() (func() error, func(), error)) func() (func() error, func(), error) {
	return func() (func() error, func(), error) {
		return func() error {
			say, end, err := begin()
			if err != nil {
				return err
			}
			defer end()
			if err := say(); err != nil {
				return fmt.Errorf("the first answer: %s", err) // not one that merely ended
			}
			return nil
		}, func() {}, nil
	}
}

// client is one that speaks HTTP over TLS with a server name.
func (s speaking) client(name, port string, h2 bool) *http.Transport {
	tr := &http.Transport{TLSClientConfig: s.tls(name), ForceAttemptHTTP2: h2, ResponseHeaderTimeout: answerWithin,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: answerWithin}).DialContext(ctx, "tcp", net.JoinHostPort(s.addr, port))
		}}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return tr
}

func (s speaking) requests(name, port string, h2, anew bool) (func() error, func(), error) {
	tr := s.client(name, port, h2)
	tr.DisableKeepAlives = anew
	return func() error {
		resp, err := tr.RoundTrip(request(http.MethodGet, name, nil))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !bytes.Contains(b, []byte(`"pod":"`)) || h2 != (resp.ProtoMajor == 2)) {
			err = fmt.Errorf("%s %s: %.100s", resp.Proto, resp.Status, b)
		}
		return err
	}, tr.CloseIdleConnections, nil
}

func request(method, name string, body io.Reader) *http.Request {
	r, err := http.NewRequest(method, "https://"+name+"/lab.Test/Call", body)
	if err != nil {
		panic(err) // all of it is constant
	}
	if method == http.MethodGet {
		r.URL.Path = "/"
		return r
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	return r
}

// emptyMessage is one of gRPC.
var emptyMessage = make([]byte, 5)

// readMessage reads one.
func readMessage(r io.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, r, int64(head[1])<<24|int64(head[2])<<16|int64(head[3])<<8|int64(head[4]))
	return err
}

func (s speaking) calls() (func() error, func(), error) {
	tr := s.client("grpc.test", "443", true)
	return func() error {
		resp, err := tr.RoundTrip(request(http.MethodPost, "grpc.test", bytes.NewReader(emptyMessage)))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err = readMessage(resp.Body); err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		if status := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status"); err == nil && status != "0" {
			err = fmt.Errorf("gRPC status %q: %s", status, resp.Trailer.Get("Grpc-Message")+resp.Header.Get("Grpc-Message"))
		}
		return err
	}, tr.CloseIdleConnections, nil
}

func (s speaking) stream() (func() error, func(), error) {
	tr := s.client("grpc.test", "443", true)
	in, out := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	resp, err := tr.RoundTrip(request(http.MethodPost, "grpc.test", in).WithContext(ctx))
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Grpc-Status") != "" {
		cancel()
		return nil, nil, fmt.Errorf("begin a stream: %v, %v", resp, err)
	}
	return func() error {
			defer time.AfterFunc(answerWithin, cancel).Stop()
			if _, err := out.Write(emptyMessage); err != nil {
				return fmt.Errorf("%w: %w", errEnded, err)
			}
			if err := readMessage(resp.Body); err != nil {
				return fmt.Errorf("%w: %w", errEnded, err)
			}
			return nil
		}, func() {
			cancel()
			out.Close()
			resp.Body.Close()
			tr.CloseIdleConnections()
		}, nil
}

func (s speaking) socket() (func() error, func(), error) {
	d := websocket.Dialer{TLSClientConfig: s.tls("ws.test", "http/1.1"), HandshakeTimeout: answerWithin,
		NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(s.addr, "443"))
		}}
	c, _, err := d.Dial("wss://ws.test/", nil)
	if err != nil {
		return nil, nil, fmt.Errorf("begin a WebSocket: %w", err)
	}
	greeted := false
	return func() error {
		_ = c.SetReadDeadline(time.Now().Add(answerWithin))
		if !greeted {
			greeted = true
			if _, _, err := c.ReadMessage(); err != nil {
				return err
			}
		}
		if err := c.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
			return fmt.Errorf("%w: %w", errEnded, err)
		}
		if _, b, err := c.ReadMessage(); err != nil || string(b) != "hello" {
			return fmt.Errorf("%w: %q, %w", errEnded, b, err)
		}
		return nil
	}, func() { c.Close() }, nil
}

func (s speaking) line() (func() error, func(), error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(s.addr, "9000"), answerWithin)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(c)
	greeted := false
	return func() error {
		_ = c.SetDeadline(time.Now().Add(answerWithin))
		if !greeted {
			greeted = true
			if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "pod=") {
				return fmt.Errorf("%q, %v", line, err)
			}
		}
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			return fmt.Errorf("%w: %w", errEnded, err)
		}
		if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
			return fmt.Errorf("%w: %q, %w", errEnded, line, err)
		}
		return nil
	}, func() { c.Close() }, nil
}

// datagrams come from one port for as long as they are answered.
func (s speaking) datagrams() (func() error, func(), error) {
	c, err := net.Dial("udp", net.JoinHostPort(s.addr, "9001"))
	if err != nil {
		return nil, nil, err
	}
	b := make([]byte, 2000)
	return func() error {
		if _, err := io.WriteString(c, "ping\n"); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(answerWithin))
		n, err := c.Read(b)
		if err == nil && !bytes.HasPrefix(b[:n], []byte("pod=")) {
			err = fmt.Errorf("%q", b[:n])
		}
		return err
	}, func() { c.Close() }, nil
}
