// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// world is a cluster that changes at random.
type world struct {
	r     *mathrand.Rand
	certs []*model.Secret
	now   ingress.Changes // all there is
}

func pick[T any](r *mathrand.Rand, list ...T) T { return list[r.IntN(len(list))] }

var hostNames = []string{"a.example.com", "b.example.com", "www.a.example.com", "*.example.com", "c.test", ""}

func (w *world) ingress(n int) *model.Ingress {
	r := w.r
	i := &model.Ingress{Meta: model.Meta{Name: model.Name{Namespace: pick(r, "shop", "blog"), Name: fmt.Sprint("i", n)}, UID: fmt.Sprint("u", n), Created: int64(1 + r.IntN(3))}}
	i.Class = pick(r, "weft", "weft", "nginx", "nginx", "other", "", "none")
	i.Annotations = map[string]string{}
	set := func(name string, values ...string) {
		if r.IntN(6) == 0 {
			i.Annotations[ingress.Prefix+name] = pick(r, values...)
		}
	}
	set("canary", "true")
	set("canary-weight", "20", "x")
	set("canary-by-header", "X-Canary")
	set("rewrite-target", "/", "/$1")
	set("use-regex", "true", "maybe")
	set("server-alias", "c.test", "d.test,e.test", "b.example.com")
	set("from-to-www-redirect", "true")
	set("auth-tls-secret", "shop/s1", "blog/s2", "shop/none")
	set("auth-type", "basic")
	set("auth-secret", "s1", "none")
	set("default-backend", "cart", "checkout", "none")
	set("custom-http-errors", "404,503")
	set("ssl-passthrough", "true")
	set("backend-protocol", "HTTPS", "GRPC", "FCGI")
	set("proxy-ssl-secret", "shop/s2")
	set("auth-url", "http://auth.test/check", "https://$host/check")
	set("mirror-target", "http://mirror.test$request_uri")
	set("service-upstream", "true")
	set("app-root", "/home")
	set("custom-headers", "shop/c1")
	set("ssl-redirect", "false")
	backend := func() model.IngressBackend {
		b := model.IngressBackend{Service: pick(r, "cart", "checkout", "none"), Port: pick[uint16](r, 80, 81, 0)}
		if b.Port == 0 {
			b.PortName = "http"
		}
		if r.IntN(12) == 0 {
			b = model.IngressBackend{Resource: "Bucket/b"}
		}
		return b
	}
	for range r.IntN(4) {
		rule := model.IngressRule{Host: pick(r, hostNames...)}
		for range r.IntN(3) {
			rule.Paths = append(rule.Paths, model.IngressPath{
				Path: pick(r, "/", "/a", "/a/", "/b/(.*)", "/.well-known/acme-challenge/x", ""),
				Type: pick(r, model.IngressPrefix, model.IngressExact, model.IngressImplementationSpecific), Backend: backend(),
			})
		}
		i.Rules = append(i.Rules, rule)
	}
	if r.IntN(3) == 0 {
		b := backend()
		i.Default = &b
	}
	for range r.IntN(2) {
		i.TLS = append(i.TLS, model.IngressTLS{Hosts: []string{pick(r, "a.example.com", "b.example.com", "loose.test", "*.example.com")}, Secret: pick(r, "s1", "s2", "none", "")})
	}
	return i
}

