// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
	"github.com/weft-net/weft/internal/service"
)

// Front is one gateway with what was compiled for it: a Gateway's, or that of all Ingresses.
type Front struct {
	Object string        // "Gateway shop/web"; "the gateway of Ingresses"
	Owner  string        // the kind whose objects its routes come from, where that is not the routes' own: "Ingress"
	Tables *route.Update // all of them

	Service *model.Service // in front of it; nil if none is known
	Pod     *model.Pod     // one of its pods, or one as they would be
	Absent  string         // why there is no such gateway: the tables are what it would have

	// Problems are what keeps objects from being served as they are written.
	Problems []RouteProblem

	// Read tells by which path the proxy looks for rules, which is not always the one that a client writes, or with
	// which status it answers instead, and why. nil: the path is taken as it is written.
	Read func(listener string, r *Request) (path string, status int, reason string)
}

// RouteProblem is why an object is not served, or not as it is written.
type RouteProblem struct {
	Object string // "HTTPRoute shop/cart"
	Hosts  []string
	Text   string
}

// Request is what a client asks of a URL beyond its address.
type Request struct {
	URL     *url.URL
	Method  string
	Headers map[string]string // names in lower case
}

// Lookup implements route.Lookup.
func (r *Request) Lookup(name string) (string, bool) {
	v, ok := r.Headers[name]
	return v, ok
}

// host is the request's, in lower case.
func (r *Request) host() string {
	h := r.URL.Host
	if v, ok := r.Headers["host"]; ok {
		h = v
	}
	if i := strings.LastIndexByte(h, ':'); i >= 0 && !strings.Contains(h[i:], "]") {
		h = h[:i]
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(h, "[]"), "."))
}

// Authority is the request's Host field.
func (r *Request) Authority() string { return cmp.Or(r.Headers["host"], r.URL.Host) }

func (r *Request) port() (uint16, error) {
	switch p := r.URL.Port(); {
	case p != "":
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%s: %q is not a port", r.URL, p)
		}
		return uint16(n), nil
	case r.URL.Scheme == "https":
		return 443, nil
	}
	return 80, nil
}

// request goes by a gateway to what a URL means.
func (q *question) request(r *Request) error {
	if q.proto != model.TCP {
		return fmt.Errorf("%s: a URL is asked for over TCP", r.URL)
	}
	port, err := r.port()
	if err != nil {
		return err
	}
	q.port, q.a.Port = port, port
	if done, err := q.clusterName(r); done || err != nil {
		return err
	}
	var served []*found
	var absent []string
	for i := range q.w.Fronts {
		f := &q.w.Fronts[i]
		if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil && !f.at(a) {
			continue
		}
		l := f.listener(r, f.portOf(port))
		switch {
		case l == nil:
		case f.Absent == "":
			served = append(served, f.find(l, r))
		case l.Hostname != "" || len(f.find(l, r).winners()) > 0:
			absent = append(absent, fmt.Sprintf("%s would take it, but %s", f.Object, f.Absent))
		}
	}
	if len(served) == 0 {
		q.add(Step{Station: "gateway", Mark: Blocked, Details: append(absent, q.unserved(r.host())...),
			Text: fmt.Sprintf("no Gateway and no Ingress has %s on port %d for %s", strings.ToUpper(r.URL.Scheme), port, r.host())})
		return nil
	}
	slices.SortStableFunc(served, func(a, b *found) int { // those with a route first
		return cmp.Compare(len(b.winners()), len(a.winners()))
	})
	best := served[0]
	for _, other := range served[1:] {
		if len(other.winners()) > 0 {
			q.note("gateway", fmt.Sprintf("%s serves %s too; which of them clients reach is up to DNS", other.front.Object, r.host()))
		}
	}
	q.publicName(r, best.front)
	q.client(best.front, best.front.portOf(port))
	q.gateway(best, r)
	return nil
}

