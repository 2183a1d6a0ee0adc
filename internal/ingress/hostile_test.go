// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

// Over plain text nobody has shown a certificate, so nobody may say that he has.
func TestPlainRequestsClaimNoCertificate(t *testing.T) {
	ca := certificate(t, "shop", "clients", "ca.test")
	for _, verify := range []string{"optional", "optional_no_ca"} {
		s := ingress.New(both)
		c := changes(t, "base", []byte(base))
		c.Secrets[ca.Name] = ca
		i := simple("a", "weft", "a.test")
		i.Annotations = map[string]string{
			ingress.Prefix + "auth-tls-secret": "shop/clients", ingress.Prefix + "auth-tls-verify-client": verify, ingress.Prefix + "ssl-redirect": "false",
		}
		c.Ingresses[i.Name] = i
		s.Apply(c)
		served := 0
		for _, r := range s.Complete().Routes {
			if r.Parents[0].Listener != "http/a.test" {
				continue
			}
			for _, rule := range r.Rules {
				if len(rule.Backends) == 0 {
					continue
				}
				served++
				var removed []string
				none := false
				for _, f := range rule.Filters {
					if e := f.RequestHeaders; e != nil {
						removed = append(removed, e.Remove...)
						for _, h := range e.Set {
							none = none || strings.EqualFold(h.Name, "ssl-client-verify") && h.Value == "NONE"
						}
					}
				}
				for _, h := range []string{"ssl-client-cert", "ssl-client-subject-dn", "ssl-client-issuer-dn"} {
					if !slices.Contains(removed, h) {
						t.Errorf("%s: a client may claim %s", verify, h)
					}
				}
				if !none {
					t.Errorf("%s: a client may claim to be verified", verify)
				}
			}
		}
		if served == 0 {
			t.Errorf("%s: nothing is served in plain text", verify)
		}
	}
}

// With use-proxy-protocol, proxy-real-ip-cidr says whose word on clients' addresses counts, as with ingress-nginx.
func TestProxyProtocolIsBelievedOfProxies(t *testing.T) {
	s := ingress.New(ingress.Options{Config: model.Name{Namespace: "weft", Name: "config"}})
	c := changes(t, "base", []byte(base))
	c.ConfigMaps[model.Name{Namespace: "weft", Name: "config"}] = &model.ConfigMap{Meta: model.Meta{Name: model.Name{Namespace: "weft", Name: "config"}},
		Data: map[string]string{"use-proxy-protocol": "true", "proxy-real-ip-cidr": "10.0.0.0/8"}}
	s.Apply(c)
	for _, l := range s.Complete().Listeners {
		if !l.ProxyProtocol || len(l.ProxySources) != 1 || l.ProxySources[0].String() != "10.0.0.0/8" {
			t.Errorf("%s: %v %v", l.Key, l.ProxyProtocol, l.ProxySources)
		}
	}
}
