// SPDX-License-Identifier: Apache-2.0

// Package outside is what the world beyond a lab's cluster offers: a resolver for pods and for the cluster's own DNS
// to forward to, and an HTTP proxy through which the lab's CRI servers reach image registries.
//
// The caller decides in which network namespace they listen: sockets are made on the calling thread. It imports a
// DNS library and the standard library.
package outside

import (
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/weft-net/weft/lab/forward"
)

// Zone is names (lower case, without a final dot) and their addresses. A name's subdomains have its addresses too.
type Zone map[string][]netip.Addr

const ttl = 5 // seconds

// ServeDNS answers for the zone on port 53 of the address, over UDP and TCP, until the process ends. Names that the
// zone lacks don't exist.
func ServeDNS(addr netip.Addr, zone Zone) error {
	at := netip.AddrPortFrom(addr, 53).String()
	packets, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	streams, err := net.Listen("tcp", at)
	if err != nil {
		packets.Close()
		return err
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: zone}, {Listener: streams, Handler: zone}} {
		go func() {
			if err := server.ActivateAndServe(); err != nil {
				slog.Error("resolver on outside ended", "address", at, "error", err)
			}
		}()
	}
	return nil
}

// ServeDNS answers one query (it implements dns.Handler).
func (z Zone) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(query)
	answer.Authoritative, answer.RecursionAvailable = true, true
	if len(query.Question) == 1 {
		z.resolve(answer, query.Question[0])
	}
	w.WriteMsg(answer) // a client that is gone asks again, or doesn't
}

func (z Zone) resolve(answer *dns.Msg, q dns.Question) {
	addrs, exists := z.find(strings.ToLower(strings.TrimSuffix(q.Name, ".")))
	head := func(kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
	}
	for _, a := range addrs {
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			answer.Answer = append(answer.Answer, &dns.A{Hdr: head(dns.TypeA), A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			answer.Answer = append(answer.Answer, &dns.AAAA{Hdr: head(dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	if len(answer.Answer) > 0 {
		return
	}
	if !exists {
		answer.Rcode = dns.RcodeNameError
	}
	// Without an SOA a resolver may not cache that there is nothing (RFC 2308).
	answer.Ns = append(answer.Ns, &dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "outside.lab.", Mbox: "nobody.outside.lab.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	})
}

// find looks a name up, or the closest of its parents.
func (z Zone) find(name string) ([]netip.Addr, bool) {
	for name != "" {
		if addrs, ok := z[name]; ok {
			return addrs, true
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return nil, false
}

// Host is the name by which the proxy reaches this machine's own loopback. Registries of that suffix are spoken to
// without TLS, as those on a loopback are.
const Host = "host.localhost"

// ServeProxy is an HTTP proxy on the listener (CONNECT, and plain requests in absolute form), reaching the world with
// dial. Clients must give the password: who can reach the listener may be anybody in the lab. It serves until the
// listener is closed.
func ServeProxy(l net.Listener, dial forward.Dialer, password string) {
	toHost := func(ctx context.Context, network, address string) (net.Conn, error) {
		if name, port, err := net.SplitHostPort(address); err == nil && name == Host {
			address = net.JoinHostPort("127.0.0.1", port)
		}
		return dial(ctx, network, address)
	}
	p := &proxy{dial: toHost, password: password, transport: &http.Transport{
		DialContext:           toHost,
		ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout:       30 * time.Second,
	}}
	server := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	if err := server.Serve(l); err != nil {
		slog.Info("proxy on outside ended", "error", err)
	}
}

type proxy struct {
	dial      forward.Dialer
	password  string
	transport *http.Transport
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !p.allowed(r.Header.Get("Proxy-Authorization")) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="image pulls"`)
		http.Error(w, "this proxy is for the lab's image pulls", http.StatusProxyAuthRequired)
		return
	}
	var err error
	switch {
	case r.Method == http.MethodConnect:
		err = p.tunnel(w, r)
	case r.URL.IsAbs():
		err = p.fetch(w, r)
	default:
		err = fmt.Errorf("%s is no proxy request", r.URL)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
}

// allowed checks a Proxy-Authorization header (RFC 9110, section 11.7.2; RFC 7617).
func (p *proxy) allowed(header string) bool {
	r := http.Request{Header: http.Header{"Authorization": {header}}}
	_, password, ok := r.BasicAuth()
	return ok && subtle.ConstantTimeCompare([]byte(password), []byte(p.password)) == 1
}

func (p *proxy) tunnel(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	far, err := p.dial(ctx, "tcp", r.Host)
	if err != nil {
		return err
	}
	near, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		far.Close()
		return err
	}
	go func() {
		defer near.Close()
		defer far.Close()
		if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		if n := buffered.Reader.Buffered(); n > 0 {
			if _, err := io.CopyN(far, buffered, int64(n)); err != nil {
				return
			}
		}
		forward.Join(near, far)
	}()
	return nil
}

func (p *proxy) fetch(w http.ResponseWriter, r *http.Request) error {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.Header.Del("Proxy-Connection")
	out.Header.Del("Proxy-Authorization")
	resp, err := p.transport.RoundTrip(out)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body) // the status is out: a broken body shows as a short one
	return nil
}
