// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/route"
)

// details are what an exchange has to remember when policies apply to it.
type details struct {
	client   netip.Addr // see exchange.source
	user     string     // who has logged in
	conns    *connectionLimit
	connsKey uint64
	added    []field // to the answer, whoever gives it
	cookies  []field // of external authentication, on good answers
	always   bool    // on all answers
	paging   bool    // an error page is being fetched
	groups   []int   // of the rule's expression, in asked.path
	began    int64   // the attempt under way, Unix nanoseconds
	subset   uint64  // the hash that chooses endpoints, once known
	hashed   bool
	held     int // bytes of the body that are held
	span     *span
}

// detail gives the exchange's details.
func (x *exchange) detail() *details {
	if x.more == nil {
		x.more = &details{}
	}
	return x.more
}

// asked is the request as it came, before rewrites.
type asked struct {
	path, query, authority string
}

// uri is the path and query as they came.
func (x *exchange) uri() string {
	if x.asked.query == "" {
		return x.asked.path
	}
	return x.asked.path + "?" + x.asked.query
}

// source is the address that the request came from: that of the other end of the connection, or when that is a trusted
// proxy the last address in X-Forwarded-For that is not one.
func (x *exchange) source() netip.Addr {
	if x.more != nil && x.more.client.IsValid() {
		return x.more.client
	}
	a := x.trace()
	if x.more != nil {
		x.more.client = a
	}
	return a
}

func (x *exchange) trace() netip.Addr {
	client := x.peer.remote.Addr()
	if !x.peer.forwarded || x.listener == nil {
		return client
	}
	// The field has the chain as it came, and the other end of the connection.
	chain, _ := x.Lookup("x-forwarded-for")
	for chain != "" {
		i := strings.LastIndexByte(chain, ',')
		a, ok := parseAddr(strings.TrimSpace(chain[i+1:]))
		if !ok {
			break // what is before it can't be believed
		}
		client = a
		if !within(x.listener.conf.TrustedProxies, a) {
			break
		}
		chain = chain[:max(i, 0)]
	}
	return client
}

// parseAddr reads an address that may have a port.
func parseAddr(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Value implements route.Values: what variables of templates are for this request.
func (x *exchange) Value(v route.Variable, name string, group int) string {
	switch v {
	case route.VarHost:
		return x.host
	case route.VarURI:
		return x.asked.path
	case route.VarArgs:
		return x.asked.query
	case route.VarIsArgs:
		if x.asked.query != "" {
			return "?"
		}
	case route.VarArg:
		return argument(x.asked.query, name)
	case route.VarRequestURI:
		return x.uri()
	case route.VarUnslashedURI:
		return strings.TrimSuffix(x.uri(), "/")
	case route.VarRemoteUser:
		if x.more != nil {
			return x.more.user
		}
	case route.VarEscapedURI:
		return url.QueryEscape(x.uri())
	case route.VarScheme:
		return x.scheme()
	case route.VarRequestMethod:
		return x.method
	case route.VarRemoteAddr:
		return x.source().String()
	case route.VarServerPort:
		return strconv.Itoa(int(x.listener.port()))
	case route.VarHeader:
		if name == "host" {
			return x.asked.authority
		}
		value, _ := x.Lookup(name)
		return value
	case route.VarCookie:
		header, _ := x.Lookup("cookie")
		value, _ := route.Cookie(header, name)
		return value
	case route.VarRequestID:
		value, _ := x.Lookup("x-request-id")
		return value
	case route.VarGroup:
		if x.entry == nil || x.entry.Regex() == nil {
			return ""
		}
		d := x.detail()
		if d.groups == nil {
			d.groups = x.entry.Regex().FindStringSubmatchIndex(x.asked.path)
		}
		return route.Group(x.asked.path, d.groups, group)
	case route.VarClientVerified:
		return x.shown.text()
	case route.VarClientSubject:
		return x.shown.dn()
	}
	return ""
}

// scheme is what the client spoke: to a trusted proxy before this one, or here.
func (x *exchange) scheme() string {
	if x.peer.forwarded {
		if proto, ok := x.Lookup("x-forwarded-proto"); ok && (proto == "http" || proto == "https") {
			return proto
		}
	}
	return x.peer.scheme
}

// port is that which the client has connected to, as far as it is known: a trusted proxy may say only the scheme.
func (x *exchange) port() uint16 {
	if x.peer.forwarded {
		if text, ok := x.Lookup("x-forwarded-port"); ok && text != string(x.peer.portText) { // else it may be our own
			if port, err := strconv.ParseUint(text, 10, 16); err == nil && port > 0 {
				return uint16(port)
			}
		}
		switch scheme := x.scheme(); {
		case scheme == x.peer.scheme:
		case scheme == "https":
			return 443
		default:
			return 80
		}
	}
	return x.listener.port()
}

// port is the one that clients connect to.
func (l *listener) port() uint16 {
	if l.conf.PublicPort != 0 {
		return l.conf.PublicPort
	}
	return l.conf.Port
}

// argument finds a query parameter, as it was sent.
func argument(query, name string) string {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if k, v, _ := strings.Cut(pair, "="); k == name {
			return v
		}
	}
	return ""
}