// clusterName handles a URL of a Service that is no gateway's: the whole way is that to its endpoints.
func (q *question) clusterName(r *Request) (bool, error) {
	ns := ""
	if p := q.sourcePod(); p != nil {
		ns = p.Namespace
	}
	host := r.URL.Hostname()
	if _, err := netip.ParseAddr(host); err == nil || q.beyond() {
		return false, nil
	}
	res, ok := q.w.resolve(host, ns)
	s := q.w.serviceOf(res.name)
	if !ok || s == nil || slices.ContainsFunc(q.w.Fronts, func(f Front) bool { return f.Service != nil && f.Service.Name == s.Name }) {
		return false, nil
	}
	q.to.DNSName = host
	return true, q.destinations()
}

// at tells whether clients reach the gateway at an address.
func (f *Front) at(a netip.Addr) bool {
	s := f.Service
	return s != nil && (slices.Contains(s.ClusterIPs, a) || slices.Contains(s.ExternalIPs, a) ||
		slices.ContainsFunc(s.Ingress, func(i model.LoadBalancerIngress) bool { return i.IP == a }))
}

// portOf is the port of the gateway's Service that a node's port stands for; any other port is itself.
func (f *Front) portOf(port uint16) uint16 {
	if f.Service != nil {
		for _, p := range f.Service.Ports {
			if p.NodePort == port && p.Protocol == model.TCP {
				return p.Port
			}
		}
	}
	return port
}

// listener finds who takes a connection: of the listeners of a port the one with the most specific hostname.
func (f *Front) listener(r *Request, port uint16) *route.Listener {
	var byHost route.Hosts[*route.Listener]
	for i := range f.Tables.Listeners {
		l := &f.Tables.Listeners[i]
		if cmp.Or(l.PublicPort, l.Port) != port {
			continue
		}
		switch l.Protocol {
		case route.HTTP:
			if r.URL.Scheme == "http" {
				byHost.Set(l.Hostname, l)
			}
		case route.HTTPS, route.TLS:
			if r.URL.Scheme == "https" {
				byHost.Set(l.Hostname, l)
			}
		case route.TCP:
			byHost.Set("", l)
		}
	}
	var out *route.Listener
	byHost.Find(r.host(), func(l *route.Listener) bool { out = l; return false })
	return out
}

// found is what a listener makes of a request.
type found struct {
	front    *Front
	listener *route.Listener
	host     string          // the hostname that the route is for; "" is any
	verdicts []route.Verdict // in the order of precedence; of L4 routes none
	path     string          // by which rules were looked for
	status   int             // of the answer, where the proxy does not even look for a rule; 0: it does
	reason   string
	l4       *route.Route
}

// winners is at most one.
func (f *found) winners() []*route.Route {
	if f.l4 != nil {
		return []*route.Route{f.l4}
	}
	for _, v := range f.verdicts {
		if v.Wins && !nobodys(v.Entry) {
			return []*route.Route{v.Entry.Route}
		}
	}
	return nil
}

// nobodys tells whether nobody wrote the rule: it is a gateway's word for "no rule matches".
func nobodys(e *route.Entry) bool {
	return e.Route.Name == "" || e.Route.Rules[e.Rule].Respond == notFound
}

// notFound is the status of a request that no rule matches.
const notFound = 404