// step changes something, in the world and in what is told.
func (w *world) step(c *ingress.Changes) {
	r := w.r
	apply := func(put func(c *ingress.Changes)) {
		put(c)
		put(&w.now)
	}
	gone := r.IntN(3) == 0
	ns := pick(r, "shop", "blog")
	switch r.IntN(10) {
	case 0, 1, 2, 3, 4:
		i := w.ingress(r.IntN(6))
		v := i
		if gone {
			v = nil
		}
		apply(func(c *ingress.Changes) { c.Ingresses[i.Name] = v })
	case 5:
		n := model.Name{Namespace: ns, Name: pick(r, "cart", "checkout")}
		v := &model.Service{Meta: model.Meta{Name: n}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
		if r.IntN(4) == 0 {
			v = &model.Service{Meta: model.Meta{Name: n}, Type: model.ExternalName, ExternalName: "outside.test"}
		}
		if gone {
			v = nil
		}
		apply(func(c *ingress.Changes) { c.Services[n] = v })
	case 6:
		svc := pick(r, "cart", "checkout")
		n := model.Name{Namespace: ns, Name: pick(r, "x1", "x2")}
		v := &model.EndpointSlice{Meta: model.Meta{Name: n}, Service: svc, Family: pick(r, model.IPv4, model.IPv6), Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}}
		for k := range r.IntN(3) {
			a := netip.AddrFrom4([4]byte{10, 244, 0, byte(k + 1)})
			if v.Family == model.IPv6 {
				a = netip.AddrFrom16([16]byte{0xfd, 15: byte(k + 1)})
			}
			v.Endpoints = append(v.Endpoints, model.Endpoint{Addresses: []netip.Addr{a}, Ready: r.IntN(3) > 0, Serving: true, Terminating: r.IntN(3) == 0})
		}
		if gone {
			v = nil
		}
		apply(func(c *ingress.Changes) { c.EndpointSlices[n] = v })
	case 7:
		n := model.Name{Namespace: ns, Name: pick(r, "s1", "s2")}
		s := *pick(r, w.certs...)
		s.Name = n
		v := &s
		if r.IntN(4) == 0 {
			v = &model.Secret{Meta: model.Meta{Name: n}, Data: map[string][]byte{"tls.crt": []byte("x"), "tls.key": []byte("y")}}
		}
		if gone {
			v = nil
		}
		apply(func(c *ingress.Changes) { c.Secrets[n] = v })
	case 8:
		n := pick(r, model.Name{Namespace: "weft", Name: "ingress"}, model.Name{Namespace: "shop", Name: "c1"}, model.Name{Namespace: "weft", Name: "class"})
		v := &model.ConfigMap{Meta: model.Meta{Name: n}, Data: map[string]string{
			pick(r, "hsts", "ssl-redirect", "use-forwarded-headers"):                              pick(r, "true", "false", "what"),
			pick(r, "default-backend-service", "default-ssl-certificate", "add-headers", "bad"):   pick(r, "shop/cart", "shop/s1", "shop/c1"),
			pick(r, "block-user-agents", "custom-http-errors", "global-allowed-response-headers"): pick(r, "curl", "404", "X-A"),
			"X-A": "b",
		}}
		if gone {
			v = nil
		}
		apply(func(c *ingress.Changes) { c.ConfigMaps[n] = v })
	case 9:
		n := pick(r, "weft", "nginx", "other")
		v := &model.IngressClass{Meta: model.Meta{Name: model.Name{Name: n}}, Default: r.IntN(3) == 0,
			Controller: map[string]string{"weft": ingress.Controller, "nginx": ingress.NginxController, "other": "example.com/other"}[n]}
		if r.IntN(3) == 0 {
			v.Parameters = &model.IngressParameters{Kind: "ConfigMap", Namespace: "weft", Name: "class"}
		}
		if gone {
			v = nil
		}
		apply(func(c *ingress.Changes) { c.Classes[n] = v })
	}
}

func nothing() ingress.Changes {
	return ingress.Changes{
		Ingresses: map[model.Name]*model.Ingress{}, Classes: map[string]*model.IngressClass{}, Services: map[model.Name]*model.Service{},
		EndpointSlices: map[model.Name]*model.EndpointSlice{}, Secrets: map[model.Name]*model.Secret{}, ConfigMaps: map[model.Name]*model.ConfigMap{},
	}
}

// replica applies updates as a gateway does.
type replica map[route.Ref]string

func (m replica) apply(t *testing.T, u *route.Update) {
	t.Helper()
	if u == nil {
		return
	}
	if u.Complete {
		clear(m)
	}
	for _, r := range u.Removed {
		if _, there := m[r]; !there {
			t.Fatalf("%v is removed and was never there", r)
		}
		delete(m, r)
	}
	put := func(kind route.Kind, key string, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		m[route.Ref{Kind: kind, Key: key}] = string(text)
	}
	for _, v := range u.Listeners {
		put(route.KindListener, v.Key, v)
	}
	for _, v := range u.Routes {
		put(route.KindRoute, v.Key, v)
	}
	for _, v := range u.Backends {
		put(route.KindBackend, v.Key, v)
	}
	for _, v := range u.Endpoints {
		put(route.KindEndpointSet, v.Key, v)
	}
	for _, v := range u.Certificates {
		put(route.KindCertificate, v.Key, v)
	}
	for _, v := range u.Policies {
		put(route.KindPolicy, v.Key, v)
	}
}

