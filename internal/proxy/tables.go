// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// tables is what the proxy serves: the updates so far, compiled. Apply is for one goroutine at a time; what it
// publishes is read by all without locks.
type tables struct {
	mu        sync.Mutex
	revision  uint64
	listeners map[string]*listener
	routes    map[string]*compiledRoute
	backends  map[string]*backendCell
	sets      map[string][]route.Endpoint
	certs     map[string]route.Certificate
	policies  map[string]*policyCell
	usedBy    map[string]map[string]bool // endpoint set -> keys of backends

	ports map[portKey]*port

	newFirewall NewFirewall // nil: there is none
}

// backendCell is the place of a backend, so that rules need no change when the backend does. nil: there is none.
type backendCell struct {
	atomic.Pointer[backend]
	stats ruleStats
}

// listener is a route.Listener with the hosts that its routes have.
type listener struct {
	conf  route.Listener
	tls   *listenerTLS // nil where TLS does not end here
	fault error        // why TLS can't end here as the tables say; nil where it can
	hosts map[string]*hostCell
	// policies apply to all requests that come here; unrouted stands for the rule of those that no route has.
	policies []*policyCell
	unrouted *rule
	filters  []*externalAuth // before routing; nil: there are none
	byHost   *hostIndex      // of hosts, for requests
}

// hostCell is the place of one hostname's table.
type hostCell struct {
	name    string
	table   atomic.Pointer[route.HostTable]
	entries map[string][]*route.Entry // by route key
	// What table does not yet say: entries that are no longer, or newly, among entries.
	gone, fresh []*route.Entry
}

// put gives the host a route's entries in place of those that it had; none takes them away. publish makes it seen.
func (c *hostCell) put(key string, entries []*route.Entry) {
	old := c.entries[key]
	if len(old) == len(entries) && (len(old) == 0 || old[0] == entries[0]) {
		return
	}
	c.gone, c.fresh = append(c.gone, old...), append(c.fresh, entries...)
	if len(entries) == 0 {
		delete(c.entries, key)
	} else {
		c.entries[key] = entries
	}
}

// publish makes the table what the entries are. It tells whether it is the first one.
func (c *hostCell) publish() (first bool) {
	if len(c.gone) > 0 && len(c.fresh) > 0 { // what came and went meanwhile
		gone := make(map[*route.Entry]bool, len(c.gone))
		for _, e := range c.gone {
			gone[e] = true
		}
		c.fresh = slices.DeleteFunc(c.fresh, func(e *route.Entry) bool { return gone[e] })
	}
	table := c.table.Load()
	if first = table == nil; first {
		table = route.NewHostTable(nil)
	}
	c.table.Store(table.With(c.gone, c.fresh))
	c.gone, c.fresh = nil, nil
	return first
}

type compiledRoute struct {
	conf    *route.Route
	entries []*route.Entry
}

// portKey is a socket that the gateway binds.
type portKey struct {
	addr netip.Addr // invalid: all
	port uint16
	udp  bool
}

func (k portKey) network() string {
	if k.udp {
		return "udp"
	}
	return "tcp"
}

func (k portKey) String() string {
	if !k.addr.IsValid() {
		return ":" + strconv.Itoa(int(k.port))
	}
	return netip.AddrPortFrom(k.addr, k.port).String()
}

// portTable is the listeners of one socket.
type portTable struct {
	byHost      route.Hosts[*listener]
	protocol    route.Protocol // of any; HTTPS and TLS share a port
	passthrough bool           // some listener leaves TLS to its backend: hellos are read ahead
	proxy       bool           // a PROXY header comes first
	proxyFrom   []netip.Prefix // whose is believed; none: everybody's
	only        *listener      // the listener of TCP and UDP
}

// find gives the listener for a host.
func (p *portTable) find(host string) (found *listener) {
	p.byHost.Find(host, func(l *listener) bool { found = l; return false })
	return found
}

func newTables() *tables {
	return &tables{
		listeners: map[string]*listener{}, routes: map[string]*compiledRoute{}, backends: map[string]*backendCell{},
		sets: map[string][]route.Endpoint{}, certs: map[string]route.Certificate{}, policies: map[string]*policyCell{},
		usedBy: map[string]map[string]bool{}, ports: map[portKey]*port{},
	}
}

