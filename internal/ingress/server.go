// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// tls chooses the host's certificate, and what its clients must show. As with ingress-nginx the oldest Ingress that has
// something to say about it is heard.
func (v *server) tls() {
	for _, i := range v.members {
		if v.hasCert || i.set.canary || len(i.obj.TLS) == 0 {
			continue
		}
		v.certificate(i)
	}
	if d := v.s.defaultCertificate(); len(v.certs) == 0 && d != "" {
		v.certs = []string{d}
	}
	for _, i := range v.members {
		if v.ciphers == nil {
			v.ciphers = i.set.ciphers
		}
		if v.client == nil && v.denied == "" && i.set.clientSecret != "" && i.set.clientVerify != "off" && !i.set.canary {
			v.clients(i)
		}
	}
}

// certificate finds the Secret for the host in an Ingress's spec.tls: that of the entry with the host's name, or one whose
// certificate is for it.
func (v *server) certificate(i *ingress) {
	for ti, t := range i.obj.TLS {
		if !slices.ContainsFunc(t.Hosts, func(h string) bool { return strings.EqualFold(h, v.h.name) }) {
			continue
		}
		v.hasCert = true
		if t.Secret == "" {
			return
		}
		key, warning, err := v.certify(model.Name{Namespace: i.obj.Namespace, Name: t.Secret})
		switch {
		case err != nil:
			v.h.problem(i, "CertificateProblem", "spec.tls[%d].secretName: %v: %s is served with the default certificate", ti, err, v.h.name)
			return
		case warning != "":
			v.h.problem(i, "CertificateProblem", "spec.tls[%d].secretName: %s", ti, warning)
		}
		v.certs = []string{key}
		return
	}
	for _, t := range i.obj.TLS {
		if t.Secret == "" || v.h.name == "" {
			continue
		}
		if key, warning, err := v.certify(model.Name{Namespace: i.obj.Namespace, Name: t.Secret}); err == nil && warning == "" {
			v.hasCert, v.certs = true, []string{key}
			return
		}
	}
}

// clients makes the validation of clients' certificates. What can't be had shuts the host.
func (v *server) clients(i *ingress) {
	set := &i.set
	if i.clientProblem != "" {
		v.denied = i.clientProblem
		return
	}
	v.client = &route.ClientValidation{
		CAs: i.clientCAs, Optional: set.clientVerify == "optional", AllowInsecureFallback: set.clientVerify == "optional_no_ca",
		Depth: set.clientDepth, ErrorPage: set.clientError, Pass: set.clientPass, Headers: true,
	}
	if set.clientMatchCN != "" {
		v.client.Subject = anywhere(set.clientMatchCN)
	}
}

// anywhere makes an expression that must match all of a text match anywhere in it, as PCRE's do.
func anywhere(expr string) string { return `(?s:.*)(?:` + expr + `)(?s:.*)` }

func listenerKey(secure bool, name string) string {
	return scheme(secure) + "/" + cmp.Or(name, "_")
}

