// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/route"
)

// rig is a proxy on a port of the kernel's choice.
type rig struct {
	t      *testing.T
	srv    *Server
	update route.Update
}

var loopback = []netip.Addr{netip.MustParseAddr("127.0.0.1")}

// start serves an update, whose listeners are put on the loopback. Errors of the update fail the test.
func start(t *testing.T, u route.Update, conf ...Config) *rig {
	t.Helper()
	var c Config
	if len(conf) > 0 {
		c = conf[0]
	}
	c.Log = slog.New(slog.DiscardHandler)
	r := &rig{t: t, srv: New(c), update: u}
	t.Cleanup(r.srv.Close)
	r.update.Listeners = slices.Clone(u.Listeners) // other tests may have the same, at the same time
	for i := range r.update.Listeners {
		r.update.Listeners[i].Addresses = loopback
	}
	r.update.Complete = true
	r.apply()
	return r
}

func (r *rig) apply() {
	r.t.Helper()
	r.update.Revision++
	u := r.update
	if err := r.srv.Apply(&u); err != nil {
		r.t.Fatal(err)
	}
}

// addr is where the (only) port of a kind is bound.
func (r *rig) addr(udp bool) string {
	r.t.Helper()
	r.srv.tables.mu.Lock()
	defer r.srv.tables.mu.Unlock()
	for k, p := range r.srv.tables.ports {
		if k.udp && udp {
			return p.udp.LocalAddr().String()
		}
		if !k.udp && !udp {
			return p.l.Addr().String()
		}
	}
	r.t.Fatal("no such port")
	return ""
}

func (r *rig) tcp() string { return r.addr(false) }

// simple routes everything on one HTTP listener to the endpoints.
func simple(endpoints ...string) route.Update {
	set := route.EndpointSet{Key: "e"}
	for _, e := range endpoints {
		set.Endpoints = append(set.Endpoints, route.Endpoint{Address: e})
	}
	return route.Update{
		Listeners: []route.Listener{{Key: "http", Protocol: route.HTTP}},
		Routes: []route.Route{{Key: "r", Kind: route.HTTPRoute, Parents: []route.Parent{{Listener: "http", Hostnames: []string{""}}},
			Rules: []route.Rule{{Backends: []route.WeightedBackend{{Backend: "b", Weight: 1}}}}}},
		Backends:  []route.Backend{{Key: "b", Endpoints: "e"}},
		Endpoints: []route.EndpointSet{set},
	}
}

// seen is what an echo endpoint got.
type seen struct {
	Server, Method, Path, Host string
	Header                     http.Header
	Body                       string
	Length                     int64
}

// echo is an endpoint that tells what it got.
type echo struct {
	*httptest.Server
	name  string
	count atomic.Int64
}

func newEcho(t *testing.T, name string) *echo {
	e := &echo{name: name}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.count.Add(1)
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Logf("%s: body: %v", name, err)
		}
		w.Header().Set("X-From", name)
		_ = json.NewEncoder(w).Encode(seen{name, r.Method, r.RequestURI, r.Host, r.Header, string(b), r.ContentLength})
	}))
	e.Start()
	t.Cleanup(e.Close)
	return e
}

func (e *echo) addr() string { return e.Listener.Addr().String() }

// serve is an endpoint with a handler of its own.
func serve(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// talk is an endpoint that handles raw connections.
func talk(t *testing.T, f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
	return l.Addr().String()
}

// conn is a client's raw connection.
type conn struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (r *rig) dial() *conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.tcp())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(40 * time.Second))
	return &conn{r.t, c, bufio.NewReader(c)}
}

func (c *conn) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one response, body included.
func (c *conn) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(b)
}

// closed waits for the proxy's end of the connection.
func (c *conn) closed() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF {
		c.t.Errorf("the connection goes on: %q, %v", b, err)
	}
}

// once makes a request on a connection of its own.
func (r *rig) once(method, target string, header map[string]string, body string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://"+r.tcp()+"/", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if req.URL.Opaque = target; body == "" {
		req.Body = nil
	}
	req.Host = "a.example.com"
	for k, v := range header {
		if k == "Host" {
			req.Host = v
		} else {
			req.Header.Set(k, v)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}

// get makes a request and decodes what the echo tells.
func (r *rig) get(target string, header map[string]string) (int, seen) {
	r.t.Helper()
	resp, b := r.once("GET", target, header, "")
	var s seen
	if resp.StatusCode == 200 {
		if err := json.Unmarshal([]byte(b), &s); err != nil {
			r.t.Fatalf("%v in %q", err, b)
		}
	}
	return resp.StatusCode, s
}

// until polls a condition.
// underLoad calls change so many times while four clients send a request, given in pieces, over kept connections; after
// each change it waits for an answer. wrong says what is wrong with an answer.
func (r *rig) underLoad(changes int, pieces []string, wrong func(*http.Response, string) string, change func(i int)) {
	r.t.Helper()
	stop := make(chan struct{})
	var answers atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			c, err := net.Dial("tcp", r.tcp())
			if err != nil {
				r.t.Error(err)
				return
			}
			defer c.Close()
			for in := bufio.NewReader(c); ; answers.Add(1) {
				select {
				case <-stop:
					return
				default:
				}
				for _, piece := range pieces {
					_, _ = io.WriteString(c, piece) // a failure shows in the answer
				}
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					r.t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				if text := wrong(resp, string(body)); err != nil || text != "" {
					r.t.Errorf("%s: %s, %v", resp.Status, text, err)
					return
				}
			}
		})
	}
	for i := range changes {
		if r.t.Failed() {
			break
		}
		change(i)
		before := answers.Load()
		until(r.t, "requests go on", func() bool { return answers.Load() > before || r.t.Failed() })
	}
	close(stop)
	all.Wait()
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// authority signs certificates.
type authority struct {
	own tls.Certificate
	pem string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	own := certtest.New(t, x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true}, nil)
	crt, _ := certtest.PEM(t, own)
	return &authority{own, crt}
}

func (a *authority) pool() *x509.CertPool { return certtest.Pool(a.own) }

// issue signs a certificate for names, or URIs.
func (a *authority) issue(t *testing.T, key string, names ...string) route.Certificate {
	t.Helper()
	template := x509.Certificate{Subject: pkix.Name{CommonName: key}}
	for _, n := range names {
		if u, err := url.Parse(n); err == nil && u.Scheme != "" {
			template.URIs = append(template.URIs, u)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	chain, private := certtest.PEM(t, certtest.New(t, template, &a.own))
	return route.Certificate{Key: key, Chain: chain, PrivateKey: private}
}

func prefixes(in ...string) (out []netip.Prefix) {
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
