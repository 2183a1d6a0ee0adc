// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/route"
)

// socket is what listeners share or fight for.
type socket struct {
	port uint16
	udp  bool
}

func (l *listener) socket() socket { return socket{l.port, l.protocol == route.UDP} }

// claims are the listeners that have sockets, counted by what they exclude.
type claims map[socket]*claim

type claim struct {
	tcp, udp, http, tls int            // listeners of protocols TCP, UDP, HTTP, and HTTPS or TLS
	hosts               map[string]int // of HTTP, HTTPS and TLS
}

func (c claims) add(l *listener) {
	k := c[l.socket()]
	if k == nil {
		k = &claim{hosts: map[string]int{}}
		c[l.socket()] = k
	}
	switch l.protocol {
	case route.TCP:
		k.tcp++
	case route.UDP:
		k.udp++
	case route.HTTP:
		k.http++
		k.hosts[l.hostname]++
	default:
		k.tls++
		k.hosts[l.hostname]++
	}
}

// conflict tells whether a listener goes with those that have claims; self says that its own is among them.
func (c claims) conflict(l *listener, self bool) verdict {
	k := c[l.socket()]
	if k == nil {
		return verdict{ok: true}
	}
	own := 0
	if self {
		own = 1
	}
	protocols := func() verdict {
		return no(gwv1.ListenerReasonProtocolConflict, fmt.Sprintf("port %d: a listener of protocol %s can't share it with %s", l.port, l.protocol, k.describe(l, own)))
	}
	switch l.protocol {
	case route.UDP:
		if k.udp > own {
			return protocols()
		}
		return verdict{ok: true}
	case route.TCP:
		if k.tcp > own || k.http+k.tls > 0 {
			return protocols()
		}
		return verdict{ok: true}
	case route.HTTP:
		if k.tcp+k.tls > 0 {
			return protocols()
		}
	default:
		if k.tcp+k.http > 0 {
			return protocols()
		}
	}
	if k.hosts[l.hostname] > own {
		host := l.hostname
		if host == "" {
			host = "(any)"
		}
		return no(gwv1.ListenerReasonHostnameConflict, fmt.Sprintf("port %d: another listener has hostname %s as well", l.port, host))
	}
	return verdict{ok: true}
}

func (k *claim) describe(l *listener, own int) string {
	var out []string
	for _, p := range []struct {
		name string
		n    int
		same bool
	}{
		{"TCP", k.tcp, l.protocol == route.TCP}, {"UDP", k.udp, l.protocol == route.UDP}, {"HTTP", k.http, l.protocol == route.HTTP},
		{"HTTPS or TLS", k.tls, l.protocol == route.HTTPS || l.protocol == route.TLS},
	} {
		if n := p.n; n > 0 && (!p.same || n > own) {
			out = append(out, p.name)
		}
	}
	return "one of protocol " + strings.Join(out, ", ")
}

// settle finds the conflicts of a group of listeners, which is a Gateway's own or a ListenerSet's, with those that come
// before it and among themselves. Those before win; in a group nobody does. The claims of those that have none are
// added; claim adds all of them, so that nobody later gets what the group fights for.
func (c claims) settle(group []*listener, claim bool) {
	among := claims{}
	var open []*listener
	for _, l := range group {
		if !l.accepted.ok {
			continue
		}
		if l.conflict = c.conflict(l, false); l.conflict.ok {
			among.add(l)
			open = append(open, l)
		}
	}
	for _, l := range open {
		l.conflict = among.conflict(l, true)
		if l.conflict.ok || claim {
			c.add(l)
		}
	}
	for _, l := range group {
		if !l.conflict.ok {
			l.accepted = l.conflict
		}
	}
}

// unbindable finds listeners that pods would bind where they bind another port of the Gateway (see BindPort). Of all, in
// their order of precedence, the first one stays.
func unbindable(all []*listener) {
	taken := map[socket]uint16{}
	for _, l := range all {
		if !l.accepted.ok {
			continue
		}
		bound := socket{BindPort(l.port), l.protocol == route.UDP}
		if other := taken[bound]; other != 0 && other != l.port {
			why := fmt.Sprintf("port %d is where the gateway's pods bind port %d", l.port, other)
			if l.port != bound.port {
				why = fmt.Sprintf("port %d would be bound at %d, a port of another listener that comes first", l.port, other)
			}
			l.accepted = no(gwv1.ListenerReasonPortUnavailable, why+": use another")
			continue
		}
		taken[bound] = l.port
	}
}

// findOverlaps marks the TLS listeners of one port whose hostnames have hosts in common.
func findOverlaps(all []*listener) {
	byPort := map[uint16][]*listener{}
	for _, l := range all {
		if l.served && (l.protocol == route.HTTPS || l.protocol == route.TLS) {
			byPort[l.port] = append(byPort[l.port], l)
		}
	}
	for _, ls := range byPort {
		byHost := map[string]*listener{}
		for _, l := range ls {
			byHost[l.hostname] = l
		}
		mark := func(wide string, l *listener) {
			if o := byHost[wide]; o != nil && o != l {
				o.overlaps, l.overlaps = true, true
			}
		}
		for _, l := range ls {
			if l.hostname == "" {
				continue
			}
			mark("", l)
			for domain := range parents(strings.TrimPrefix(l.hostname, "*.")) {
				mark("*."+domain, l)
			}
		}
	}
}
