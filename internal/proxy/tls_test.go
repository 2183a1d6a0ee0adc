// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// secure is simple's update with an HTTPS listener for each host, each with a certificate of its own.
func secure(t *testing.T, ca *authority, endpoint string, hosts ...string) route.Update {
	u := simple(endpoint)
	u.Listeners, u.Routes[0].Parents = nil, nil
	for _, h := range hosts {
		u.Listeners = append(u.Listeners, route.Listener{Key: h, Protocol: route.HTTPS, Hostname: h, TLS: &route.ListenerTLS{Certificates: []string{h}}})
		u.Certificates = append(u.Certificates, ca.issue(t, h, h))
		u.Routes[0].Parents = append(u.Routes[0].Parents, route.Parent{Listener: h, Hostnames: []string{h}})
	}
	return u
}

// ask makes a request over TLS (and HTTP/2 if asked) to a host, with a server name.
func (r *rig) ask(ca *authority, h2 bool, sni, host string, conf *tls.Config) (*http.Response, string, error) {
	r.t.Helper()
	return r.request(ca, h2, sni, host, conf, nil)
}

// askAs is ask of a.example.com, with headers.
func (r *rig) askAs(ca *authority, h2 bool, conf *tls.Config, header http.Header) (*http.Response, string, error) {
	r.t.Helper()
	return r.request(ca, h2, "a.example.com", "a.example.com", conf, header)
}