// checkReferences: what the tables name is there, so that nothing is answered 500 or 503 for a reason of weft's own.
func checkReferences(t *testing.T, u *route.Update) {
	t.Helper()
	there := map[route.Ref]bool{}
	for _, v := range u.Listeners {
		there[route.Ref{Kind: route.KindListener, Key: v.Key}] = true
	}
	for _, v := range u.Backends {
		there[route.Ref{Kind: route.KindBackend, Key: v.Key}] = true
	}
	for _, v := range u.Endpoints {
		there[route.Ref{Kind: route.KindEndpointSet, Key: v.Key}] = true
	}
	for _, v := range u.Certificates {
		there[route.Ref{Kind: route.KindCertificate, Key: v.Key}] = true
	}
	for _, v := range u.Policies {
		there[route.Ref{Kind: route.KindPolicy, Key: v.Key}] = true
	}
	need := func(by string, kind route.Kind, keys ...string) {
		for _, k := range keys {
			if k != "" && !there[route.Ref{Kind: kind, Key: k}] {
				t.Fatalf("%s names %s %s, which is not there", by, kind, k)
			}
		}
	}
	for _, l := range u.Listeners {
		if l.TLS != nil {
			need(l.Key, route.KindCertificate, l.TLS.Certificates...)
		}
	}
	for _, b := range u.Backends {
		need(b.Key, route.KindEndpointSet, b.Endpoints)
		if b.TLS != nil {
			need(b.Key, route.KindCertificate, b.TLS.ClientCertificate)
		}
	}
	for _, p := range u.Policies {
		if p.ExternalAuth != nil {
			need(p.Key, route.KindBackend, p.ExternalAuth.Backend)
		}
		if p.ErrorPages != nil {
			need(p.Key, route.KindBackend, p.ErrorPages.Backend)
		}
	}
	for i := range u.Routes {
		r := &u.Routes[i]
		need(r.Key, route.KindPolicy, r.Policies...)
		for _, p := range r.Parents {
			need(r.Key, route.KindListener, p.Listener)
		}
		for _, rule := range r.Rules {
			need(r.Key, route.KindPolicy, rule.Policies...)
			for _, b := range rule.Backends {
				need(r.Key, route.KindBackend, b.Backend)
			}
			for _, f := range rule.Filters {
				if f.Mirror != nil {
					need(r.Key, route.KindBackend, f.Mirror.Backend)
				}
			}
		}
		if _, errs := route.Entries(r, func(int) any { return nil }); len(errs) > 0 {
			t.Fatalf("%s: %v", r.Key, errs)
		}
	}
}

// Whatever the order of changes, what they add up to is what a State makes that sees everything at once; and the updates
// add up to the same.
func TestChangesAddUp(t *testing.T) {
	certs := []*model.Secret{certificate(t, "", "", "a.example.com", "b.example.com"), certificate(t, "", "", "*.example.com")}
	opts := both
	opts.Config = model.Name{Namespace: "weft", Name: "ingress"}
	opts.DefaultCertificate = model.Name{Namespace: "shop", Name: "s1"}
	opts.Fallback = &route.Certificate{Key: "weft/fallback", Chain: "-", PrivateKey: "-"}
	for seed := range uint64(25) {
		w := &world{r: mathrand.New(mathrand.NewPCG(seed, 1)), certs: certs, now: nothing()}
		s := ingress.New(opts)
		gateway := replica{}
		told := map[string]int{}
		for step := range 40 {
			c := nothing()
			for range 1 + w.r.IntN(3) {
				w.step(&c)
			}
			out := s.Apply(&c)
			gateway.apply(t, out.Update)
			for _, e := range out.Events {
				told[e.Message]++
			}
			fresh := ingress.New(opts)
			want := fresh.Apply(&w.now)
			if want.Update != nil {
				want.Update.Complete = true
			}
			a, b := marshal(t, s.Complete()), marshal(t, fresh.Complete())
			if d := cmp.Diff(string(b), string(a)); d != "" {
				t.Fatalf("seed %d, step %d is not what comes of the whole at once (-want +got):\n%s", seed, step, d)
			}
			whole := replica{}
			whole.apply(t, s.Complete())
			for r, v := range whole {
				if gateway[r] != v {
					t.Fatalf("seed %d, step %d: the updates make %v\n%s\nand not\n%s", seed, step, r, gateway[r], v)
				}
			}
			if len(gateway) != len(whole) {
				t.Fatalf("seed %d, step %d: the updates leave %d resources, there are %d", seed, step, len(gateway), len(whole))
			}
			checkReferences(t, s.Complete())
			for n, i := range w.now.Ingresses {
				if i == nil {
					continue
				}
				x, y := fmt.Sprint(s.Problems(n)), fmt.Sprint(fresh.Problems(n))
				if x != y {
					t.Fatalf("seed %d, step %d: problems of %s: %s, want %s", seed, step, n, x, y)
				}
			}
		}
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// cluster is a cluster of n hosts.
func cluster(n int) *ingress.Changes {
	c := nothing()
	c.Classes["weft"] = &model.IngressClass{Meta: model.Meta{Name: model.Name{Name: "weft"}}, Controller: ingress.Controller}
	for k := range n {
		name := model.Name{Namespace: "shop", Name: fmt.Sprint("app", k)}
		c.Services[name] = &model.Service{Meta: model.Meta{Name: name}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
		c.EndpointSlices[name] = slice(k, 1)
		c.Ingresses[name] = &model.Ingress{
			Meta: model.Meta{Name: name, UID: fmt.Sprint(k)}, Class: "weft",
			Rules: []model.IngressRule{{Host: fmt.Sprintf("app%d.example.com", k), Paths: []model.IngressPath{
				{Path: "/", Type: model.IngressPrefix, Backend: model.IngressBackend{Service: name.Name, Port: 80}},
			}}},
		}
	}
	return &c
}

func slice(k, n int) *model.EndpointSlice {
	name := model.Name{Namespace: "shop", Name: fmt.Sprint("app", k)}
	s := &model.EndpointSlice{Meta: model.Meta{Name: name}, Service: name.Name, Family: model.IPv4, Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for i := range n {
		s.Endpoints = append(s.Endpoints, model.Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(k >> 8), byte(k), byte(i + 1)})}, Ready: true, Serving: true})
	}
	return s
}

