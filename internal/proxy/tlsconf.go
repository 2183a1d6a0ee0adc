// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// listenerTLS is how a listener ends TLS.
type listenerTLS struct {
	conf   *tls.Config
	epoch  int          // of its session ticket keys; guarded by ticketSecrets
	client *clientCheck // nil: no client certificate is asked for
	// stapled is until when the staples are good; zero: there are none that end.
	stapled time.Time
}

func newListenerTLS(l *route.Listener, certs map[string]route.Certificate) (*listenerTLS, error) {
	c := l.TLS
	fault := func(err error) error { return fmt.Errorf("tls: %w", err) }
	var errs []error
	var stapled time.Time
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: slices.Clone(c.ALPN)}
	if len(conf.NextProtos) == 0 && l.Protocol == route.HTTPS {
		conf.NextProtos = []string{"h2", "http/1.1"}
	}
	for _, key := range c.Certificates {
		cert, ok := certs[key]
		if !ok {
			errs = append(errs, fault(fmt.Errorf("certificate %s is not there", key)))
			continue
		}
		pair, err := keyPair(&cert)
		if err != nil {
			errs = append(errs, fault(err))
			continue
		}
		conf.Certificates = append(conf.Certificates, pair)
		if end := stapleEnd(pair.OCSPStaple); !end.IsZero() && (stapled.IsZero() || end.Before(stapled)) {
			stapled = end
		}
	}
	var err error
	if conf.MinVersion, err = tlsVersion(c.MinVersion, tls.VersionTLS12); err != nil {
		errs = append(errs, fault(fmt.Errorf("minVersion: %w", err)))
	}
	if conf.MaxVersion, err = tlsVersion(c.MaxVersion, tls.VersionTLS13); err != nil {
		errs = append(errs, fault(fmt.Errorf("maxVersion: %w", err)))
	}
	for _, name := range c.CipherSuites {
		i := slices.IndexFunc(tls.CipherSuites(), func(s *tls.CipherSuite) bool { return s.Name == name })
		if i < 0 {
			errs = append(errs, fault(fmt.Errorf("cipherSuites: %s is unknown or known to be weak", name)))
			continue
		}
		conf.CipherSuites = append(conf.CipherSuites, tls.CipherSuites()[i].ID)
	}
	out := &listenerTLS{conf: conf, stapled: stapled}
	if c.Client != nil {
		if out.client, err = newClientCheck(c.Client); err != nil {
			errs = append(errs, fault(err))
		}
		out.client.apply(conf)
	}
	return out, errors.Join(errs...)
}

func tlsVersion(s string, unset uint16) (uint16, error) {
	switch s {
	case "":
		return unset, nil
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return tls.VersionTLS13, fmt.Errorf("%q is not one of 1.2, 1.3", s) // the strictest, rather than none
}

func keyPair(c *route.Certificate) (tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(c.Chain), []byte(c.PrivateKey))
	if err != nil {
		return pair, fmt.Errorf("certificate %s: %w", c.Key, err)
	}
	if end := stapleEnd(c.OCSP); end.IsZero() || time.Now().Before(end) { // clients refuse an old one, and do without one
		pair.OCSPStaple = c.OCSP
	}
	return pair, nil
}

// stapleEnd is until when clients believe an OCSP response; zero is for ever.
func stapleEnd(response []byte) time.Time {
	if len(response) == 0 {
		return time.Time{}
	}
	s, err := route.ReadStaple(response)
	if err != nil { // what it says is for clients to judge
		return time.Time{}
	}
	return s.NextUpdate
}

// expireStaples takes staples that are too old away from the listeners that have them. It tells whether there were any.
func (t *tables) expireStaples(now time.Time) bool {
	ch := touched{hosts: map[*listener]map[string]bool{}, certs: map[string]bool{}}
	for _, l := range t.listeners {
		if l.tls != nil && !l.tls.stapled.IsZero() && !now.Before(l.tls.stapled) {
			for _, key := range l.conf.TLS.Certificates {
				ch.certs[key] = true
			}
		}
	}
	t.renewCertificates(&ch, now)
	return ch.ports
}

