// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// clientOf makes a client's configuration with a certificate, or none.
func clientOf(t *testing.T, ca *authority, name string) *tls.Config {
	if ca == nil {
		return &tls.Config{}
	}
	c := ca.issue(t, name)
	pair, err := tls.X509KeyPair([]byte(c.Chain), []byte(c.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	// Shown whatever the server says that it accepts.
	return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
}

func TestClientValidation(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	e := newEcho(t, "e")
	for _, c := range []struct {
		name                  string
		v                     route.ClientValidation
		good, none, untrusted int // 0: no connection
		verify                [3]string
	}{
		{"handshake", route.ClientValidation{}, 200, 0, 0, [3]string{}},
		{"optional handshake", route.ClientValidation{Optional: true}, 200, 200, 0, [3]string{}},
		{"told", route.ClientValidation{Headers: true, Pass: true}, 200, 400, 400, [3]string{"SUCCESS"}},
		{"optional", route.ClientValidation{Headers: true, Optional: true}, 200, 200, 400, [3]string{"SUCCESS", "NONE"}},
		{"fallback", route.ClientValidation{Headers: true, AllowInsecureFallback: true}, 200, 200, 200,
			[3]string{"SUCCESS", "NONE", "FAILED:x509: "}},
		{"error page", route.ClientValidation{ErrorPage: "https://help.example.com/cert"}, 200, 302, 302, [3]string{}},
		{"subject", route.ClientValidation{Subject: "^CN=good$"}, 200, 400, 400, [3]string{}},
		{"other subject", route.ClientValidation{Subject: "^CN=boss$"}, 403, 400, 400, [3]string{}},
		{"subject, if any", route.ClientValidation{Subject: "^CN=good$", Optional: true}, 200, 403, 400, [3]string{}},
	} {
		u := secure(t, ca, e.addr(), "a.example.com")
		v := c.v
		v.CAs = ca.pem
		u.Listeners[0].TLS.Client = &v
		r := start(t, u)
		for i, client := range []*tls.Config{clientOf(t, ca, "good"), clientOf(t, nil, ""), clientOf(t, other, "bad")} {
			want := []int{c.good, c.none, c.untrusted}[i]
			for _, h2 := range []bool{false, true} {
				resp, body, err := r.askAs(ca, h2, client, http.Header{"Ssl-Client-Verify": {"SUCCESS"}, "Ssl-Client-Subject-Dn": {"CN=forged"}})
				if want == 0 {
					if err == nil {
						t.Errorf("%s, client %d: %d, want no connection", c.name, i, resp.StatusCode)
					}
					continue
				}
				if err != nil || resp.StatusCode != want {
					t.Errorf("%s, client %d, h2 %v: %v %v, want %d", c.name, i, h2, resp, err, want)
					continue
				}
				if want == 302 && resp.Header.Get("Location") != "https://help.example.com/cert" {
					t.Errorf("%s: %v", c.name, resp.Header)
				}
				if want != 200 || !v.Headers {
					continue
				}
				var s seen
				if err := json.Unmarshal([]byte(body), &s); err != nil {
					t.Fatal(err)
				}
				if got := s.Header.Values("Ssl-Client-Verify"); len(got) != 1 || !strings.HasPrefix(got[0], c.verify[i]) {
					t.Errorf("%s, client %d: verify %q, want %q", c.name, i, got, c.verify[i])
				}
				subject := []string{"CN=good", "", "CN=bad"}[i]
				if got := s.Header.Get("Ssl-Client-Subject-Dn"); got != subject {
					t.Errorf("%s, client %d: subject %q", c.name, i, got)
				}
				shown, err := url.QueryUnescape(s.Header.Get("Ssl-Client-Cert"))
				if block, _ := pem.Decode([]byte(shown)); err != nil || (block != nil) != (v.Pass && i != 1) {
					t.Errorf("%s, client %d: certificate %q", c.name, i, shown)
				}
			}
		}
	}
}

// A chain may have no more certificates between the client's and the CA's than the policy says.
func TestClientCertificateDepth(t *testing.T) {
	for links, want := range map[int]bool{2: true, 3: true, 4: false} {
		c := &clientCheck{conf: &route.ClientValidation{Depth: 1}}
		if got := c.shortEnough([][]*x509.Certificate{make([]*x509.Certificate, links)}); got != want {
			t.Errorf("%d certificates: %v", links, got)
		}
	}
}

// Without a usable CA, or with a broken expression, nobody's certificate is good.
func TestClientValidationFailsClosed(t *testing.T) {
	ca := newAuthority(t)
	e := newEcho(t, "e")
	for _, v := range []route.ClientValidation{{CAs: "nonsense", Headers: true}, {CAs: "nonsense"}, {CAs: ca.pem, Subject: "("}} {
		u := secure(t, ca, e.addr(), "a.example.com")
		u.Listeners[0].TLS.Client = &v
		u.Listeners[0].Addresses = loopback
		u.Complete = true
		r := start(t, secure(t, ca, e.addr(), "a.example.com"))
		if err := r.srv.Apply(&u); err == nil {
			t.Errorf("%+v: the mistake is not told", v)
		}
		if resp, _, err := r.askAs(ca, false, clientOf(t, ca, "good"), nil); err == nil && resp.StatusCode == 200 {
			t.Errorf("%+v: let in", v)
		}
	}
}

// A connection that is kept may do no more than a new one may: the check of clients that a listener has now counts, not that
// of the handshake. Who would be let in goes on.
func TestClientValidationOfKeptConnections(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	e := newEcho(t, "e")
	for _, h2 := range []bool{false, true} {
		r := start(t, secure(t, ca, e.addr(), "a.example.com"))
		keep := func(conf *tls.Config) func() int {
			conf.RootCAs, conf.ServerName = ca.pool(), "a.example.com"
			tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: h2, MaxConnsPerHost: 1,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return net.Dial("tcp", r.tcp()) }}
			if !h2 {
				tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
			}
			t.Cleanup(tr.CloseIdleConnections)
			client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
			return func() int {
				resp, err := client.Get("https://a.example.com/")
				if err != nil { // of a new connection
					return 0
				}
				defer resp.Body.Close()
				_, _ = io.Copy(io.Discard, resp.Body)
				return resp.StatusCode
			}
		}
		check := func(v *route.ClientValidation) {
			t.Helper()
			conf := *r.update.Listeners[0].TLS
			conf.Client = v
			r.update.Listeners[0].TLS = &conf
			r.apply()
		}
		bare, before := keep(&tls.Config{}), keep(&tls.Config{})
		if bare() != 200 || before() != 200 {
			t.Fatal("not served without a check")
		}
		check(&route.ClientValidation{CAs: ca.pem})
		if got := bare(); got != 421 {
			t.Errorf("h2 %t: without a certificate: %d", h2, got)
		}
		known := keep(clientOf(t, ca, "known"))
		if got := known(); got != 200 {
			t.Errorf("h2 %t: with a certificate: %d", h2, got)
		}
		check(&route.ClientValidation{CAs: ca.pem + other.pem})
		if got := known(); got != 200 {
			t.Errorf("h2 %t: with a certificate of one CA, when there is another beside it: %d", h2, got)
		}
		check(&route.ClientValidation{CAs: other.pem})
		if got := known(); got != 421 {
			t.Errorf("h2 %t: with a certificate of a CA that is trusted no more: %d", h2, got)
		}
		check(&route.ClientValidation{CAs: ca.pem, Headers: true})
		if got := before(); got != 400 {
			t.Errorf("h2 %t: without a certificate, where requests are refused: %d", h2, got)
		}
	}
}
