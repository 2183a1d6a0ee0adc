// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

func name(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }

// simple is an Ingress of a host, with path "/".
func simple(n, class, host string) *model.Ingress {
	return &model.Ingress{
		Meta: model.Meta{Name: name(n), UID: "uid-" + n}, Class: class,
		Rules: []model.IngressRule{{Host: host, Paths: []model.IngressPath{{Path: "/", Type: model.IngressPrefix, Backend: model.IngressBackend{Service: "cart", Port: 80}}}}},
	}
}

func TestWhoseIngress(t *testing.T) {
	annotated := func(value string) *model.Ingress {
		i := simple("x", "", "x.test")
		i.Annotations = map[string]string{"kubernetes.io/ingress.class": value}
		return i
	}
	class := func(controller string, isDefault bool) *model.IngressClass {
		return &model.IngressClass{Controller: controller, Default: isDefault}
	}
	for _, c := range []struct {
		name    string
		opts    ingress.Options
		classes map[string]*model.IngressClass
		ing     *model.Ingress
		ours    bool
	}{
		{"our class", ingress.Options{}, nil, simple("x", "weft", "x.test"), true},
		{"another's class", ingress.Options{}, nil, simple("x", "other", "x.test"), false},
		{"a class that is not there", ingress.Options{}, nil, simple("x", "missing", "x.test"), false},
		{"ingress-nginx's, not taken over", ingress.Options{}, nil, simple("x", "nginx", "x.test"), false},
		{"ingress-nginx's, taken over", both, nil, simple("x", "nginx", "x.test"), true},
		{"the annotation, by a class's name", ingress.Options{}, nil, annotated("weft"), true},
		{"the annotation, another's", ingress.Options{}, nil, annotated("other"), false},
		{"the annotation nginx, not taken over", ingress.Options{}, nil, annotated("nginx"), false},
		{"the annotation nginx without a class of the name", both, map[string]*model.IngressClass{"nginx": nil}, annotated("nginx"), true},
		{"no class", ingress.Options{}, nil, simple("x", "", "x.test"), false},
		{"no class, all wanted", ingress.Options{WithoutClass: true}, nil, simple("x", "", "x.test"), true},
		{"no class, ours is the default", ingress.Options{}, map[string]*model.IngressClass{"weft": class(ingress.Controller, true)}, simple("x", "", "x.test"), true},
		{"no class, another's is the default", ingress.Options{}, map[string]*model.IngressClass{"other": class("example.com/other", true)}, simple("x", "", "x.test"), false},
		{"no class, two are", ingress.Options{}, map[string]*model.IngressClass{"weft": class(ingress.Controller, true), "other": class("example.com/other", true)}, simple("x", "", "x.test"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := changes(t, "base", []byte(base))
			for n, v := range c.classes {
				if v != nil {
					v.Name.Name = n
				}
				ch.Classes[n] = v
			}
			ch.Ingresses[c.ing.Name] = c.ing
			s := ingress.New(c.opts)
			s.Apply(ch)
			served, _ := s.Count()
			if (served == 1) != c.ours {
				t.Errorf("ours is %v, want %v", served == 1, c.ours)
			}
		})
	}
}

func TestStatuses(t *testing.T) {
	here := []model.IngressAddress{{IP: "172.30.0.200"}, {Hostname: "lb.test"}}
	s := ingress.New(both)
	c := changes(t, "base", []byte(base))
	c.Ingresses[name("a")], c.Ingresses[name("b")] = simple("a", "weft", "a.test"), simple("b", "other", "b.test")
	if out := s.Apply(c); len(out.Statuses) != 0 {
		t.Errorf("statuses before there is an address: %+v", out.Statuses)
	}
	c = &ingress.Changes{Addresses: &here}
	out := s.Apply(c)
	if len(out.Statuses) != 1 || out.Statuses[0].Name != name("a") || out.Statuses[0].UID != "uid-a" || len(out.Statuses[0].Addresses) != 2 {
		t.Fatalf("statuses with an address: %+v", out.Statuses)
	}
	shown := simple("a", "weft", "a.test")
	shown.Status = here
	if out := s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{name("a"): shown}}); len(out.Statuses) != 0 {
		t.Errorf("one that shows the addresses is written again: %+v", out.Statuses)
	}
	overwritten := *shown
	overwritten.Status = here[:1]
	if out := s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{name("a"): &overwritten}}); len(out.Statuses) != 1 {
		t.Errorf("one that somebody else wrote is left: %+v", out.Statuses)
	}
	moved := *shown
	moved.Class = "other"
	out = s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{name("a"): &moved}})
	if len(out.Statuses) != 1 || len(out.Statuses[0].Addresses) != 0 {
		t.Errorf("an Ingress that left keeps our addresses: %+v", out.Statuses)
	}
}

