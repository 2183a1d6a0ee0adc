// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"io"
	"sync/atomic"
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
			r.srv.tickets.rotate(nil, time.Now().Add(time.Duration(i+1)*ticketRotation))
			if !resumed("a.example.com") {
				t.Errorf("%x: rotation %d ends sessions", version, i)
			}
		}
		for i := range ticketEpochs {
			r.srv.tickets.rotate(nil, time.Now().Add(time.Duration(ticketEpochs+i+1)*ticketRotation))
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

// With secrets that replicas share, a client's session goes on at any of them, also when their clocks differ; not with
// secrets that have gone, and not at a replica that has others.
func TestSharedSessionTickets(t *testing.T) {
	ca := newAuthority(t)
	u := secure(t, ca, newEcho(t, "one").addr(), "a.example.com")
	begin := time.Now().Add(-time.Minute)
	secret := func(n byte, from time.Time) TicketSecret { return TicketSecret{From: from, Secret: [32]byte{n}} }
	var shared atomic.Pointer[[]TicketSecret]
	set := func(all ...TicketSecret) { shared.Store(&all) }
	set(secret(2, begin.Add(time.Hour)), secret(1, begin))
	conf := Config{TicketSecrets: func() []TicketSecret { return *shared.Load() }}
	one, two, alone := start(t, u, conf), start(t, u, conf), start(t, u)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		set(secret(2, begin.Add(time.Hour)), secret(1, begin))
		one.srv.rotateTickets(begin)
		two.srv.rotateTickets(begin)
		cache := tls.NewLRUClientSessionCache(8)
		resumed := func(r *rig) bool {
			t.Helper()
			c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: "a.example.com", ClientSessionCache: cache, MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example.com\r\nConnection: close\r\n\r\n")
			_, _ = io.ReadAll(c) // tickets come with the first data
			return c.ConnectionState().DidResume
		}
		if resumed(one) || !resumed(two) || !resumed(one) {
			t.Errorf("%x: a session does not go on at the other replica", version)
		}
		one.srv.rotateTickets(begin.Add(2 * time.Hour)) // its clock is ahead
		if !resumed(one) || !resumed(two) || !resumed(one) {
			t.Errorf("%x: a session does not go on where the clocks differ", version)
		}
		set(secret(3, begin))
		two.srv.rotateTickets(begin)
		if resumed(two) {
			t.Errorf("%x: a secret that has gone still opens", version)
		}
		if resumed(alone) {
			t.Errorf("%x: secrets of others open", version)
		}
		if resumed(one) {
			t.Errorf("%x: a session of a server that has secrets of its own", version)
		}
		set()
		two.srv.rotateTickets(begin)
		if resumed(two) || !resumed(two) {
			t.Errorf("%x: without shared secrets there are no sessions", version)
		}
	}
}
