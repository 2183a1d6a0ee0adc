// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
	"github.com/weft-net/weft/internal/waf"
)

// What annotations do on the wire: an Ingress is compiled, a gateway serves what came of it, and real clients and servers
// talk through it. The servers are one process; who of them is spoken to is told by the address of the loopback.

// Where the servers are.
const (
	cartOne, cartTwo, cartThree = "127.0.0.1", "127.0.0.2", "127.0.0.3"
	clusterIP                   = "127.0.0.9" // of Service cart
	checkoutAt                  = "127.0.0.11"
	errorsAt                    = "127.0.0.12"
	authAt                      = "127.0.0.20"
	mirrorAt                    = "127.0.0.30"
	secureAt                    = "127.0.0.40" // speaks TLS
	fullAt                      = "127.0.0.50" // answers no connection
)

// facts are what a server tells of a request.
type facts struct {
	By, Method, URI, Host, Proto, SNI, Client, Body string
	Length                                          int64
	Header                                          http.Header
}

// wireWorld is the servers, and the certificates.
type wireWorld struct {
	port, tlsPort int
	fullPort      int
	ca            tls.Certificate
	manifests     string

	mu    sync.Mutex
	hits  map[string]int      // requests by a server's address and the header X-Case
	last  map[string]facts    // the last of them
	gates map[string]*barrier // of requests for /hold
}

type barrier struct {
	inside, open chan struct{}
	once         sync.Once
}

func (w *wireWorld) gate(name string) *barrier {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.gates[name]
	if g == nil {
		g = &barrier{inside: make(chan struct{}, 100), open: make(chan struct{})}
		w.gates[name] = g
	}
	return g
}

func (w *wireWorld) count(at, name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hits[at+" "+name]
}

func (w *wireWorld) seen(at, name string) facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last[at+" "+name]
}

// ServeHTTP is every server.
func (w *wireWorld) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	at, _, _ := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
	f := facts{By: at, Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Length: r.ContentLength, Header: r.Header}
	if r.TLS != nil {
		f.SNI = r.TLS.ServerName
		if len(r.TLS.PeerCertificates) > 0 {
			f.Client = r.TLS.PeerCertificates[0].Subject.CommonName
		}
	}
	name := r.Header.Get("X-Case")
	if strings.HasPrefix(r.URL.Path, "/deaf") {
		time.Sleep(time.Minute)
		return
	}
	b, _ := io.ReadAll(r.Body)
	f.Body = string(b)
	w.mu.Lock()
	w.hits[at+" "+name]++
	w.last[at+" "+name] = f
	w.mu.Unlock()
	h := rw.Header()
	switch at {
	case authAt:
		h.Set("X-User", "user-"+r.Header.Get("X-Ask"))
		h.Set("Set-Cookie", "auth=1")
		if r.Header.Get("X-Ask") != "ann" {
			rw.WriteHeader(401)
		}
		return
	case errorsAt:
		code, _ := strconv.Atoi(r.Header.Get("X-Code"))
		rw.WriteHeader(code)
		fmt.Fprintf(rw, "page %d", code)
		return
	}
	if d, err := time.ParseDuration(r.Header.Get("X-Slow-" + at[len(at)-1:])); err == nil {
		time.Sleep(d)
	}
	if strings.Contains(r.Header.Get("X-Fail"), at) {
		panic(http.ErrAbortHandler)
	}
	if v := r.Header.Get("X-Set-Cookie"); v != "" {
		h.Set("Set-Cookie", v)
	}
	if v := r.Header.Get("X-Location"); v != "" {
		h.Set("Location", v)
		rw.WriteHeader(302)
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/hold"):
		g := w.gate(name)
		g.inside <- struct{}{}
		<-g.open
	case strings.HasPrefix(r.URL.Path, "/silent"):
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
		return
	case strings.HasPrefix(r.URL.Path, "/bytes/"):
		n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/bytes/"))
		_, _ = rw.Write(make([]byte, n))
		w.gate(name).once.Do(func() { close(w.gate(name).open) })
		return
	}
	if code, err := strconv.Atoi(r.Header.Get("X-Status")); err == nil {
		rw.WriteHeader(code)
	}
	_ = json.NewEncoder(rw).Encode(f)
}