func (r *rig) request(ca *authority, h2 bool, sni, host string, conf *tls.Config, header http.Header) (*http.Response, string, error) {
	r.t.Helper()
	if conf == nil {
		conf = &tls.Config{}
	}
	conf.RootCAs, conf.ServerName = ca.pool(), sni
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: h2, DialTLSContext: nil,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.tcp())
		}}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest("GET", "https://"+sni+"/", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Host = host
	for name, values := range header {
		req.Header[name] = values
	}
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestHTTPS(t *testing.T) {
	ca := newAuthority(t)
	e := newEcho(t, "one")
	r := start(t, secure(t, ca, e.addr(), "a.example.com", "*.example.org"))
	for _, h2 := range []bool{false, true} {
		for _, sni := range []string{"a.example.com", "x.example.org"} {
			resp, b, err := r.ask(ca, h2, sni, sni, nil)
			if err != nil || resp.StatusCode != 200 || (resp.ProtoMajor == 2) != h2 || !strings.Contains(b, `"X-Forwarded-Proto":["https"]`) {
				t.Errorf("%s, h2 %v: %v %v %s", sni, h2, resp, err, b)
			}
		}
		// Requests of one host over the connection to another.
		if resp, _, err := r.ask(ca, h2, "a.example.com", "x.example.org", nil); err != nil || resp.StatusCode != 421 {
			t.Errorf("h2 %v: %v %v, want 421", h2, resp, err)
		}
		if resp, _, err := r.ask(ca, h2, "a.example.com", "unknown.example.net", nil); err != nil || resp.StatusCode != 404 {
			t.Errorf("h2 %v: %v %v, want 404", h2, resp, err)
		}
		if _, _, err := r.ask(ca, h2, "b.example.com", "b.example.com", nil); err == nil {
			t.Error("an unknown server name got an answer")
		}
	}
	// A renewed certificate is the next handshake's.
	renewed := ca.issue(t, "a.example.com", "a.example.com")
	if err := r.srv.Apply(&route.Update{Certificates: []route.Certificate{renewed}}); err != nil {
		t.Fatal(err)
	}
	resp, _, err := r.ask(ca, true, "a.example.com", "a.example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, _ := keyPair(&renewed)
	if string(resp.TLS.PeerCertificates[0].Raw) != string(pair.Certificate[0]) {
		t.Error("the old certificate is served")
	}
}

func TestTLSVersions(t *testing.T) {
	ca := newAuthority(t)
	u := secure(t, ca, newEcho(t, "one").addr(), "a.example.com")
	u.Listeners[0].TLS.MinVersion = "1.3"
	r := start(t, u)
	if _, _, err := r.ask(ca, false, "a.example.com", "a.example.com", &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
	if _, _, err := r.ask(ca, false, "a.example.com", "a.example.com", nil); err != nil {
		t.Error(err)
	}
}

func TestClientCertificates(t *testing.T) {
	ca, clients, strangers := newAuthority(t), newAuthority(t), newAuthority(t)
	good, stranger := clients.issue(t, "c", "client"), strangers.issue(t, "c", "client")
	pair := func(c route.Certificate) *tls.Config {
		p, err := keyPair(&c)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p, nil }}
	}
	for _, fallback := range []bool{false, true} {
		u := secure(t, ca, newEcho(t, "one").addr(), "a.example.com")
		u.Listeners[0].TLS.Client = &route.ClientValidation{CAs: clients.pem, AllowInsecureFallback: fallback}
		r := start(t, u)
		for name, c := range map[string]struct {
			conf *tls.Config
			ok   bool
		}{"good": {pair(good), true}, "stranger": {pair(stranger), fallback}, "none": {nil, fallback}} {
			if _, _, err := r.ask(ca, false, "a.example.com", "a.example.com", c.conf); (err == nil) != c.ok {
				t.Errorf("fallback %v, %s: %v", fallback, name, err)
			}
		}
	}
}

// secureEcho is an endpoint with TLS, which may ask for a client certificate.
func secureEcho(t *testing.T, cert route.Certificate, conf *tls.Config) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %d", r.Proto, r.TLS.ServerName, len(r.TLS.PeerCertificates))
	}))
	p, err := keyPair(&cert)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{p}
	s.TLS = conf
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestBackendTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	mine := ca.issue(t, "gw", "gateway")
	addr := secureEcho(t, ca.issue(t, "s", "s.example.com", "spiffe://x/y"), &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool()})
	for name, c := range map[string]struct {
		conf route.BackendTLS
		want string
	}{
		"right":       {route.BackendTLS{ServerName: "s.example.com", CAs: ca.pem, ClientCertificate: "gw"}, "s.example.com 1"},
		"no client":   {route.BackendTLS{ServerName: "s.example.com", CAs: ca.pem}, ""},
		"other name":  {route.BackendTLS{ServerName: "t.example.com", CAs: ca.pem, ClientCertificate: "gw"}, ""},
		"other CA":    {route.BackendTLS{ServerName: "s.example.com", CAs: stranger.pem, ClientCertificate: "gw"}, ""},
		"system CAs":  {route.BackendTLS{ServerName: "s.example.com", ClientCertificate: "gw"}, ""},
		"SAN":         {route.BackendTLS{ServerName: "sni", CAs: ca.pem, ClientCertificate: "gw", SubjectAltNames: []route.SubjectAltName{{Hostname: "x"}, {Hostname: "s.example.com"}}}, "sni 1"},
		"URI":         {route.BackendTLS{ServerName: "sni", CAs: ca.pem, ClientCertificate: "gw", SubjectAltNames: []route.SubjectAltName{{URI: "spiffe://x/y"}}}, "sni 1"},
		"other SAN":   {route.BackendTLS{ServerName: "s.example.com", CAs: ca.pem, ClientCertificate: "gw", SubjectAltNames: []route.SubjectAltName{{Hostname: "x"}}}, ""},
		"SAN, bad CA": {route.BackendTLS{ServerName: "sni", CAs: stranger.pem, ClientCertificate: "gw", SubjectAltNames: []route.SubjectAltName{{Hostname: "s.example.com"}}}, ""},
		"insecure":    {route.BackendTLS{ServerName: "any", ClientCertificate: "gw", Insecure: true}, "any 1"},
	} {
		for _, proto := range []route.BackendProtocol{route.HTTP1, route.HTTP2} {
			u := simple(addr)
			u.Certificates = []route.Certificate{mine}
			u.Backends[0].TLS, u.Backends[0].Protocol = &c.conf, proto
			resp, b := start(t, u).once("GET", "/", nil, "")
			want := map[route.BackendProtocol]string{route.HTTP1: "HTTP/1.1 ", route.HTTP2: "HTTP/2.0 "}[proto] + c.want
			if c.want == "" && resp.StatusCode != 502 || c.want != "" && b != want {
				t.Errorf("%s, %s: %d %q", name, proto, resp.StatusCode, b)
			}
		}
	}
}

func TestPassthroughBesideTermination(t *testing.T) {
	ca := newAuthority(t)
	inner := secureEcho(t, ca.issue(t, "p", "pass.example.com"), &tls.Config{})
	u := secure(t, ca, newEcho(t, "one").addr(), "a.example.com")
	u.Listeners = append(u.Listeners, route.Listener{Key: "pass", Protocol: route.TLS, Hostname: "*.example.com", TLS: &route.ListenerTLS{Passthrough: true}})
	u.Backends = append(u.Backends, route.Backend{Key: "p", Endpoints: "p", Protocol: route.Raw})
	u.Endpoints = append(u.Endpoints, route.EndpointSet{Key: "p", Endpoints: []route.Endpoint{{Address: inner}}})
	u.Routes = append(u.Routes, route.Route{Key: "tls", Kind: route.TLSRoute, Parents: []route.Parent{{Listener: "pass", Hostnames: []string{"pass.example.com"}}},
		Rules: []route.Rule{{Backends: []route.WeightedBackend{{Backend: "p", Weight: 1}}}}})
	r := start(t, u)
	if resp, b, err := r.ask(ca, true, "pass.example.com", "pass.example.com", nil); err != nil || !strings.HasPrefix(b, "HTTP/2.0 pass.example.com") {
		t.Errorf("%v %q %v", resp, b, err)
	}
	if resp, b, err := r.ask(ca, true, "a.example.com", "a.example.com", nil); err != nil || !strings.Contains(b, `"Server":"one"`) {
		t.Errorf("%v %q %v", resp, b, err)
	}
	if _, _, err := r.ask(ca, true, "none.example.com", "none.example.com", nil); err == nil {
		t.Error("a name without route was served")
	}
}