// One change makes one small update, however many Ingresses there are.
func TestOneChangeIsSmall(t *testing.T) {
	s := ingress.New(ingress.Options{})
	s.Apply(cluster(300))
	c := nothing()
	c.EndpointSlices[model.Name{Namespace: "shop", Name: "app7"}] = slice(7, 3)
	u := s.Apply(&c).Update
	if u == nil || len(u.Endpoints) != 1 || len(u.Endpoints[0].Endpoints) != 3 || len(u.Routes)+len(u.Listeners)+len(u.Backends)+len(u.Policies)+len(u.Removed) != 0 {
		t.Errorf("an EndpointSlice's change: %+v", u)
	}
	c = nothing()
	i := *cluster(8).Ingresses[model.Name{Namespace: "shop", Name: "app7"}]
	i.Annotations = map[string]string{ingress.Prefix + "proxy-body-size": "8m"}
	c.Ingresses[i.Name] = &i
	u = s.Apply(&c).Update
	if u == nil || len(u.Policies) != 1 || *u.Policies[0].MaxRequestBody != 8<<20 || len(u.Routes)+len(u.Listeners)+len(u.Backends)+len(u.Endpoints)+len(u.Removed) != 0 {
		t.Errorf("an annotation's change: %+v", u)
	}
	c = nothing()
	c.Ingresses[i.Name] = nil
	u = s.Apply(&c).Update
	kinds := map[route.Kind]int{}
	for _, r := range u.Removed {
		kinds[r.Kind]++
	}
	if kinds[route.KindRoute] != 1 || kinds[route.KindListener] != 2 || kinds[route.KindBackend] != 1 || kinds[route.KindPolicy] != 1 ||
		slices.ContainsFunc(u.Routes, func(r route.Route) bool { return r.Key != "Ingress/-/_" }) {
		t.Errorf("an Ingress that goes: %+v", u)
	}
}

func BenchmarkEndpointSliceOf3000Ingresses(b *testing.B) {
	s := ingress.New(ingress.Options{})
	s.Apply(cluster(3000))
	n := 0
	for b.Loop() {
		n++
		c := ingress.Changes{EndpointSlices: map[model.Name]*model.EndpointSlice{{Namespace: "shop", Name: "app7"}: slice(7, 1+n%2)}}
		s.Apply(&c)
	}
}

func BenchmarkIngressOf3000(b *testing.B) {
	s := ingress.New(ingress.Options{})
	s.Apply(cluster(3000))
	i := cluster(8).Ingresses[model.Name{Namespace: "shop", Name: "app7"}]
	n := 0
	for b.Loop() {
		n++
		v := *i
		v.Rules = slices.Clone(i.Rules)
		v.Rules[0].Paths = []model.IngressPath{i.Rules[0].Paths[0]}
		v.Rules[0].Paths[0].Path = fmt.Sprint("/", n%2)
		s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{v.Name: &v}})
	}
}

func BenchmarkAllOf3000Ingresses(b *testing.B) {
	c := cluster(3000)
	for b.Loop() {
		ingress.New(ingress.Options{}).Apply(c)
	}
}
