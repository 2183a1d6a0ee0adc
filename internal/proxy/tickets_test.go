// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"io"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// A client's second handshake is a short one, also after a renewed certificate and the keys' rotation, until the keys
// are too old; and never with another listener's session, or when clients are checked otherwise than then.
func TestSessionTickets(t *testing.T) {
	ca := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := start(t, secure(t, ca, newEcho(t, "one").addr(), "a.example.com", "b.example.com"))
		cache := tls.NewLRUClientSessionCache(8)
		resumed := func(name string) bool {
			t.Helper()
			c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: name, ClientSessionCache: cache, MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+name+"\r\nConnection: close\r\n\r\n")
			_, _ = io.ReadAll(c) // tickets come with the first data
			return c.ConnectionState().DidResume
		}
		if resumed("a.example.com") || !resumed("a.example.com") {
			t.Errorf("%x: the second handshake is not a short one", version)
		}
		if resumed("b.example.com") {
			t.Errorf("%x: a session of another listener", version)
		}
		if err := r.srv.Apply(&route.Update{Certificates: []route.Certificate{ca.issue(t, "a.example.com", "a.example.com")}}); err != nil {
			t.Fatal(err)
		}
		if !resumed("a.example.com") {
			t.Errorf("%x: a renewed certificate ends sessions", version)
		}
		for i := range ticketEpochs {
			r.srv.tickets.rotate(time.Now().Add(time.Duration(i+1) * ticketRotation))
			if !resumed("a.example.com") {
				t.Errorf("%x: rotation %d ends sessions", version, i)
			}
		}
		for i := range ticketEpochs {
			r.srv.tickets.rotate(time.Now().Add(time.Duration(ticketEpochs+i+1) * ticketRotation))
		}
		if resumed("a.example.com") {
			t.Errorf("%x: an old key is still good", version)
		}
		l := r.update.Listeners[0]
		l.TLS = &route.ListenerTLS{Certificates: l.TLS.Certificates, Client: &route.ClientValidation{CAs: newAuthority(t).pem, AllowInsecureFallback: true}}
		if err := r.srv.Apply(&route.Update{Listeners: []route.Listener{l}}); err != nil {
			t.Fatal(err)
		}
		if resumed("a.example.com") {
			t.Errorf("%x: a session from before clients were checked", version)
		}
	}
}