func TestTLSRouteTerminates(t *testing.T) {
	ca := newAuthority(t)
	u := simple(talk(t, func(c net.Conn) { defer c.Close(); _, _ = io.Copy(c, c) }))
	u.Listeners = []route.Listener{{Key: "t", Protocol: route.TLS, TLS: &route.ListenerTLS{Certificates: []string{"c"}}}}
	u.Certificates = []route.Certificate{ca.issue(t, "c", "a.example.com")}
	u.Routes[0].Kind, u.Routes[0].Parents[0].Listener = route.TLSRoute, "t"
	r := start(t, u)
	c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "hello")
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// grpcLike is an HTTP/2 endpoint that streams both ways and ends with trailers.
func grpcLike(t *testing.T) string {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("X-Te", r.Header.Get("Te"))
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 1<<15)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	}))
	s.Config.Protocols = &p
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// h2cClient speaks HTTP/2 with prior knowledge.
func h2cClient() *http.Transport {
	t := &http.Transport{Protocols: &http.Protocols{}}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// A call streams in both directions at once over HTTP/2 with prior knowledge, and ends with its trailers.
func TestGRPC(t *testing.T) {
	u := simple(grpcLike(t))
	u.Backends[0].Protocol = route.HTTP2
	u.Routes[0].Kind = route.GRPCRoute
	u.Routes[0].Rules[0].Matches = []route.Match{{GRPC: &route.GRPCMatch{Service: "s.S"}}}
	r := start(t, u)
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	pr, pw := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+r.tcp()+"/s.S/M", pr)
	req.Header.Set("Te", "trailers")
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("X-Te") != "trailers" {
		t.Error("TE: trailers is lost")
	}
	for i := range 50 {
		msg := strings.Repeat(fmt.Sprint(i%10), 1000)
		go func() { _, _ = io.WriteString(pw, msg) }()
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != msg {
			t.Fatalf("%d: %v", i, err)
		}
	}
	pw.Close()
	if _, err := io.ReadAll(resp.Body); err != nil || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%v, trailers %v", err, resp.Trailer)
	}
	// What the gateway itself says comes as a status of gRPC.
	req, _ = http.NewRequestWithContext(ctx, "POST", "http://"+r.tcp()+"/other.S/M", strings.NewReader("x"))
	req.Header.Set("Content-Type", "application/grpc")
	if resp, err = tr.RoundTrip(req); err != nil || resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "12" {
		t.Errorf("%+v, %v", resp, err)
	}
}

func TestHTTP2ToHTTP1AndBack(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := strings.Repeat("z", i*i*1000)
			resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Post(fmt.Sprintf("http://%s/p%d?q", r.tcp(), i), "text/plain", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var s seen
			if err := json.NewDecoder(resp.Body).Decode(&s); err != nil || s.Body != body || s.Path != fmt.Sprintf("/p%d?q", i) || s.Header.Get("X-Forwarded-For") != "127.0.0.1" {
				t.Errorf("%d: %v, %d bytes", i, err, len(s.Body))
			}
		})
	}
	wg.Wait()

	u := simple(grpcLike(t))
	u.Backends[0].Protocol = route.HTTP2
	r = start(t, u)
	for _, target := range []string{"/x?y", "//double"} {
		if resp, b := r.once("POST", target, nil, "over"); resp.StatusCode != 200 || b != "over" || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%s: %d %q %v", target, resp.StatusCode, b, resp.Trailer)
		}
	}
}

// A client that resets its stream ends the endpoint's request too, and leaves no goroutine.
func TestCancelledStreams(t *testing.T) {
	gone := make(chan struct{})
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(gone)
	})
	r := start(t, simple(addr))
	tr := h2cClient()
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.tcp()+"/", nil)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	select {
	case <-gone:
	case <-time.After(15 * time.Second):
		t.Fatal("the endpoint goes on")
	}
	until(t, "the exchange is over", func() bool { return r.srv.active.Load() == 0 })
}

