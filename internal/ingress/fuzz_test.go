// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Whatever an annotation's value is, it makes tables that can be served, or is told.
func FuzzAnnotation(f *testing.F) {
	table := ingress.Annotations()
	for n := range table {
		for _, v := range []string{"true", "10", "off", "/a$1", "https://a.test/$request_uri?x=${host}", "shop/a", "~*^/(.*)$ /$1", "10.0.0.0/8", "200 202 10m, any 1s", "é\n"} {
			f.Add(uint16(n), v)
		}
	}
	f.Fuzz(func(t *testing.T, n uint16, value string) {
		s := serve(t, "", map[string]string{table[int(n)%len(table)].Name: value, "enable-cors": "true", "auth-url": "http://auth.test"})
		checkPolicies(t, s.update)
	})
}

// Whatever the ConfigMap holds.
func FuzzConfigKey(f *testing.F) {
	table := ingress.ConfigKeys()
	for n := range table {
		f.Add(uint16(n), "true")
		f.Add(uint16(n), "shop/errors:80, ~*x(y)")
	}
	f.Fuzz(func(t *testing.T, n uint16, value string) {
		s := ingress.New(ingress.Options{Controllers: both.Controllers, Config: name("config")})
		c := changes(t, "base", []byte(base))
		c.ConfigMaps[name("config")] = &model.ConfigMap{Meta: model.Meta{Name: name("config")}, Data: map[string]string{table[int(n)%len(table)].Name: value}}
		c.Ingresses[name("a")] = simple("a", "weft", "a.test")
		s.Apply(c)
		checkReferences(t, s.Complete())
		checkPolicies(t, s.Complete())
	})
}

// Whatever paths and hosts are.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"/", "", "/a(b", "/a|b", "/a/(?!b)", "/x(/|$)(.*)", "/a/", "no-slash", "/" + strings.Repeat("(a", 50), "/\x00", "/é"} {
		f.Add(p, "*.a.test", uint8(0), true)
		f.Add(p, "a.test", uint8(2), false)
	}
	f.Fuzz(func(t *testing.T, path, host string, kind uint8, regex bool) {
		i := simple("a", "weft", strings.ToLower(host))
		i.Rules[0].Paths[0].Path = path
		i.Rules[0].Paths[0].Type = []model.IngressPathType{model.IngressPrefix, model.IngressExact, model.IngressImplementationSpecific}[kind%3]
		i.Annotations = map[string]string{}
		if regex {
			i.Annotations[ingress.Prefix+"use-regex"] = "true"
		}
		s := ingress.New(both)
		c := changes(t, "base", []byte(base))
		c.Ingresses[i.Name] = i
		s.Apply(c)
		checkReferences(t, s.Complete())
	})
}

// checkPolicies: a policy that can't be enforced says so itself, and templates can be parsed.
func checkPolicies(t *testing.T, u *route.Update) {
	t.Helper()
	shut := map[string]bool{}
	for i := range u.Policies {
		p := &u.Policies[i]
		shut[strings.TrimSuffix(p.Key, "/auth")] = shut[strings.TrimSuffix(p.Key, "/auth")] || p.Invalid != ""
	}
	for i := range u.Policies {
		p := &u.Policies[i]
		if err := p.Check(); err != nil && !shut[strings.TrimSuffix(p.Key, "/auth")] {
			t.Errorf("policy %s: %v", p.Key, err)
		}
	}
	for _, r := range u.Routes {
		for _, rule := range r.Rules {
			for _, f := range rule.Filters {
				var texts []route.Template
				if f.Redirect != nil {
					texts = append(texts, f.Redirect.Location)
				}
				if f.RequestHeaders != nil {
					for _, h := range f.RequestHeaders.SetTemplates {
						texts = append(texts, h.Value)
					}
				}
				if f.Rewrite != nil && f.Rewrite.Path != nil && f.Rewrite.Path.Template != nil {
					texts = append(texts, *f.Rewrite.Path.Template)
				}
				for _, x := range texts {
					if _, err := route.ParseTemplate(x); err != nil {
						t.Errorf("%s: %v", r.Key, err)
					}
				}
			}
		}
	}
}