// find looks for the route, by the functions that the proxy decides with.
func (f *Front) find(l *route.Listener, r *Request) *found {
	out := &found{front: f, listener: l}
	entries := map[string][]*route.Entry{}
	l4 := map[string]*route.Route{}
	var hosts route.Hosts[string]
	for i := range f.Tables.Routes {
		rt := &f.Tables.Routes[i]
		var es []*route.Entry
		if rt.Kind == route.HTTPRoute || rt.Kind == route.GRPCRoute {
			es, _ = route.Entries(rt, func(int) any { return nil })
		}
		for _, p := range rt.Parents {
			if p.Listener != l.Key {
				continue
			}
			for _, h := range p.Hostnames {
				h = strings.ToLower(h)
				entries[h] = append(entries[h], es...)
				if es == nil && (l4[h] == nil || older(rt, l4[h])) {
					l4[h] = rt
				}
				hosts.Set(h, h)
			}
		}
	}
	out.path = cmp.Or(r.URL.EscapedPath(), "/")
	if f.Read != nil && (l.Protocol == route.HTTP || l.Protocol == route.HTTPS) {
		// A rule that there is none of is told below, with the reasons.
		if path, status, reason := f.Read(l.Key, r); status == 0 || status == notFound {
			out.path = path
		} else {
			out.status, out.reason = status, reason
			return out
		}
	}
	req := &route.Request{Method: r.Method, Path: out.path, Query: r.URL.RawQuery, Header: r}
	hosts.Find(r.host(), func(h string) bool {
		if len(out.verdicts) == 0 {
			out.host = h
		}
		vs := route.NewHostTable(entries[h]).Explain(req)
		if slices.ContainsFunc(vs, func(v route.Verdict) bool { return v.Wins }) {
			out.host, out.verdicts = h, append(vs, out.verdicts...)
			return false
		}
		out.verdicts = append(out.verdicts, vs...)
		if l.Protocol != route.HTTP && l.Protocol != route.HTTPS && l4[h] != nil {
			out.host, out.l4 = h, l4[h]
			return false
		}
		return true
	})
	return out
}

func older(a, b *route.Route) bool {
	return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name, b.Name)) < 0
}