func TestEventsAreToldOnce(t *testing.T) {
	s := ingress.New(both)
	c := changes(t, "base", []byte(base))
	bad := simple("a", "weft", "a.test")
	bad.Annotations = map[string]string{ingress.Prefix + "proxy-body-size": "huge"}
	c.Ingresses[bad.Name] = bad
	if out := s.Apply(c); len(out.Events) != 1 || !out.Events[0].Warning || out.Events[0].UID != "uid-a" || out.Events[0].Reason != "InvalidAnnotation" {
		t.Fatalf("events: %+v", out.Events)
	}
	again := *bad
	again.Generation = 2
	if out := s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{bad.Name: &again}}); len(out.Events) != 0 {
		t.Errorf("told again: %+v", out.Events)
	}
	good := *bad
	good.Annotations = nil
	s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{bad.Name: &good}})
	if out := s.Apply(&ingress.Changes{Ingresses: map[model.Name]*model.Ingress{bad.Name: bad}}); len(out.Events) != 1 {
		t.Errorf("a problem that came again: %+v", out.Events)
	}
}

func TestCertificatesOfHosts(t *testing.T) {
	opts := both
	opts.DefaultCertificate = model.Name{Namespace: "weft", Name: "default"}
	opts.Fallback = &route.Certificate{Key: "weft/fallback"}
	s := ingress.New(opts)
	c := changes(t, "base", []byte(base))
	add := func(sec *model.Secret) { c.Secrets[sec.Name] = sec }
	add(certificate(t, "shop", "wild", "*.example.com"))
	add(certificate(t, "shop", "exact", "a.example.com"))
	with := func(n, host, secret string, hosts ...string) {
		i := simple(n, "weft", host)
		i.TLS = []model.IngressTLS{{Hosts: hosts, Secret: secret}}
		c.Ingresses[i.Name] = i
	}
	with("exact", "a.example.com", "exact", "a.example.com")
	with("by-name", "b.example.com", "wild", "*.example.com") // listed as the wildcard: the certificate is for it
	with("wrong", "a.test", "exact", "a.test")
	with("gone", "b.test", "no-such", "b.test")
	with("empty", "c.test", "", "c.test")
	with("loose", "", "wild", "loose.example.com")
	c.Ingresses[name("plain")] = simple("plain", "weft", "plain.test")
	expect := func(want map[string]string) {
		t.Helper()
		for _, l := range s.Complete().Listeners {
			if w, ok := want[l.Hostname]; ok && l.TLS != nil {
				if got := strings.Join(l.TLS.Certificates, ","); got != w {
					t.Errorf("%s is served with %q, want %q", l.Hostname, got, w)
				}
				delete(want, l.Hostname)
			}
		}
		if len(want) > 0 {
			t.Errorf("no listeners for %v", want)
		}
	}
	s.Apply(c)
	expect(map[string]string{
		"a.example.com": "shop/exact", "b.example.com": "shop/wild", "a.test": "shop/exact", "b.test": "weft/fallback", "c.test": "weft/fallback",
		"loose.example.com": "shop/wild", "plain.test": "weft/fallback", "": "weft/fallback",
	})
	if p := fmt.Sprint(s.Problems(name("wrong"))); !strings.Contains(p, "not for a.test") {
		t.Errorf("a certificate for another name: %s", p)
	}
	def := certificate(t, "weft", "default", "default.test")
	late := certificate(t, "shop", "no-such", "b.test")
	s.Apply(&ingress.Changes{Secrets: map[model.Name]*model.Secret{def.Name: def, late.Name: late}})
	expect(map[string]string{"plain.test": "weft/default", "": "weft/default", "b.test": "shop/no-such", "c.test": "weft/default"})
	s.Apply(&ingress.Changes{Secrets: map[model.Name]*model.Secret{def.Name: nil, late.Name: nil}})
	expect(map[string]string{"plain.test": "weft/fallback", "b.test": "weft/fallback"})
}