func scheme(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

// listen makes the host's listeners: one a name and port, so that a request gets to no other host's rules, whatever
// wildcards there are.
func (v *server) listen() {
	for _, n := range v.names {
		v.listener(false, n)
		v.listener(true, n)
	}
	if v.h.name != "" {
		return
	}
	saved := v.certs
	for _, n := range slices.Sorted(maps.Keys(v.loose)) { // names of spec.tls without a rule: their certificate, the catch-all's rules
		if key := v.loose[n]; key != "" {
			v.certs = []string{key}
		}
		v.listener(true, n)
		v.certs = saved
	}
}

// looseNames are the hosts of an Ingress's spec.tls that none of its rules has.
func looseNames(o *model.Ingress) (out []string) {
	for _, t := range o.TLS {
		for _, h := range t.Hosts {
			h = strings.ToLower(h)
			if h != "" && !slices.ContainsFunc(o.Rules, func(r model.IngressRule) bool { return r.Host == h }) {
				out = append(out, h)
			}
		}
	}
	return out
}

// looseTLS finds the names of spec.tls for which no Ingress has a rule, with the certificate of the oldest.
func (v *server) looseTLS() {
	for _, i := range v.members {
		names := looseNames(i.obj)
		for ti, t := range i.obj.TLS {
			for _, h := range t.Hosts {
				h = strings.ToLower(h)
				if _, taken := v.loose[h]; taken || !slices.Contains(names, h) || v.s.isHost(h) || len(v.s.claims[h]) > 0 {
					continue
				}
				v.loose[h] = ""
				if t.Secret == "" {
					continue
				}
				key, _, err := v.certify(model.Name{Namespace: i.obj.Namespace, Name: t.Secret})
				if err != nil {
					v.h.problem(i, "CertificateProblem", "spec.tls[%d].secretName: %v: %s is served with the default certificate", ti, err, h)
				}
				v.loose[h] = key
			}
		}
	}
}

func (v *server) listener(secure bool, name string) {
	opts, global := &v.s.opts, v.s.globalConfig()
	l := route.Listener{
		Key: listenerKey(secure, name), Protocol: route.HTTP, Port: opts.HTTPPort, PublicPort: cmp.Or(opts.PublicHTTP, 80),
		Hostname: name, ProxyProtocol: global.proxyProtocol,
	}
	if global.forwardedHeaders {
		l.TrustedProxies = global.trusted
	}
	if global.proxyProtocol {
		l.ProxySources = global.trusted
	}
	if secure {
		l.Protocol, l.Port, l.PublicPort = route.HTTPS, opts.HTTPSPort, cmp.Or(opts.PublicHTTPS, 443)
		l.TLS = &route.ListenerTLS{
			Certificates: v.certs, MinVersion: global.minTLS, MaxVersion: global.maxTLS, CipherSuites: global.ciphers, Client: v.client,
		}
		if len(v.ciphers) > 0 {
			l.TLS.CipherSuites = v.ciphers
		}
		if !global.http2 {
			l.TLS.ALPN = []string{"http/1.1"}
		}
		if name == "" && global.rejectHandshake {
			l.TLS.Certificates = nil
		}
		if v.passthrough() != nil {
			l.Protocol, l.TLS = route.TLS, &route.ListenerTLS{Passthrough: true}
		}
	}
	v.listeners[l.Key] = l
}

// passthrough is the location that gets the host's TLS connections as they are, or nil.
func (v *server) passthrough() *location {
	if v.h.name == "" || !slices.ContainsFunc(v.members, func(i *ingress) bool { return i.set.sslPassthrough && !i.set.canary }) {
		return nil
	}
	for _, l := range v.locations {
		if l.path == "/" && l.backend != nil && l.backend.Service != "" {
			return l
		}
	}
	return nil
}

// route makes the routes: of each Ingress one for TLS and one for plain text, or one for both where they are the same.
func (v *server) route() {
	v.sortLocations()
	if l := v.passthrough(); l != nil {
		key := "Ingress/" + l.by.obj.Name.String() + "/" + v.h.name + "/passthrough"
		v.routes[key] = route.Route{
			Key: key, Kind: route.TLSRoute, Parents: v.parents(true), Created: l.by.obj.Created, Name: l.by.obj.Name.String(),
			Rules: []route.Rule{{Backends: []route.WeightedBackend{v.use(l, l.backend, route.Backend{Protocol: route.Raw}, "raw")}}},
		}
	}
	for _, i := range v.owners() {
		name := i.obj.Name.String()
		key := "Ingress/" + name + "/" + cmp.Or(v.h.name, "_")
		if i == v.s.nobody {
			name, key = "", "Ingress/-/_"
		}
		base := route.Route{Kind: route.HTTPRoute, Created: i.obj.Created, Name: name}
		if i.policy != "" {
			base.Policies = []string{i.policy}
		}
		if v.denied != "" {
			base.Policies = append(base.Policies, v.deny())
		}
		plain, secure := base, base
		plain.Key, plain.Parents, plain.Rules = key+"/http", v.parents(false), v.rules(i, false)
		secure.Key, secure.Parents, secure.Rules = key, v.parents(true), v.rules(i, true)
		switch {
		case v.passthrough() != nil:
			v.routes[plain.Key] = plain
		case sameRules(plain.Rules, secure.Rules):
			secure.Parents = append(slices.Clone(plain.Parents), secure.Parents...)
			v.routes[key] = secure
		default:
			v.routes[plain.Key], v.routes[key] = plain, secure
		}
	}
}

// owners lists the Ingresses that have locations, in the order of age.
func (v *server) owners() (out []*ingress) {
	for _, l := range v.locations {
		if !slices.Contains(out, l.by) {
			out = append(out, l.by)
		}
	}
	return out
}

// deny makes the policy that shuts the host.
func (v *server) deny() string {
	key := "Host/" + cmp.Or(v.h.name, "_") + "/denied"
	v.policies[key] = route.Policy{Key: key, Invalid: v.denied}
	return key
}

// parents are the listeners that the host's routes are attached to.
func (v *server) parents(secure bool) (out []route.Parent) {
	for _, n := range v.names {
		out = append(out, route.Parent{Listener: listenerKey(secure, n), Hostnames: []string{n}})
	}
	if v.h.name != "" {
		return out
	}
	// What a wildcard does not cover (more than one label) and names of spec.tls without a rule are the catch-all's.
	for _, n := range slices.Sorted(maps.Keys(v.s.hosts)) {
		if strings.HasPrefix(n, "*.") && v.s.isHost(n) {
			out = append(out, route.Parent{Listener: listenerKey(secure, n), Hostnames: []string{""}})
		}
	}
	if secure {
		for _, n := range slices.Sorted(maps.Keys(v.loose)) {
			out = append(out, route.Parent{Listener: listenerKey(true, n), Hostnames: []string{""}})
		}
	}
	return out
}

// www makes the redirect from the name with "www." to that without, or the other way round, unless some Ingress has a
// rule for it.
func (v *server) www() {
	from := v.wwwOf()
	if from == "" || v.s.isHost(from) || slices.Contains(v.names, from) || slices.Min(slices.Collect(maps.Keys(v.s.claims[from]))) != v.h.name {
		return
	}
	var by *ingress
	for _, i := range v.members {
		if i.set.fromToWWW && !i.set.canary {
			by = i
			break
		}
	}
	saved := v.certs
	if d := v.s.defaultCertificate(); v.hasCert && len(v.certs) > 0 && v.certs[0] != d && !v.s.keyCovers(v.certs[0], from) {
		v.certs = nil
		if d != "" {
			v.certs = []string{d}
		}
		v.h.problem(by, "CertificateProblem", "%sfrom-to-www-redirect: the certificate of %s is not for %s, which has the default certificate over "+
			"TLS: use one with both names", Prefix, v.h.name, from)
	}
	v.listener(false, from)
	v.listener(true, from)
	v.certs = saved
	key := "Ingress/" + by.obj.Name.String() + "/" + from + "/www"
	v.routes[key] = route.Route{
		Key: key, Kind: route.HTTPRoute, Created: by.obj.Created, Name: by.obj.Name.String(),
		Parents: []route.Parent{
			{Listener: listenerKey(false, from), Hostnames: []string{from}}, {Listener: listenerKey(true, from), Hostnames: []string{from}},
		},
		Rules: []route.Rule{{Filters: []route.Filter{{Redirect: &route.Redirect{
			Location: route.Template("$scheme://" + v.h.name + "$request_uri_unslashed"), Status: by.set.redirectCode,
		}}}}},
	}
}

// splitService reads "namespace/service" or "namespace/service:port".
func splitService(text string) (name model.Name, port uint16, ok bool) {
	ns, rest, ok := strings.Cut(text, "/")
	if !ok || ns == "" {
		return name, 0, false
	}
	svc, p, has := strings.Cut(rest, ":")
	if has {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return name, 0, false
		}
		port = uint16(n)
	}
	return model.Name{Namespace: ns, Name: svc}, port, svc != ""
}

// ref names an object for messages.
func ref(kind string, n model.Name) string { return fmt.Sprintf("%s %s", kind, n) }