// unserved tells of objects that would serve a host, were they served.
func (q *question) unserved(host string) []string {
	var out []string
	for i := range q.w.Fronts {
		for _, p := range q.w.Fronts[i].Problems {
			if len(p.Hosts) == 0 || slices.ContainsFunc(p.Hosts, func(h string) bool { return covers(h, host) }) {
				out = append(out, fmt.Sprintf("%s: %s", p.Object, p.Text))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func covers(hostname, host string) bool {
	suffix, wild := strings.CutPrefix(strings.ToLower(hostname), "*")
	return hostname == "" || hostname == host || wild && strings.HasSuffix(host, suffix)
}

// publicName says what DNS has to say of a URL's host, which is nothing that is decided in the cluster.
func (q *question) publicName(r *Request, f *Front) {
	host := r.URL.Hostname()
	if _, err := netip.ParseAddr(host); err == nil || f.Service == nil {
		return
	}
	var addrs []string
	for _, i := range f.Service.Ingress {
		if i.IP.IsValid() {
			addrs = append(addrs, i.IP.String())
		}
		if i.Hostname != "" {
			addrs = append(addrs, i.Hostname)
		}
	}
	if len(addrs) > 0 && q.w.serviceOf(host) == nil {
		q.note("name", fmt.Sprintf("clients get there if DNS leads %s to %s", host, strings.Join(addrs, " or ")))
	}
}

// client walks from the source to the gateway.
func (q *question) client(f *Front, port uint16) {
	if f.Service == nil {
		q.note("gateway", fmt.Sprintf("how clients reach %s is not told: no Service of it is known", f.Object))
		return
	}
	leg := *q
	leg.to = &Target{Text: q.to.Text, Service: f.Service, Port: port}
	if leg.beyond() && len(leg.frontendsOf(f.Service, port)) == 0 {
		q.note("gateway", fmt.Sprintf("Service %s of %s has no address for clients outside yet", f.Service.Name, f.Object))
		return
	}
	if err := leg.service(f.Service); err != nil {
		q.note("gateway", err.Error())
	}
	q.dead = leg.dead
}

func (q *question) frontendsOf(s *model.Service, port uint16) []service.Frontend {
	var out []service.Frontend
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Port == port && p.Protocol == model.TCP {
			out = append(out, q.frontends(s, p)...)
		}
	}
	return out
}

// gateway says what the gateway does with the request, and walks on to the backends.
func (q *question) gateway(f *found, r *Request) {
	l := f.listener
	step := Step{Station: "gateway", Mark: OK, Object: f.front.Object, Text: fmt.Sprintf("listener %s takes it", l.Key)}
	if l.Hostname != "" {
		step.Text += " (hostname " + l.Hostname + ")"
	}
	if l.TLS != nil {
		step.Details = append(step.Details, q.certificates(f.front, l))
	}
	q.add(step)
	if written := cmp.Or(r.URL.EscapedPath(), "/"); f.path != written && f.status == 0 {
		q.note("gateway", fmt.Sprintf("path %s is read as %s", written, f.path))
	}
	if f.status != 0 {
		q.refuse(Step{Station: "match", Object: f.front.Object, Text: fmt.Sprintf("no rule is looked for, the answer is %d: %s", f.status, f.reason)})
		return
	}
	if !q.beforeRouting(f) {
		return
	}
	winners := f.winners()
	if len(winners) == 0 && l.Protocol != route.HTTP && l.Protocol != route.HTTPS {
		q.refuse(Step{Station: "match", Object: f.front.Object, Text: fmt.Sprintf("no %sRoute of listener %s has %s: the connection is closed", l.Protocol, l.Key, r.host())})
		return
	}
	if len(winners) == 0 {
		details := losers(f)
		for _, p := range q.unserved(r.host()) {
			details = append(details, "not served: "+p)
		}
		q.refuse(Step{Station: "match", Object: f.front.Object, Details: details,
			Text: fmt.Sprintf("no rule matches %s %s for %s: the answer is 404", r.Method, r.URL.RequestURI(), r.host())})
		return
	}
	rt, rule := winners[0], 0
	q.kind, q.onward = rt.Kind, len(q.a.Flows)
	object := f.front.objectOf(rt)
	step = Step{Station: "match", Mark: OK, Object: object, Text: "gets all connections of the listener"}
	if f.l4 == nil {
		for _, v := range f.verdicts {
			if v.Wins {
				rule = v.Entry.Rule
				step.Text = fmt.Sprintf("rules[%d].matches[%d] %s", v.Entry.Rule, v.Entry.Match, v.Why)
			}
		}
		if f.host != "" {
			step.Text += ", of hostname " + f.host
		}
		step.Details = losers(f)
	}
	if len(rt.Rules) == 0 {
		step.Text = "has no rules"
		q.refuse(step)
		return
	}
	q.add(step)
	q.rule(f, rt, object, &rt.Rules[rule])
}

// beforeRouting says what the listener's filters do; false when one of them lets nobody pass. What an authority adds to a
// request is not known here, so rules are looked for as if it added nothing.
func (q *question) beforeRouting(f *found) bool {
	for i := range f.listener.Filters {
		text, ends := filterText(&f.listener.Filters[i], q.to.Request)
		step := Step{Station: "filter", Mark: OK, Object: f.front.Object, Text: "before a rule is looked for: " + text}
		if ends {
			q.refuse(step)
			return false
		}
		step.Details = []string{"what it adds to the request is not known here"}
		q.add(step)
	}
	return true
}

// maxLosers is how many rules that lose are told of.
const maxLosers = 4

func losers(f *found) []string {
	var out []string
	for _, v := range f.verdicts {
		if v.Wins || nobodys(v.Entry) {
			continue
		}
		if len(out) == maxLosers {
			out = append(out, "and others, which do not win either")
			break
		}
		out = append(out, fmt.Sprintf("%s rules[%d]: %s", f.front.objectOf(v.Entry.Route), v.Entry.Rule, v.Why))
	}
	return out
}

// objectOf names the object that a route was made of.
func (f *Front) objectOf(r *route.Route) string {
	return cmp.Or(f.Owner, string(r.Kind)) + " " + r.Name
}

func (q *question) certificates(f *Front, l *route.Listener) string {
	if l.TLS.Passthrough {
		return "TLS is passed through: the backend has the certificate"
	}
	if len(l.TLS.Certificates) == 0 {
		return "it has no certificate: handshakes fail"
	}
	if !strings.Contains(l.TLS.Certificates[0], "/") {
		return "TLS ends here, with the gateway's own certificate: none is known for the host"
	}
	return "TLS ends here, with the certificate of Secret " + strings.Join(l.TLS.Certificates, ", ")
}

// rule says what a rule does, and walks to its backends.
func (q *question) rule(f *found, rt *route.Route, object string, r *route.Rule) {
	if r.Invalid != "" {
		q.refuse(Step{Station: "match", Object: object, Text: fmt.Sprintf("can't be served, %s: %s", q.failure(500), r.Invalid)})
		return
	}
	for _, key := range slices.Concat(f.listener.Policies, rt.Policies, r.Policies) {
		q.policy(f.front, key)
	}
	if q.dead {
		return
	}
	for i := range r.Filters {
		text, ends := filterText(&r.Filters[i], q.to.Request)
		q.add(Step{Station: "filter", Mark: OK, Object: object, Text: text})
		if ends {
			q.answered = text
			return
		}
	}
	if r.Respond != 0 {
		q.refuse(Step{Station: "match", Object: object, Text: fmt.Sprintf("the gateway itself answers with status %d", r.Respond)})
		return
	}
	q.backendsOf(f.front, object, r)
}

// failure is what a client gets where HTTP has a status for it: of gRPC a status of its own, of what is no HTTP nothing.
func (q *question) failure(status int) string {
	switch q.kind {
	case route.HTTPRoute:
		return fmt.Sprintf("the answer is %d", status)
	case route.GRPCRoute:
		if status == 403 {
			return "the answer is PERMISSION_DENIED"
		}
		return "the answer is UNAVAILABLE"
	}
	return "the connection is closed"
}

func (q *question) backendsOf(front *Front, object string, r *route.Rule) {
	total := uint32(0)
	for _, b := range r.Backends {
		total += b.Weight
	}
	if total == 0 {
		q.refuse(Step{Station: "backend", Object: object, Text: "has no backend with a weight: " + q.failure(500)})
		return
	}
	serves := false
	for _, b := range r.Backends {
		if b.Weight == 0 {
			continue
		}
		share := ""
		if len(r.Backends) > 1 {
			share = fmt.Sprintf(" (%d of %d requests)", b.Weight, total)
		}
		if q.backend(front, object, &b, share) {
			serves = true
		}
	}
	q.refused = q.refused || !serves
}

// backend walks on to a backend's endpoints, or says how the gateway answers in its place; false is with an error.
func (q *question) backend(front *Front, object string, b *route.WeightedBackend, share string) bool {
	step := Step{Station: "backend", Object: strings.ReplaceAll(b.Backend, "/", " "), Mark: Blocked}
	if parts := strings.Split(b.Backend, "/"); len(parts) >= 3 {
		step.Object = parts[0] + " " + parts[1] + "/" + parts[2]
	}
	i := slices.IndexFunc(front.Tables.Backends, func(x route.Backend) bool { return x.Key == b.Backend })
	switch {
	case b.Invalid != "":
		step.Object, step.Text = object, fmt.Sprintf("can't be followed, %s: %s%s", q.failure(500), b.Invalid, share)
	case i < 0:
		step.Text = "is not there: " + q.failure(500) + share
	case front.Tables.Backends[i].Invalid != "":
		step.Text = fmt.Sprintf("must not be used, %s: %s%s", q.failure(500), front.Tables.Backends[i].Invalid, share)
	}
	if step.Text != "" {
		q.add(step)
		return false
	}
	for j := range b.Filters {
		text, ends := filterText(&b.Filters[j], q.to.Request)
		if ends {
			if step.Text = text + share; b.Filters[j].Redirect != nil {
				step.Mark = OK
			}
			q.add(step)
			return step.Mark == OK
		}
		step.Details = append(step.Details, text)
	}
	be := &front.Tables.Backends[i]
	var endpoints []route.Endpoint
	for _, e := range front.Tables.Endpoints {
		if e.Key == be.Endpoints {
			endpoints = e.Endpoints
		}
	}
	if len(endpoints) == 0 {
		step.Text = "has no endpoint: " + q.failure(503) + share
		if s := q.serviceByKey(b.Backend); s != nil && len(s.Ports) > 0 {
			step.Details = append(step.Details, q.w.NoEndpoints(s, &s.Ports[0])...)
		}
		q.add(step)
		return false
	}
	step.Mark, step.Text = OK, fmt.Sprintf("by %s%s: one of %s", cmp.Or(be.Protocol, route.HTTP1), share, count(len(endpoints), "endpoint"))
	if be.TLS != nil {
		step.Text += ", inside TLS"
		if be.TLS.ServerName != "" {
			step.Text += " for " + be.TLS.ServerName
		}
	}
	q.add(step)
	leg := *q
	leg.from = &Target{Text: front.Object, Pods: []*model.Pod{front.Pod}}
	for n, e := range endpoints {
		if n == maxShown {
			q.note("backend", fmt.Sprintf("only %d of %d endpoints are shown", maxShown, len(endpoints)))
			break
		}
		at, err := netip.ParseAddrPort(e.Address)
		if err != nil {
			q.note("backend", e.Address+" is beyond the cluster")
			continue
		}
		leg.walk(q.w.Policy.EndpointOf(at.Addr()), at.Port(), "")
	}
	return true
}

// serviceByKey finds the Service of a backend's key, "Service/shop/cart/80".
func (q *question) serviceByKey(key string) *model.Service {
	parts := strings.Split(key, "/")
	if len(parts) < 3 || parts[0] != "Service" {
		return nil
	}
	return q.w.all.Services[model.Name{Namespace: parts[1], Name: parts[2]}]
}

// policy says what a policy of the gateway's asks of requests.
func (q *question) policy(front *Front, key string) {
	i := slices.IndexFunc(front.Tables.Policies, func(p route.Policy) bool { return p.Key == key })
	if i < 0 {
		q.refuse(Step{Station: "filter", Object: "policy " + key, Text: "is not there (yet): " + q.failure(503)})
		return
	}
	p := &front.Tables.Policies[i]
	if p.Invalid != "" {
		q.refuse(Step{Station: "filter", Object: "policy " + key, Text: fmt.Sprintf("can't be enforced, %s: %s", q.failure(503), p.Invalid)})
		return
	}
	if a := q.from.Addr; a.IsValid() && p.Sources != nil && !admitted(p.Sources, a) {
		q.refuse(Step{Station: "filter", Object: "policy " + key, Text: fmt.Sprintf("admits no client at %s: %s", a, q.failure(403))})
		return
	}
	for _, text := range policyTexts(p) {
		q.note("filter", "policy "+key+": "+text)
	}
}

// admitted tells whether a client's address may.
func admitted(s *route.Sources, a netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return (len(s.Allow) == 0 || in(s.Allow)) && !in(s.Deny)
}

// gatewayPod makes up a pod of a gateway that there are no pods of, as in manifests.
func gatewayPod(name model.Name, labels map[string]string) *model.Pod {
	return &model.Pod{Meta: model.Meta{Name: name, Labels: labels}, Ready: true}
}

// FrontPod is one of a Service's pods or, where there is none, one as it would be.
func FrontPod(d *model.Delta, s *model.Service, name model.Name, labels map[string]string) *model.Pod {
	if s != nil && len(s.Selector) > 0 {
		sel := model.MatchLabels(s.Selector)
		for _, n := range sortedNames(d.Pods) {
			if p := d.Pods[n]; n.Namespace == s.Namespace && !p.Finished && sel.Matches(p.Labels) {
				return p
			}
		}
	}
	return gatewayPod(name, labels)
}