// touched collects what an update makes necessary.
type touched struct {
	hosts map[*listener]map[string]bool
	ports bool
	certs map[string]bool
	late  map[route.Ref]bool // what goes once all else is published
	errs  []error
}

// apply takes an update. What can't be compiled is told and does the least: an expression that is not valid matches
// nothing, a listener without certificate refuses handshakes.
func (t *tables) apply(u *route.Update, now time.Time) (portsChanged bool, err error) {
	ch := touched{hosts: map[*listener]map[string]bool{}, certs: map[string]bool{}, late: map[route.Ref]bool{}}
	removed := u.Removed
	if u.Complete {
		removed = t.absent(u)
	}
	var late []route.Ref
	for _, r := range removed {
		switch r.Kind {
		case route.KindListener, route.KindRoute, route.KindCertificate:
			t.remove(r, &ch)
		default: // others refer to it, until the new tables are published
			late = append(late, r)
			ch.late[r] = true
		}
	}
	if len(late) > 0 && !u.Complete {
		there := named(u)
		late = slices.DeleteFunc(late, func(r route.Ref) bool { return there[r] }) // brought again at once
	}
	for _, c := range u.Certificates {
		if old, ok := t.certs[c.Key]; !ok || !reflect.DeepEqual(old, c) {
			t.certs[c.Key] = c
			ch.certs[c.Key] = true
		}
	}
	for _, s := range u.Endpoints {
		if old, ok := t.sets[s.Key]; !ok || !reflect.DeepEqual(old, s.Endpoints) {
			t.setEndpoints(s.Key, s.Endpoints, now)
		}
	}
	for i := range u.Policies {
		t.setPolicy(u.Policies[i], &ch)
	}
	for i := range u.Backends {
		t.setBackend(u.Backends[i], now, &ch)
	}
	for i := range u.Listeners {
		t.setListener(u.Listeners[i], &ch)
	}
	for i := range u.Routes {
		t.setRoute(&u.Routes[i], &ch)
	}
	t.renewCertificates(&ch, now)
	t.publish(&ch)
	t.retire(late)
	t.revision = u.Revision
	return ch.ports, errors.Join(ch.errs...)
}

// absent lists what the tables hold and a complete update does not.
func (t *tables) absent(u *route.Update) (out []route.Ref) {
	there := named(u)
	for key, cell := range t.policies {
		if r := (route.Ref{Kind: route.KindPolicy, Key: key}); !there[r] && cell.Load() != nil {
			out = append(out, r)
		}
	}
	out = missing(out, t.listeners, route.KindListener, there)
	out = missing(out, t.routes, route.KindRoute, there)
	for key, cell := range t.backends {
		if r := (route.Ref{Kind: route.KindBackend, Key: key}); !there[r] && cell.Load() != nil {
			out = append(out, r)
		}
	}
	out = missing(out, t.sets, route.KindEndpointSet, there)
	return missing(out, t.certs, route.KindCertificate, there)
}

// named is what an update holds.
func named(u *route.Update) map[route.Ref]bool {
	out := map[route.Ref]bool{}
	for i := range u.Listeners {
		out[route.Ref{Kind: route.KindListener, Key: u.Listeners[i].Key}] = true
	}
	for i := range u.Routes {
		out[route.Ref{Kind: route.KindRoute, Key: u.Routes[i].Key}] = true
	}
	for i := range u.Backends {
		out[route.Ref{Kind: route.KindBackend, Key: u.Backends[i].Key}] = true
	}
	for i := range u.Endpoints {
		out[route.Ref{Kind: route.KindEndpointSet, Key: u.Endpoints[i].Key}] = true
	}
	for i := range u.Certificates {
		out[route.Ref{Kind: route.KindCertificate, Key: u.Certificates[i].Key}] = true
	}
	for i := range u.Policies {
		out[route.Ref{Kind: route.KindPolicy, Key: u.Policies[i].Key}] = true
	}
	return out
}

func missing[V any](out []route.Ref, m map[string]V, kind route.Kind, named map[route.Ref]bool) []route.Ref {
	for key := range m {
		if r := (route.Ref{Kind: kind, Key: key}); !named[r] {
			out = append(out, r)
		}
	}
	return out
}

