// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

// Question is a request to be explained.
type Question struct {
	Method  string
	URL     *url.URL
	Headers map[string]string // names in lower case
}

// Lookup implements route.Lookup.
func (q Question) Lookup(name string) (string, bool) {
	v, ok := q.Headers[name]
	return v, ok
}

// authority is the request's Host field.
func (q Question) authority() string {
	if h, ok := q.Headers["host"]; ok {
		return h
	}
	return q.URL.Host
}

// Explain writes which listener, hostname, route and rule the request gets, and why others do not, by the functions
// that the proxy decides with. found says whether a route wins.
func Explain(out io.Writer, u *route.Update, q Question) (found bool, err error) {
	port, err := portOf(q.URL)
	if err != nil {
		return false, err
	}
	host := proxy.HostOf(q.authority())
	listener := listenerOf(u, q.URL.Scheme, host, port)
	if listener == nil {
		fmt.Fprintf(out, "404: no %s listener on port %d has host %s\n", strings.ToUpper(q.URL.Scheme), port, host)
		return false, nil
	}
	if q.URL.Scheme == "https" { // the client names the URL's host in its handshake, whatever the Host field says
		if by := listenerOf(u, q.URL.Scheme, proxy.HostOf(q.URL.Host), port); by == nil || by.Key != listener.Key {
			fmt.Fprintf(out, "421: the connection is made to host %s, which is not host %s's listener\n", proxy.HostOf(q.URL.Host), host)
			return false, nil
		}
	}
	fmt.Fprintf(out, "listener %s\n", listener.Key)
	explainFilters(out, listener.Filters)
	trial, err := proxy.NewTrial(u)
	if err != nil {
		fmt.Fprintf(out, "note: %v\n", err)
	}
	asked := q.URL.EscapedPath()
	if q.URL.Opaque != "" {
		asked = q.URL.Opaque
	}
	d := trial.Decide(proxy.Trying{Listener: listener.Key, Method: q.Method, Authority: q.authority(), Path: asked, Query: q.URL.RawQuery, Fields: q.Headers})
	if d.Path != asked && asked != "" {
		fmt.Fprintf(out, "path %s is read as %s\n", asked, d.Path)
	}
	var policies []string // of the winner; later ones come before earlier ones
	explainHosts(out, u, listener, host, &route.Request{Method: q.Method, Path: d.Path, Query: q.URL.RawQuery, Header: q}, func(e *route.Entry) bool {
		wins := d.Entry != nil && e.Route.Key == d.Entry.Route.Key && e.Rule == d.Entry.Rule && e.Match == d.Entry.Match
		if wins {
			found, policies = true, slices.Concat(listener.Policies, e.Route.Policies, e.Route.Rules[e.Rule].Policies)
		}
		return wins
	})
	if !found {
		fmt.Fprintf(out, "%d: %s\n", d.Status, d.Reason)
	}
	explainPolicies(out, u, policies)
	return found, nil
}

// explainFilters writes what a listener's requests pass before a rule is looked for.
func explainFilters(out io.Writer, filters []route.Filter) {
	for i := range filters {
		fmt.Fprintf(out, "  before routing, %d: ", i)
		switch a := filters[i].ExternalAuth; {
		case a == nil:
			fmt.Fprintln(out, "500: the filter is of a kind that listeners don't have")
		case a.Invalid != "":
			fmt.Fprintf(out, "500: %s\n", a.Invalid)
		default:
			fmt.Fprintf(out, "asks %s; what it adds to the request is not known here\n", a.Backend)
		}
	}
}

// asked is whom a backend's requests are asked about.
func asked(b *route.WeightedBackend) string {
	for i := range b.Filters {
		switch a := b.Filters[i].ExternalAuth; {
		case a == nil:
		case a.Invalid != "":
			return ", but 500: " + a.Invalid
		default:
			return ", having asked " + a.Backend
		}
	}
	return ""
}

// listenerOf finds the listener of a scheme that has a host at a port, the gateway's own or that which clients know; nil
// if there is none.
func listenerOf(u *route.Update, scheme, host string, port uint16) (out *route.Listener) {
	var byHost route.Hosts[*route.Listener]
	for i := range u.Listeners {
		l := &u.Listeners[i]
		if l.Port == port || l.PublicPort == port {
			if l.Protocol == route.HTTP && scheme == "http" || l.Protocol == route.HTTPS && scheme == "https" {
				byHost.Set(l.Hostname, l)
			}
		}
	}
	byHost.Find(host, func(l *route.Listener) bool { out = l; return false })
	return out
}