// smallBuffers has servers wait for who does not read.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		_ = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return c, err
}

// unanswering is a socket that listens and whose queue is full: the kernel does not answer who wants to connect.
func unanswering(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 50}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*syscall.SockaddrInet4).Port
	for silent := 0; silent < 3; {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", fullAt, port), 300*time.Millisecond)
		if err != nil {
			silent++
			continue
		}
		t.Cleanup(func() { c.Close() })
	}
	return port
}

func newWorld(t *testing.T) *wireWorld {
	t.Helper()
	w := &wireWorld{hits: map[string]int{}, last: map[string]facts{}, gates: map[string]*barrier{}}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	listen := func(secure *tls.Config) int {
		l, err := net.Listen("tcp4", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(w)
		s.Listener.Close()
		l = smallBuffers{l}
		s.Listener, s.Config.ErrorLog, s.Config.Protocols = l, quiet, &http.Protocols{}
		s.Config.Protocols.SetHTTP1(true)
		if secure != nil {
			s.TLS = secure
			s.StartTLS()
		} else {
			s.Config.Protocols.SetUnencryptedHTTP2(true)
			s.Start()
		}
		t.Cleanup(func() {
			s.CloseClientConnections()
			s.Listener.Close()
		})
		return l.Addr().(*net.TCPAddr).Port
	}
	w.ca = certtest.New(t, named("ca", true), nil)
	web := certtest.New(t, named("web.test", false, "web.test", "www.web.test"), &w.ca)
	backend := certtest.New(t, named("backend.test", false, "backend.test"), &w.ca)
	w.port, w.tlsPort = listen(nil), listen(&tls.Config{Certificates: []tls.Certificate{backend}, ClientAuth: tls.RequestClientCert})
	w.fullPort = unanswering(t)
	caText, _ := inYAML(t, w.ca)
	crt, key := inYAML(t, web)
	service := func(name, ip string, port int, endpoints ...string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec: {clusterIP: %[2]s, ports: [{name: http, port: %[3]d, targetPort: %[3]d}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, namespace: shop, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: http, port: %[3]d}]
endpoints: [{addresses: [%[4]s]}]
---`, name, ip, port, strings.Join(endpoints, "]}, {addresses: ["))
	}
	w.manifests = `
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
---` + service("cart", clusterIP, w.port, cartOne, cartTwo, cartThree) + service("checkout", "127.0.0.8", w.port, checkoutAt) + service("errors", "127.0.0.8", w.port, errorsAt) +
		service("secure", "127.0.0.8", w.tlsPort, secureAt) + service("full", "127.0.0.8", w.fullPort, fullAt) + `
apiVersion: v1
kind: Secret
metadata: {name: web, namespace: shop}
stringData: {tls.crt: ` + crt + `, tls.key: ` + key + `, ca.crt: ` + caText + `}
---
apiVersion: v1
kind: Secret
metadata: {name: names, namespace: shop}
stringData: {ann: "{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}
---
` + referredTo
	return w
}

// gatewayFor is a gateway that serves an Ingress, "web" of host web.test and Service cart, with annotations.
type gatewayFor struct {
	t         *testing.T
	w         *wireWorld
	name      string // of the case, by which servers tell its requests from others'
	srv       *proxy.Server
	revision  uint64
	http, tls int
	log       *lines
	problems  []ingress.Problem
	closeLog  func()
}

// lines counts what is written.
type lines struct {
	mu sync.Mutex
	n  int
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n += strings.Count(string(p), "\n")
	return len(p), nil
}

func (l *lines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

// gateway serves with settings: annotations, "global:" before keys of the ConfigMap, "main:" before annotations of the
// Ingress that a canary is one of; "path" is the Ingress's, "secure" and "full" are its Service, and "https" leaves plain
// requests to be redirected.
func (w *wireWorld) gateway(t *testing.T, name, settings string) *gatewayFor {
	t.Helper()
	g := &gatewayFor{t: t, w: w, name: name, log: &lines{}}
	access, closeLog := proxy.NewAccessLog(g.log, true, 1)
	g.closeLog = sync.OnceFunc(closeLog)
	log := slog.New(slog.DiscardHandler)
	g.srv = proxy.New(proxy.Config{Log: log, AccessLog: access, NewFirewall: waf.New(log)})
	t.Cleanup(func() {
		g.srv.Close()
		g.closeLog()
	})
	for try := 0; ; try++ { // until the ports are nobody else's
		g.http, g.tls = freePort(t), freePort(t)
		err := g.serve(settings)
		var unserved *route.ListenerError
		if err == nil {
			return g
		}
		if !errors.As(err, &unserved) || try == 20 {
			t.Fatalf("%s: %v", settings, err)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// serve compiles the Ingress with settings and has the gateway serve that.
func (g *gatewayFor) serve(settings string) error {
	t, w := g.t, g.w
	t.Helper()
	settings = strings.NewReplacer("{P}", strconv.Itoa(w.port), "{TLS}", strconv.Itoa(w.tlsPort)).Replace(settings)
	i := &model.Ingress{
		Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "web"}, UID: "1", Annotations: map[string]string{}}, Class: "nginx",
		TLS:   []model.IngressTLS{{Hosts: []string{"web.test"}, Secret: "web"}},
		Rules: []model.IngressRule{{Host: "web.test", Paths: []model.IngressPath{{Path: "/", Type: model.IngressPrefix, Backend: model.IngressBackend{Service: "cart", Port: uint16(w.port)}}}}},
	}
	main := *i
	main.Meta = model.Meta{Name: model.Name{Namespace: "shop", Name: "main"}, UID: "2", Annotations: map[string]string{}}
	main.Rules = []model.IngressRule{{Host: "web.test", Paths: []model.IngressPath{i.Rules[0].Paths[0]}}}
	keys := map[string]string{}
	main.Annotations[ingress.Prefix+"ssl-redirect"] = "false"
	path, https := &i.Rules[0].Paths[0], false
	for one := range strings.SplitSeq(settings, " ; ") {
		name, value, _ := strings.Cut(one, "=")
		if rest, ok := strings.CutPrefix(name, "global:"); ok {
			keys[rest] = value
		} else if rest, ok := strings.CutPrefix(name, "main:"); ok {
			main.Annotations[ingress.Prefix+rest] = value
		} else {
			switch name {
			case "":
			case "https":
				https = true
			case "path":
				path.Path, path.Type = value, model.IngressImplementationSpecific
			case "full":
				path.Backend.Service, path.Backend.Port = "full", uint16(w.fullPort)
			case "secure":
				path.Backend.Service, path.Backend.Port = "secure", uint16(w.tlsPort)
			default:
				i.Annotations[ingress.Prefix+name] = value
			}
		}
	}
	if !https && i.Annotations[ingress.Prefix+"ssl-redirect"] == "" && i.Annotations[ingress.Prefix+"canary"] == "" {
		i.Annotations[ingress.Prefix+"ssl-redirect"] = "false"
	}
	c := changes(t, "world", []byte(w.manifests))
	c.Ingresses[i.Name] = i
	if i.Annotations[ingress.Prefix+"canary"] == "true" || strings.Contains(settings, "canary") {
		path.Backend.Service = "checkout"
		c.Ingresses[main.Name] = &main
	}
	conf := model.Name{Namespace: "weft", Name: "ingress"}
	c.ConfigMaps[conf] = &model.ConfigMap{Meta: model.Meta{Name: conf}, Data: keys}
	s := ingress.New(ingress.Options{Controllers: []string{ingress.NginxController}, Config: conf,
		HTTPPort: uint16(g.http), HTTPSPort: uint16(g.tls), PublicHTTP: 80, PublicHTTPS: 443})
	s.Apply(c)
	g.problems = s.Problems(i.Name)
	u := s.Complete()
	for k := range u.Listeners {
		u.Listeners[k].Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	g.revision++
	u.Revision, u.Complete = g.revision, true
	return g.srv.Apply(u)
}

// asked is a request: its method and URL, and header fields as in HTTP, a line each.
type asked struct {
	what   string
	fields string // "Name: value | Name: value"
	body   io.Reader
	cert   *tls.Certificate // of the client
	suites []uint16         // of TLS 1.2
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
	facts  facts
	peer   string // the server's certificate
	err    error
}

// client makes connections of its own for each request.
func (g *gatewayFor) client(a asked) *http.Client {
	conf := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // whose certificate it is the test looks at
	if a.cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.cert, nil }
	}
	if a.suites != nil {
		conf.MaxVersion, conf.CipherSuites = tls.VersionTLS12, a.suites
	}
	return &http.Client{
		Timeout: 50 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, TLSClientConfig: conf, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			port := g.http
			if strings.HasSuffix(addr, ":443") {
				port = g.tls
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		}},
	}
}

func (g *gatewayFor) request(a asked) *http.Request {
	g.t.Helper()
	method, target, _ := strings.Cut(a.what, " ")
	req, err := http.NewRequestWithContext(g.t.Context(), method, target, a.body)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("X-Case", g.name)
	for line := range strings.SplitSeq(a.fields, " | ") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			req.Header.Add(name, value)
		}
	}
	return req
}

func (g *gatewayFor) do(a asked) (r reply) {
	g.t.Helper()
	resp, err := g.client(a).Do(g.request(a))
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r = reply{status: resp.StatusCode, header: resp.Header, body: string(b), err: err}
	_ = json.Unmarshal(b, &r.facts)
	if resp.TLS != nil {
		r.peer = resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	return r
}

// many does a request n times.
func (g *gatewayFor) many(n int, a asked) (all []reply) {
	for range n {
		all = append(all, g.do(a))
	}
	return all
}

// statuses tells which there are among replies, each once, in order.
func statuses(all []reply) string {
	var out []string
	for _, r := range all {
		if s := strconv.Itoa(r.status); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// servers tells how many servers have answered.
func servers(all []reply) int {
	by := map[string]bool{}
	for _, r := range all {
		by[r.facts.By] = true
	}
	return len(by)
}

// show says what a word stands for: "status", "body", "by", "uri", "host", "proto", "length", "sni", "client", "peer"; a
// header of the answer by its name, and one that the server got after a "<".
func (r reply) show(words string) string {
	var out []string
	for word := range strings.FieldsSeq(words) {
		v := ""
		switch word {
		case "status":
			if v = strconv.Itoa(r.status); r.err != nil {
				v = "failed"
			}
		case "body":
			v = r.body
		case "by":
			v = r.facts.By
		case "uri":
			v = r.facts.URI
		case "host":
			v = r.facts.Host
		case "proto":
			v = r.facts.Proto
		case "length":
			v = strconv.FormatInt(r.facts.Length, 10)
		case "sni":
			v = r.facts.SNI
		case "client":
			v = r.facts.Client
		case "peer":
			v = r.peer
		default:
			if name, ok := strings.CutPrefix(word, "<"); ok {
				v = strings.Join(r.facts.Header.Values(name), ", ")
			} else {
				v = strings.Join(r.header.Values(word), ", ")
			}
		}
		out = append(out, strings.TrimSpace(v))
	}
	return strings.Join(out, " ")
}