// remove takes a listener, a route or a certificate away; see retire for the rest.
func (t *tables) remove(r route.Ref, ch *touched) {
	switch r.Kind {
	case route.KindListener:
		if _, ok := t.listeners[r.Key]; ok {
			delete(t.listeners, r.Key)
			ch.ports = true
		}
	case route.KindRoute:
		if c := t.routes[r.Key]; c != nil {
			t.detach(c, ch)
			delete(t.routes, r.Key)
		}
	case route.KindCertificate:
		delete(t.certs, r.Key)
		ch.certs[r.Key] = true
	}
}

func (t *tables) setEndpoints(key string, set []route.Endpoint, now time.Time) {
	t.sets[key] = set
	for b := range t.usedBy[key] {
		t.backends[b].Load().update(set, now)
	}
}

// cell gives the place of a backend, which may be empty.
func (t *tables) cell(key string) *backendCell {
	c := t.backends[key]
	if c == nil {
		c = &backendCell{}
		t.backends[key] = c
	}
	return c
}

func (t *tables) setBackend(conf route.Backend, now time.Time, ch *touched) {
	cell := t.cell(conf.Key)
	old := cell.Load()
	renewed := conf.TLS != nil && ch.certs[conf.TLS.ClientCertificate]
	if old != nil && reflect.DeepEqual(old.conf, conf) && !renewed {
		return
	}
	b := &backend{conf: conf}
	if b.tls, b.err = t.backendTLS(&conf); b.err != nil {
		ch.errs = append(ch.errs, b.err)
	}
	b.update(t.sets[conf.Endpoints], now)
	if old != nil {
		delete(t.usedBy[old.conf.Endpoints], conf.Key)
	}
	if t.usedBy[conf.Endpoints] == nil {
		t.usedBy[conf.Endpoints] = map[string]bool{}
	}
	t.usedBy[conf.Endpoints][conf.Key] = true
	cell.Store(b)
	if old != nil {
		old.close()
	}
}

func (t *tables) setListener(conf route.Listener, ch *touched) {
	conf.Hostname = strings.ToLower(conf.Hostname)
	old := t.listeners[conf.Key]
	if old != nil && reflect.DeepEqual(old.conf, conf) {
		return
	}
	l := &listener{conf: conf, hosts: map[string]*hostCell{}, byHost: newHostIndex(), policies: t.policyCells(conf.Policies), unrouted: &rule{conf: &route.Rule{}}}
	if old != nil { // its hosts go on
		l.hosts, l.byHost = old.hosts, old.byHost
	} else {
		for _, c := range t.routes {
			t.attach(c, conf.Key, l, ch)
		}
	}
	var err error
	if l.filters, err = t.listenerFilters(&conf); err != nil {
		ch.errs = append(ch.errs, err)
	}
	t.endTLS(l)
	t.listeners[conf.Key] = l
	ch.ports = true
}

// endTLS prepares what a listener needs to end TLS.
func (t *tables) endTLS(l *listener) {
	if l.conf.TLS != nil && !l.conf.TLS.Passthrough {
		l.tls, l.fault = newListenerTLS(&l.conf, t.certs)
	}
}

func (t *tables) setRoute(conf *route.Route, ch *touched) {
	old := t.routes[conf.Key]
	if old != nil {
		if reflect.DeepEqual(old.conf, conf) {
			return
		}
		t.detach(old, ch)
	}
	kept := *conf
	c := &compiledRoute{conf: &kept}
	var errs []error
	c.entries, errs = route.Entries(c.conf, func(i int) any {
		r, err := t.compileRule(c.conf, i)
		if err != nil {
			ch.errs = append(ch.errs, err)
		}
		return r
	})
	ch.errs = append(ch.errs, errs...)
	t.routes[conf.Key] = c
	for _, p := range conf.Parents {
		if l := t.listeners[p.Listener]; l != nil {
			t.attach(c, p.Listener, l, ch)
		}
	}
}