// explainHosts writes what the rules of each hostname that the host may be looked for under make of the request, until wins
// says that one has won.
func explainHosts(out io.Writer, u *route.Update, listener *route.Listener, host string, req *route.Request, wins func(*route.Entry) bool) {
	entries := map[string][]*route.Entry{}
	for i := range u.Routes {
		es, errs := route.Entries(&u.Routes[i], func(int) any { return nil })
		for _, e := range errs {
			fmt.Fprintf(out, "note: %v\n", e)
		}
		for _, p := range u.Routes[i].Parents {
			if p.Listener == listener.Key {
				for _, h := range p.Hostnames {
					entries[strings.ToLower(h)] = append(entries[strings.ToLower(h)], es...)
				}
			}
		}
	}
	var hosts route.Hosts[string]
	for h := range entries {
		hosts.Set(h, h)
	}
	hosts.Find(host, func(h string) bool {
		name := h
		if name == "" {
			name = "(any)"
		}
		fmt.Fprintf(out, "  hostname %s\n", name)
		found := false
		for _, v := range route.NewHostTable(entries[h]).Explain(req) {
			mark, won := " ", wins(v.Entry)
			if won {
				mark, found = "*", true
			}
			r := v.Entry.Route.Rules[v.Entry.Rule]
			fmt.Fprintf(out, "  %s %s rule %d match %d: %s%s\n", mark, v.Entry.Route.Key, v.Entry.Rule, v.Entry.Match, v.Why, backends(&r, won))
		}
		return !found
	})
}

// explainPolicies writes which policies apply to a rule's requests, and which of them each field comes from.
func explainPolicies(out io.Writer, u *route.Update, keys []string) {
	if len(keys) == 0 {
		return
	}
	decides := map[string]string{} // field -> key
	fmt.Fprintln(out, "policies, the later before the earlier:")
	for _, key := range keys {
		i := slices.IndexFunc(u.Policies, func(p route.Policy) bool { return p.Key == key })
		if i < 0 {
			fmt.Fprintf(out, "  %s: 503: it is not there\n", key)
			continue
		}
		p := &u.Policies[i]
		if p.Invalid != "" {
			fmt.Fprintf(out, "  %s: 503: %s\n", key, p.Invalid)
			continue
		}
		fields := p.Fields()
		fmt.Fprintf(out, "  %s: %s\n", key, strings.Join(fields, ", "))
		for _, f := range fields {
			decides[f] = key
		}
	}
	for _, f := range slices.Sorted(maps.Keys(decides)) {
		b, err := json.Marshal(fieldOf(u, decides[f], f))
		if err != nil {
			b = []byte(err.Error())
		}
		fmt.Fprintf(out, "  %s of %s: %s\n", f, decides[f], b)
	}
}

// fieldOf gives the value of a policy's field, without secrets.
func fieldOf(u *route.Update, key, field string) any {
	p := u.Policies[slices.IndexFunc(u.Policies, func(p route.Policy) bool { return p.Key == key })]
	if field == "basicAuth" {
		users, _ := route.ParseHtpasswd(p.BasicAuth.Users)
		return fmt.Sprintf("realm %q, %d users", p.BasicAuth.Realm, len(users))
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err.Error()
	}
	return all[field]
}

func portOf(u *url.URL) (uint16, error) {
	switch p := u.Port(); {
	case p != "":
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("port %q is not a number up to 65535", p)
		}
		return uint16(n), nil
	case u.Scheme == "https":
		return 443, nil
	case u.Scheme == "http":
		return 80, nil
	}
	return 0, fmt.Errorf("scheme %q is not http or https", u.Scheme)
}

func backends(r *route.Rule, wins bool) string {
	if !wins {
		return ""
	}
	var names []string
	for i := range r.Backends {
		b := &r.Backends[i]
		names = append(names, fmt.Sprintf("%s (weight %d)%s", b.Backend, b.Weight, asked(b)))
	}
	for _, f := range r.Filters {
		if f.Redirect != nil {
			names = []string{"a redirect"}
		}
	}
	if r.Invalid != "" {
		names = []string{"500: " + r.Invalid}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return ", to 500: it has no backends"
	}
	return ", to " + strings.Join(names, ", ")
}
