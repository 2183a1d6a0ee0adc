// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// A listener that can't be served is told of with every update until it can be.
func TestUnservedListeners(t *testing.T) {
	r := start(t, simple())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	unserved := func(u route.Update) map[string]bool {
		out := map[string]bool{}
		if all, ok := r.srv.Apply(&u).(interface{ Unwrap() []error }); ok {
			for _, err := range all.Unwrap() {
				if more, ok := err.(interface{ Unwrap() []error }); ok {
					for _, err := range more.Unwrap() {
						if l, ok := errors.AsType[*route.ListenerError](err); ok {
							out[l.Listener] = true
						}
					}
				}
			}
		}
		return out
	}
	check := func(when string, got map[string]bool, want ...string) {
		t.Helper()
		ok := len(got) == len(want)
		for _, w := range want {
			ok = ok && got[w]
		}
		if !ok {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	check("two that can't be served", unserved(route.Update{Listeners: []route.Listener{
		{Key: "taken", Protocol: route.HTTP, Addresses: loopback, Port: port},
		{Key: "tls", Protocol: route.HTTPS, Addresses: loopback, TLS: &route.ListenerTLS{Certificates: []string{"gone"}}},
	}}), "taken", "tls")
	check("an update about something else", unserved(route.Update{Endpoints: []route.EndpointSet{{Key: "other"}}}), "taken", "tls")
	taken.Close()
	check("the port is free", unserved(route.Update{Endpoints: []route.EndpointSet{{Key: "another"}}}), "tls")
	check("what it lacks is removed", unserved(route.Update{Removed: []route.Ref{{Kind: route.KindListener, Key: "tls"}}}))
}