// What HTTP/2 can say and HTTP/1.1 can't does not reach an endpoint.
func TestDowngradeSmuggling(t *testing.T) {
	e := newEcho(t, "one")
	r := start(t, simple(e.addr()))
	for name, fields := range map[string][][2]string{
		"transfer-encoding": {{"transfer-encoding", "chunked"}},
		"connection":        {{"connection", "x"}},
		"CRLF in value":     {{"x", "a\r\nhost: b"}},
		"name with colon":   {{"x: y", "a"}},
		"upper case":        {{"X-A", "a"}},
		"length and more":   {{"content-length", "1"}},
		"NUL":               {{"x", "a\x00"}},
		"path with space":   {{":path", "/ HTTP/1.1\r\nx: y"}},
		"authority":         {{":authority", "a/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFramer(t, r.tcp())
			f.request(1, fields, name == "length and more")
			if name == "length and more" {
				_ = f.WriteData(1, true, []byte("GET / HTTP/1.1\r\n"))
			}
			if status := f.status(1); status == "200" {
				t.Errorf("it was served")
			}
		})
	}
	if n := e.count.Load(); n > 1 { // the body that is too long begins as a request
		t.Errorf("%d requests reached the endpoint", n)
	}
}

func TestPipesOfTCPAndPROXY(t *testing.T) {
	headers := make(chan string, 1)
	for version := range 3 {
		u := simple(talk(t, func(c net.Conn) {
			defer c.Close()
			r := bufio.NewReader(c)
			if version == 1 {
				line, _ := r.ReadString('\n')
				headers <- line
			} else if version == 2 {
				b := make([]byte, 28)
				_, _ = io.ReadFull(r, b)
				headers <- string(b[:14])
			}
			_, _ = io.Copy(c, r)
		}))
		u.Listeners[0].Protocol, u.Listeners[0].ProxyProtocol = route.TCP, version == 1
		u.Routes[0].Kind = route.TCPRoute
		u.Backends[0].Protocol, u.Backends[0].ProxyProtocol = route.Raw, version
		r := start(t, u)
		c := r.dial()
		if version == 1 {
			c.send("PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n")
		}
		body := strings.Repeat("0123456789", 100000)
		go func() {
			_, _ = io.WriteString(c, body)
			_ = c.Conn.(*net.TCPConn).CloseWrite()
		}()
		if b, err := io.ReadAll(c.r); err != nil || string(b) != body {
			t.Errorf("%d of %d bytes, %v", len(b), len(body), err)
		}
		switch version {
		case 1:
			if h := <-headers; h != "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n" {
				t.Errorf("%q", h)
			}
		case 2:
			if h := <-headers; h != string(proxySignature)+"\x21\x11" {
				t.Errorf("%q", h)
			}
		}
		until(t, "the connection is over", func() bool { return r.srv.conns.Load() == 0 })
	}
}

func TestUDP(t *testing.T) {
	addr, _ := datagrams(t, "echo")
	r := start(t, udp(addr), Config{UDPIdle: 200 * time.Millisecond})
	for i := range 3 {
		c, err := net.Dial("udp", r.addr(true))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		for j := range 5 {
			fmt.Fprintf(c, "%d %d", i, j)
			b := make([]byte, 100)
			if n, err := c.Read(b); err != nil || string(b[:n]) != fmt.Sprintf("echo %d %d", i, j) {
				t.Fatalf("%q, %v", b[:n], err)
			}
		}
	}
	e := r.srv.tables.backends["b"].Load().endpoints.Load().all[0]
	until(t, "idle sessions end", func() bool { return e.inflight.Load() == 0 })
}

// A client that names no server gets the certificate of the listener for all, and by its requests' hosts reaches those
// listeners that check no client.
func TestNoServerName(t *testing.T) {
	ca := newAuthority(t)
	u := secure(t, ca, newEcho(t, "one").addr(), "", "a.example.com", "b.example.com")
	u.Listeners[0].Key, u.Routes[0].Parents[0].Listener = "all", "all"
	u.Listeners[2].TLS.Client = &route.ClientValidation{CAs: ca.pem}
	r := start(t, u)
	for host, want := range map[string]string{"a.example.com": "200", "b.example.com": "421", "c.example.com": "200"} {
		c, err := tls.Dial("tcp", r.tcp(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 "+want) {
			t.Errorf("%s: %.40q, %v, want %s", host, b, err, want)
		}
		c.Close()
	}
	if resp, _, err := r.ask(ca, false, "a.example.com", "c.example.com", nil); err != nil || resp.StatusCode != 421 {
		t.Errorf("with a server name: %v, %v", resp, err)
	}
}
