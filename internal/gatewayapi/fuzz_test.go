// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// Objects may be anything: manifests were checked by no API server, and newer APIs have values that this one does not
// know. Whatever comes, nothing breaks and the tables stay whole.
func FuzzApply(f *testing.F) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, doc := range strings.Split("\n"+string(text), "\n---\n") {
			if raw, err := yaml.YAMLToJSON([]byte(doc)); err == nil {
				f.Add(raw)
			}
		}
	}
	var base []*Change
	for _, name := range []string{"listenersets", "backendtls", "layer4", "grpc", "policies"} {
		base = append(base, readObjects(f, "testdata/golden/"+name+".yaml"))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := emptyChange()
		if !c.addLoosely(raw) {
			return // not an object
		}
		s := New(Options{})
		for _, b := range base {
			s.Apply(b)
		}
		s.Apply(c)
		whole(t, s)
		gone := emptyChange()
		for _, p := range pieces(c, 1) {
			p.put(gone, false)
		}
		s.Apply(gone)
		whole(t, s)
	})
}

// addLoosely reads an object of the API as it comes, unknown fields and all.
func (c *Change) addLoosely(raw []byte) bool {
	var head struct {
		Kind     string
		Metadata struct{ Namespace, Name string }
	}
	if json.Unmarshal(raw, &head) != nil {
		return false
	}
	n := model.Name{Namespace: head.Metadata.Namespace, Name: head.Metadata.Name}
	v := NewObject(head.Kind)
	return v != nil && json.Unmarshal(raw, v) == nil && c.Set(head.Kind, n, v)
}

// whole checks that the tables of every Gateway have all that they name, and nothing that is of no use.
func whole(t *testing.T, s *State) {
	t.Helper()
	for name := range s.gateways {
		u := s.Tables(name)
		have, used := map[route.Ref]bool{}, map[route.Ref]bool{}
		use := func(kind route.Kind, key string) {
			if key != "" {
				used[route.Ref{Kind: kind, Key: key}] = true
			}
		}
		filters := func(fs []route.Filter) {
			for _, f := range fs {
				if f.Mirror != nil {
					use(route.KindBackend, f.Mirror.Backend)
				}
				if f.ExternalAuth != nil {
					use(route.KindBackend, f.ExternalAuth.Backend)
				}
			}
		}
		for i := range u.Listeners {
			l := &u.Listeners[i]
			have[route.Ref{Kind: route.KindListener, Key: l.Key}] = true
			filters(l.Filters)
			if l.TLS != nil {
				for _, c := range l.TLS.Certificates {
					use(route.KindCertificate, c)
				}
			}
		}
		for i := range u.Routes {
			if len(u.Routes[i].Parents) == 0 {
				t.Errorf("Gateway %s: %s has no listener", name, u.Routes[i].Key)
			}
			for _, p := range u.Routes[i].Parents {
				if !have[route.Ref{Kind: route.KindListener, Key: p.Listener}] {
					t.Errorf("Gateway %s: %s names listener %s, which is not there", name, u.Routes[i].Key, p.Listener)
				}
			}
			for _, r := range u.Routes[i].Rules {
				filters(r.Filters)
				for _, b := range r.Backends {
					use(route.KindBackend, b.Backend)
					filters(b.Filters)
				}
			}
		}
		for i := range u.Policies {
			if a := u.Policies[i].ExternalAuth; a != nil {
				use(route.KindBackend, a.Backend)
			}
		}
		for i := range u.Backends {
			have[route.Ref{Kind: route.KindBackend, Key: u.Backends[i].Key}] = true
			use(route.KindEndpointSet, u.Backends[i].Endpoints)
			if u.Backends[i].TLS != nil {
				use(route.KindCertificate, u.Backends[i].TLS.ClientCertificate)
			}
		}
		if c := s.gateways[name].clientCert; c != "" {
			use(route.KindCertificate, c)
		}
		for i := range u.Endpoints {
			have[route.Ref{Kind: route.KindEndpointSet, Key: u.Endpoints[i].Key}] = true
		}
		for i := range u.Certificates {
			have[route.Ref{Kind: route.KindCertificate, Key: u.Certificates[i].Key}] = true
		}
		for r := range used {
			if !have[r] {
				t.Errorf("Gateway %s: %s %s is named and not there", name, r.Kind, r.Key)
			}
		}
		for r := range have {
			if !used[r] && r.Kind != route.KindListener && r.Kind != route.KindCertificate {
				t.Errorf("Gateway %s: %s %s is of no use", name, r.Kind, r.Key)
			}
		}
	}
}