// A younger Ingress's "/" of whatever type goes before the 404 of the host's oldest.
func TestTheDefaultIsNoRule(t *testing.T) {
	for _, kind := range []model.IngressPathType{model.IngressPrefix, model.IngressImplementationSpecific} {
		s := ingress.New(both)
		c := changes(t, "base", []byte(base))
		old := simple("old", "weft", "x.test")
		old.Created, old.Rules[0].Paths[0].Path = 1, "/only"
		young := simple("young", "weft", "x.test")
		young.Created, young.Rules[0].Paths[0].Type = 2, kind
		c.Ingresses[old.Name], c.Ingresses[young.Name] = old, young
		s.Apply(c)
		for _, r := range s.Complete().Routes {
			for _, rule := range r.Rules {
				if rule.Respond == 404 && r.Key != "Ingress/-/_" {
					t.Errorf("%s: %s answers 404 beside %s's path /", kind, r.Key, young.Name)
				}
			}
		}
	}
}

// What concerns the gateway as a whole has no effect in a class's ConfigMap, and that is said.
func TestConfigOfAClass(t *testing.T) {
	opts := both
	opts.Config = model.Name{Namespace: "weft", Name: "ingress"}
	s := ingress.New(opts)
	c := changes(t, "base", []byte(base))
	own := model.Name{Namespace: "shop", Name: "tuned"}
	c.Classes["tuned"] = &model.IngressClass{Meta: model.Meta{Name: model.Name{Name: "tuned"}}, Controller: ingress.Controller,
		Parameters: &model.IngressParameters{Kind: "ConfigMap", Namespace: "shop", Name: "tuned"}}
	c.Classes["odd"] = &model.IngressClass{Meta: model.Meta{Name: model.Name{Name: "odd"}}, Controller: ingress.Controller,
		Parameters: &model.IngressParameters{Group: "example.com", Kind: "Parameters", Name: "tuned"}}
	c.ConfigMaps[own] = &model.ConfigMap{Meta: model.Meta{Name: own}, Data: map[string]string{"proxy-body-size": "2m", "use-http2": "false"}}
	c.Ingresses[name("a")], c.Ingresses[name("b")], c.Ingresses[name("c")] = simple("a", "tuned", "a.test"), simple("b", "weft", "b.test"), simple("c", "odd", "c.test")
	s.Apply(c)
	sizes := map[string]int64{}
	for _, p := range s.Complete().Policies {
		if p.MaxRequestBody != nil {
			sizes[p.Key] = *p.MaxRequestBody
		}
	}
	if sizes["Ingress/shop/a"] != 2<<20 || sizes["Ingress/shop/b"] != 1<<20 {
		t.Errorf("body sizes: %v", sizes)
	}
	if p := fmt.Sprint(s.Problems(name("a"))); !strings.Contains(p, "use-http2: this concerns the gateway as a whole") {
		t.Errorf("problems: %s", p)
	}
	if p := fmt.Sprint(s.Problems(name("c"))); !strings.Contains(p, "UnknownParameters") {
		t.Errorf("problems: %s", p)
	}
	changed := &model.ConfigMap{Meta: model.Meta{Name: own}, Data: map[string]string{"proxy-body-size": "3m"}}
	u := s.Apply(&ingress.Changes{ConfigMaps: map[model.Name]*model.ConfigMap{own: changed}}).Update
	if u == nil || len(u.Policies) != 1 || *u.Policies[0].MaxRequestBody != 3<<20 {
		t.Errorf("a changed ConfigMap: %+v", u)
	}
}

// Where client certificates are asked for, plain text is no way around them.
func TestClientCertificatesHaveNoWayAround(t *testing.T) {
	ca := certificate(t, "shop", "clients", "ca.test")
	for verify, around := range map[string]bool{"on": false, "": false, "off": true, "optional": true} {
		s := ingress.New(both)
		c := changes(t, "base", []byte(base))
		c.Secrets[ca.Name] = ca
		i := simple("a", "weft", "a.test")
		i.Annotations = map[string]string{
			ingress.Prefix + "auth-tls-secret": "shop/clients", ingress.Prefix + "auth-tls-verify-client": verify, ingress.Prefix + "ssl-redirect": "false",
		}
		c.Ingresses[i.Name] = i
		s.Apply(c)
		plain := false
		for _, r := range s.Complete().Routes {
			for _, p := range r.Parents {
				for _, rule := range r.Rules {
					plain = plain || p.Listener == "http/a.test" && len(rule.Backends) > 0
				}
			}
		}
		if plain != around {
			t.Errorf("auth-tls-verify-client %q: plain requests reach the backend: %v", verify, plain)
		}
	}
}