// backendTLS makes the client side's configuration from a BackendTLSPolicy.
func (t *tables) backendTLS(b *route.Backend) (*tls.Config, error) {
	c := b.TLS
	if c == nil {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, ClientSessionCache: tls.NewLRUClientSessionCache(256)}
	if b.Protocol == route.HTTP2 {
		conf.NextProtos = []string{"h2"}
	}
	if c.ClientCertificate != "" {
		cert, ok := t.certs[c.ClientCertificate]
		if !ok {
			return nil, fmt.Errorf("backend %s: client certificate %s is not there", b.Key, c.ClientCertificate)
		}
		pair, err := keyPair(&cert)
		if err != nil {
			return nil, fmt.Errorf("backend %s: %w", b.Key, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	if c.Insecure {
		conf.InsecureSkipVerify = true
		return conf, nil
	}
	if c.CAs != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(c.CAs)) {
			return nil, fmt.Errorf("backend %s: tls.cas holds no certificate", b.Key)
		}
	}
	if len(c.SubjectAltNames) > 0 {
		// crypto/tls would check ServerName; the policy's names take its place, the chain is checked as ever.
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = func(s tls.ConnectionState) error { return verifyNames(&s, conf.RootCAs, c.SubjectAltNames) }
	}
	return conf, nil
}

func verifyNames(s *tls.ConnectionState, roots *x509.CertPool, names []route.SubjectAltName) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the endpoint has no certificate")
	}
	leaf := s.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	for _, n := range names {
		if n.Hostname != "" && leaf.VerifyHostname(n.Hostname) == nil {
			return nil
		}
		if n.URI != "" && slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return u.String() == n.URI }) {
			return nil
		}
	}
	return errors.New("the endpoint's certificate has none of the names that the policy asks for")
}

var errNoListener = errors.New("no listener has this server name")

// serveTLS ends TLS, or passes it through, as the listener that the server name chooses says.
func (s *Server) serveTLS(c net.Conn, pe *peer, t *portTable) {
	_ = c.SetDeadline(time.Now().Add(s.conf.HeadTimeout))
	if t.passthrough {
		hello, name, err := readHello(c)
		if err != nil {
			s.stats.handshakes.Add(1)
			c.Close()
			return
		}
		l := t.find(name)
		if l == nil { // as a backend that nobody routes to: without a word of TLS
			s.stats.handshakes.Add(1)
			c.Close()
			return
		}
		c = &transport{Conn: c, ahead: hello}
		if l.tls == nil {
			pe.describe(l)
			_ = c.SetDeadline(time.Time{})
			s.serveStream(c, pe, l, name)
			return
		}
	}
	if _, ok := c.(*transport); !ok {
		c = &transport{Conn: c}
	}
	tc := tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		l := t.find(strings.ToLower(h.ServerName))
		if l == nil || l.tls == nil || len(l.tls.conf.Certificates) == 0 {
			return nil, errNoListener
		}
		s.tickets.seal(l)
		return l.tls.conf, nil
	}})
	if err := tc.Handshake(); err != nil {
		s.stats.handshakes.Add(1)
		c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	state := tc.ConnectionState()
	l := t.find(strings.ToLower(state.ServerName))
	pe.tls, pe.sni, pe.scheme = &state, l, "https"
	pe.client = l.tls.client.examine(&state)
	pe.describe(l)
	switch {
	case l.conf.Protocol == route.TLS:
		s.serveStream(tc, pe, l, strings.ToLower(state.ServerName))
	case state.NegotiatedProtocol == "h2":
		s.serveH2(newWire(tc), pe)
	default:
		s.serveH1(tc, pe)
	}
}

// maxHello is the most bytes of a ClientHello with what comes along.
const maxHello = 64 << 10

// readHello reads a ClientHello without answering it: what it read, and the server name in lower case. crypto/tls does
// the parsing, on a connection that takes no answer.
func readHello(c net.Conn) (hello []byte, name string, err error) {
	r := &helloReader{Conn: c, src: io.LimitReader(c, maxHello)}
	found := false
	err = tls.Server(r, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		found, name = true, strings.ToLower(h.ServerName)
		return nil, errNoListener
	}}).HandshakeContext(context.Background())
	if !found {
		return nil, "", err
	}
	return r.read.Bytes(), name, nil
}

// helloReader records what is read and drops what is written.
type helloReader struct {
	net.Conn
	src  io.Reader
	read bytes.Buffer
}

func (r *helloReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	r.read.Write(p[:n])
	return n, err
}

func (r *helloReader) Write(p []byte) (int, error) { return len(p), nil }
func (r *helloReader) Close() error                { return nil }

// SetDeadline and SetWriteDeadline leave the connection's own alone.
func (r *helloReader) SetDeadline(time.Time) error      { return nil }
func (r *helloReader) SetWriteDeadline(time.Time) error { return nil }
