// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"iter"
	"net/http"
	"net/netip"

	"github.com/weft-net/weft/internal/route"
)

// Firewall looks at requests before a backend gets them. It is called by many goroutines at a time.
type Firewall interface {
	// Limit is how many bytes of a body of that type are to be inspected; 0 leaves it alone.
	Limit(contentType string) int
	// Inspect gives the status to refuse the request with, and why; 0 lets it pass.
	Inspect(r *Inspected) (status int, reason string)
}

// Inspected is a request as a Firewall sees it. Nothing of it may be kept.
type Inspected struct {
	Method, URI, Protocol string // such as "GET", "/a?b=c", "HTTP/1.1"
	Host                  string
	Client                netip.Addr
	ClientPort            uint16
	Server                netip.AddrPort
	Headers               iter.Seq2[string, string]
	// Body is all of the body, or when it is Truncated its first bytes, up to the Limit.
	Body      []byte
	Truncated bool
}

// NewFirewall makes the Firewall of a policy.
type NewFirewall func(*route.WAF) (Firewall, error)

// inspect asks the policy's firewall; false when it has refused the request.
func (x *exchange) inspect(g *guards) bool {
	kind, _ := x.Lookup("content-type")
	limit := g.firewall.Limit(kind)
	if x.body != nil && !x.isWhole && limit > 0 {
		n := limit
		if x.length >= 0 {
			n = int(min(x.length, int64(limit)))
		}
		if !x.hold(n) {
			x.deny(deniedFirewall, http.StatusServiceUnavailable, "web application firewall: too many bodies to be inspected")
			return false
		}
	}
	var first []byte
	if limit > 0 {
		var ok bool
		if first, ok = x.peek(limit); !ok {
			return false
		}
	}
	protocol := "HTTP/1.1"
	if x.major == 2 {
		protocol = "HTTP/2.0"
	}
	status, reason := g.firewall.Inspect(&Inspected{
		Method: x.method, URI: x.uri(), Protocol: protocol, Host: x.host, Client: x.source(), ClientPort: x.peer.remote.Port(), Server: x.peer.local,
		Body: first, Truncated: limit > 0 && x.body != nil && !x.isWhole, Headers: func(yield func(string, string) bool) {
			if !yield("Host", x.asked.authority) {
				return
			}
			for i := range x.fields {
				if f := &x.fields[i]; f.id != fDropped && !yield(view(f.name), view(f.value)) {
					return
				}
			}
		},
	})
	if status == 0 {
		return true
	}
	if status < 400 || status > 599 {
		status = http.StatusForbidden
	}
	x.deny(deniedFirewall, status, "web application firewall: "+reason)
	return false
}

// peek reads up to limit bytes of the body ahead. It is false when the client broke off, or was answered.
func (x *exchange) peek(limit int) (first []byte, ok bool) {
	if x.body == nil {
		return nil, true
	}
	if x.length <= int64(limit) {
		if !x.takeBody(int64(limit)) {
			return nil, false
		}
		if x.isWhole {
			return x.whole, true
		}
		first = x.body.(*prefixBody).first
		return first[:min(len(first), limit)], true
	}
	if !x.proceed() {
		return nil, false
	}
	for len(first) < limit {
		p, err := x.body.next()
		if err != nil { // the end would have been a surprise as well: the length is known to be larger
			x.clientBroke(unexpected(err))
			return nil, false
		}
		first = append(first, p...)
	}
	x.body = &prefixBody{first: first, rest: x.body}
	return first[:limit], true
}
