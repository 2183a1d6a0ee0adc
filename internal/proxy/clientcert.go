// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// clientCheck is a route.ClientValidation made ready. Where nothing but valid certificates matters the handshake makes
// the check (GEP-91). Where requests are to be answered, or told to backends, it lets everybody in, and the requests of
// those whose certificate is missing or not valid are answered as ingress-nginx does.
type clientCheck struct {
	conf    *route.ClientValidation
	roots   *x509.CertPool
	subject *regexp.Regexp // nil: any
	lenient bool           // requests are answered, not handshakes refused
}

func newClientCheck(v *route.ClientValidation) (*clientCheck, error) {
	c := &clientCheck{conf: v, roots: x509.NewCertPool()}
	c.lenient = v.Headers || v.ErrorPage != "" || v.Subject != ""
	var errs []error
	if !c.roots.AppendCertsFromPEM([]byte(v.CAs)) && !v.AllowInsecureFallback {
		errs = append(errs, errors.New("client.cas holds no certificate: no client's is valid"))
	}
	if v.Subject != "" {
		var err error
		if c.subject, err = regexp.Compile(v.Subject); err != nil {
			errs = append(errs, fmt.Errorf("client.subject: %w: no client's certificate is valid", err))
			c.subject = regexp.MustCompile(`\z.`) // matches nothing
		}
	}
	return c, errors.Join(errs...)
}

// apply tells the handshake what to ask for and check.
func (c *clientCheck) apply(conf *tls.Config) {
	conf.ClientCAs = c.roots
	switch {
	case c.lenient || c.conf.AllowInsecureFallback:
		conf.ClientAuth = tls.RequestClientCert
	case c.conf.Optional:
		conf.ClientAuth = tls.VerifyClientCertIfGiven
	default:
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if c.conf.Depth > 0 && conf.ClientAuth != tls.RequestClientCert {
		conf.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) > 0 && !c.shortEnough(s.VerifiedChains) {
				return errDepth
			}
			return nil
		}
	}
}

var errDepth = errors.New("the certificate is too far from its CA")

func (c *clientCheck) shortEnough(chains [][]*x509.Certificate) bool {
	for _, chain := range chains {
		if len(chain)-2 <= c.conf.Depth {
			return true
		}
	}
	return false
}

// clientCertificate is what a connection's client has shown.
type clientCertificate struct {
	check           *clientCheck
	shown           bool
	err             error // why it is not valid
	subject, issuer string
	pem             string // escaped for a header
}

// examine looks at what the client of a connection has shown, when the listener's requests depend on it.
func (c *clientCheck) examine(s *tls.ConnectionState) *clientCertificate {
	if c == nil || !c.lenient {
		return nil
	}
	out := &clientCertificate{check: c}
	if len(s.PeerCertificates) == 0 {
		return out
	}
	leaf := s.PeerCertificates[0]
	out.shown, out.subject, out.issuer = true, leaf.Subject.String(), leaf.Issuer.String()
	if c.conf.Pass {
		out.pem = strings.ReplaceAll(url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))), "+", "%20") // as nginx escapes
	}
	out.err = c.verify(s)
	return out
}

// verify checks the certificate that a client has shown.
func (c *clientCheck) verify(s *tls.ConnectionState) error {
	opts := x509.VerifyOptions{Roots: c.roots, Intermediates: x509.NewCertPool(), CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, o := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(o)
	}
	chains, err := s.PeerCertificates[0].Verify(opts)
	if err == nil && c.conf.Depth > 0 && !c.shortEnough(chains) {
		err = errDepth
	}
	return err
}

// admits tells whether a handshake with the check would let the client of a connection in that was made without it.
func (c *clientCheck) admits(s *tls.ConnectionState) bool {
	switch {
	case c == nil || c.lenient || c.conf.AllowInsecureFallback:
		return true
	case len(s.PeerCertificates) == 0:
		return c.conf.Optional
	}
	return c.verify(s) == nil
}

// same tells whether the checks are the same.
func (c *clientCheck) same(as *clientCheck) bool {
	return c == as || c != nil && as != nil && *c.conf == *as.conf
}

// judgement is what a listener, as it has become since the handshake, makes of a connection's client.
type judgement struct {
	by       *listener
	admitted bool
	shown    *clientCertificate
}

// judge gives the judgement of a listener that is not the one of the handshake, or no longer the same: connections last, and
// what they may do must not outlast the check that let them in.
func (p *peer) judge(l *listener) *judgement {
	if j := p.judged.Load(); j != nil && j.by == l {
		return j
	}
	j := &judgement{by: l, admitted: true, shown: p.client}
	if l.conf.Key == p.sni.conf.Key && l.tls != nil && !l.tls.client.same(p.sni.tls.client) {
		j.admitted, j.shown = l.tls.client.admits(p.tls), l.tls.client.examine(p.tls)
	}
	p.judged.Store(j)
	return j
}

// text is nginx's $ssl_client_verify.
func (c *clientCertificate) text() string {
	switch {
	case c == nil || !c.shown:
		return "NONE"
	case c.err != nil:
		return "FAILED:" + c.err.Error()
	}
	return "SUCCESS"
}

func (c *clientCertificate) dn() string {
	if c == nil {
		return ""
	}
	return c.subject
}

// certified answers requests of clients whose certificate is missing or not valid; false when it has. Else it tells
// the backend what the client has shown.
func (x *exchange) certified() bool {
	c := x.shown
	v := c.check.conf
	valid := c.shown && c.err == nil
	if !valid && !v.AllowInsecureFallback && !(v.Optional && !c.shown) {
		if v.ErrorPage != "" {
			x.srv.stats.denied[deniedCertificate].Add(1)
			x.respond(http.StatusFound, "", []field{newField("Location", v.ErrorPage)}, nil)
			return false
		}
		x.deny(deniedCertificate, http.StatusBadRequest, "client certificate: "+c.text())
		return false
	}
	if c.check.subject != nil && !(valid && c.check.subject.MatchString(c.subject)) {
		x.deny(deniedCertificate, http.StatusForbidden, "client certificate: its subject is not one of those who may")
		return false
	}
	if v.Headers {
		for _, name := range []string{"ssl-client-cert", "ssl-client-verify", "ssl-client-subject-dn", "ssl-client-issuer-dn"} {
			x.dropField(name)
		}
		add := func(name, value string) {
			if value != "" {
				x.fields = append(x.fields, newField(name, value))
			}
		}
		add("ssl-client-verify", c.text())
		add("ssl-client-subject-dn", c.subject)
		add("ssl-client-issuer-dn", c.issuer)
		add("ssl-client-cert", c.pem)
	}
	return true
}