// attach puts a route's entries into the hosts of a listener.
func (t *tables) attach(c *compiledRoute, key string, l *listener, ch *touched) {
	for _, p := range c.conf.Parents {
		if p.Listener != key {
			continue
		}
		for _, h := range p.Hostnames {
			h = strings.ToLower(h)
			cell := l.hosts[h]
			if cell == nil {
				cell = &hostCell{name: h, entries: map[string][]*route.Entry{}}
				l.hosts[h] = cell
			}
			cell.put(c.conf.Key, c.entries)
			ch.touch(l, h)
		}
	}
}

func (t *tables) detach(c *compiledRoute, ch *touched) {
	for _, p := range c.conf.Parents {
		l := t.listeners[p.Listener]
		if l == nil {
			continue
		}
		for _, h := range p.Hostnames {
			h = strings.ToLower(h)
			if cell := l.hosts[h]; cell != nil {
				cell.put(c.conf.Key, nil)
				ch.touch(l, h)
			}
		}
	}
}

func (ch *touched) touch(l *listener, host string) {
	if ch.hosts[l] == nil {
		ch.hosts[l] = map[string]bool{}
	}
	ch.hosts[l][host] = true
}

// renewCertificates takes changed certificates into the listeners and backends that have them.
func (t *tables) renewCertificates(ch *touched, now time.Time) {
	if len(ch.certs) == 0 {
		return
	}
	for key, l := range t.listeners {
		if l.conf.TLS == nil || !uses(l.conf.TLS.Certificates, ch.certs) {
			continue
		}
		renewed := &listener{conf: l.conf, hosts: l.hosts, byHost: l.byHost, policies: l.policies, unrouted: &rule{conf: &route.Rule{}},
			filters: l.filters}
		t.endTLS(renewed)
		t.listeners[key] = renewed
		ch.hosts[renewed] = ch.hosts[l]
		delete(ch.hosts, l)
		ch.ports = true
	}
	for key, cell := range t.backends {
		if b := cell.Load(); b != nil && !ch.late[route.Ref{Kind: route.KindBackend, Key: key}] && b.conf.TLS != nil && ch.certs[b.conf.TLS.ClientCertificate] {
			t.setBackend(b.conf, now, ch)
		}
	}
}

func uses(keys []string, set map[string]bool) bool {
	for _, k := range keys {
		if set[k] {
			return true
		}
	}
	return false
}

// publish makes the new tables visible: hosts first, then listeners.
func (t *tables) publish(ch *touched) {
	for l, hosts := range ch.hosts {
		for h := range hosts {
			cell := l.hosts[h]
			if cell == nil {
				continue
			}
			if len(cell.entries) == 0 {
				delete(l.hosts, h)
				l.byHost.set(h, nil)
				cell.table.Store(route.NewHostTable(nil)) // for requests that found it just now
				continue
			}
			if cell.publish() {
				l.byHost.set(h, cell)
			}
		}
	}
}

// sockets are those that a listener needs.
func (l *listener) sockets() (out []portKey) {
	k := portKey{port: l.conf.Port, udp: l.conf.Protocol == route.UDP}
	if len(l.conf.Addresses) == 0 {
		return []portKey{k}
	}
	for _, k.addr = range l.conf.Addresses {
		out = append(out, k)
	}
	return out
}

// portTables groups the listeners by the sockets they need.
func (t *tables) portTables() map[portKey]*portTable {
	out := map[portKey]*portTable{}
	for _, l := range t.listeners {
		for _, k := range l.sockets() {
			p := out[k]
			if p == nil {
				p = &portTable{protocol: l.conf.Protocol}
				out[k] = p
			}
			p.byHost.Set(l.conf.Hostname, l)
			p.proxy = p.proxy || l.conf.ProxyProtocol
			p.proxyFrom = append(p.proxyFrom, l.conf.ProxySources...)
			p.passthrough = p.passthrough || l.conf.TLS != nil && l.conf.TLS.Passthrough
			if l.conf.Protocol == route.TCP || l.conf.Protocol == route.UDP {
				p.only = l
			}
		}
	}
	return out
}

// route finds the entry for a request at a listener.
func (l *listener) route(host string, r *route.Request) (found *route.Entry) {
	l.byHost.find(host, func(c *hostCell) bool {
		found = c.table.Load().Match(r)
		return found == nil
	})
	return found
}
