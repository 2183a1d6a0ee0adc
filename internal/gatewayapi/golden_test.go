// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/model"
)

// Each file of testdata/golden is objects of a cluster, given at once; what follows from them is in the file beside it.
// Feedback with a high Confirmed is what gateways tell that have confirmed whatever there is.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, in := range files {
		name := strings.TrimSuffix(filepath.Base(in), ".yaml")
		t.Run(name, func(t *testing.T) {
			s := New(Options{ReservedPorts: []uint16{9642}})
			have := newTold()
			have.take(s.Apply(readObjects(t, in)))
			goldentest.Compare(t, strings.TrimSuffix(in, ".yaml")+".txt", string(describe(t, s, have)))
		})
	}
}

// describe writes what was told for people to read.
func describe(t *testing.T, s *State, have *told) []byte {
	var b bytes.Buffer
	for _, name := range sortedNames(have.tables) {
		n := parseName(name)
		u := s.Tables(n)
		for i := range u.Certificates {
			u.Certificates[i].Chain, u.Certificates[i].PrivateKey = "(chain)", "(private key)"
		}
		for i := range u.Listeners {
			if u.Listeners[i].TLS != nil && u.Listeners[i].TLS.Client != nil {
				l := *u.Listeners[i].TLS
				c := *l.Client
				c.CAs = fmt.Sprintf("(%d certificates)", strings.Count(c.CAs, "BEGIN CERTIFICATE"))
				l.Client = &c
				u.Listeners[i].TLS = &l
			}
		}
		for i := range u.Backends {
			if u.Backends[i].TLS != nil {
				c := *u.Backends[i].TLS
				if c.CAs != "" {
					c.CAs = fmt.Sprintf("(%d certificates)", strings.Count(c.CAs, "BEGIN CERTIFICATE"))
				}
				u.Backends[i].TLS = &c
			}
		}
		section(t, &b, "tables of Gateway "+name, u)
	}
	for _, name := range sortedNames(have.infra) {
		section(t, &b, "infrastructure of Gateway "+name, have.infra[parseName(name)])
	}
	conditions := func(indent string, cs []metav1.Condition) {
		for _, c := range cs {
			fmt.Fprintf(&b, "%s%s=%s %s: %s\n", indent, c.Type, c.Status, c.Reason, c.Message)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.classes)) {
		st := have.classes[name]
		fmt.Fprintf(&b, "== status of GatewayClass %s\n", name)
		conditions("", st.Conditions)
		fmt.Fprintf(&b, "supportedFeatures: %d\nin use: %t\n", len(st.SupportedFeatures), have.inUse[name])
	}
	for _, name := range sortedNames(have.gateways) {
		st := have.gateways[parseName(name)]
		fmt.Fprintf(&b, "== status of Gateway %s\n", name)
		conditions("", st.Conditions)
		for _, a := range st.Addresses {
			fmt.Fprintf(&b, "address: %s %s\n", *a.Type, a.Value)
		}
		if st.AttachedListenerSets != nil {
			fmt.Fprintf(&b, "attachedListenerSets: %d\n", *st.AttachedListenerSets)
		}
		for _, l := range st.Listeners {
			fmt.Fprintf(&b, "listener %s: attachedRoutes %d, supportedKinds", l.Name, l.AttachedRoutes)
			for _, k := range l.SupportedKinds {
				fmt.Fprintf(&b, " %s", k.Kind)
			}
			fmt.Fprintln(&b)
			conditions("  ", l.Conditions)
		}
	}
	for _, name := range sortedNames(have.sets) {
		st := have.sets[parseName(name)]
		fmt.Fprintf(&b, "== status of ListenerSet %s\n", name)
		conditions("", st.Conditions)
		for _, l := range st.Listeners {
			fmt.Fprintf(&b, "listener %s: attachedRoutes %d, supportedKinds", l.Name, l.AttachedRoutes)
			for _, k := range l.SupportedKinds {
				fmt.Fprintf(&b, " %s", k.Kind)
			}
			fmt.Fprintln(&b)
			conditions("  ", l.Conditions)
		}
	}
	for _, id := range sortedNames(have.routes) {
		fmt.Fprintf(&b, "== status of %s\n", id)
		for r, parents := range have.routes {
			if r.String() != id {
				continue
			}
			for _, p := range parents {
				ref, err := yaml.Marshal(p.ParentRef)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "parent %s\n", strings.Join(strings.Fields(string(ref)), " "))
				conditions("  ", p.Conditions)
			}
		}
	}
	for _, name := range sortedNames(have.policies) {
		fmt.Fprintf(&b, "== status of BackendTLSPolicy %s\n", name)
		for _, a := range have.policies[parseName(name)] {
			fmt.Fprintf(&b, "ancestor %s/%s\n", *a.AncestorRef.Namespace, a.AncestorRef.Name)
			conditions("  ", a.Conditions)
		}
	}
	return b.Bytes()
}

func section(t *testing.T, b *bytes.Buffer, title string, v any) {
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(b, "== %s\n%s", title, text)
}

func parseName(s string) model.Name {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		return model.Name{Name: s}
	}
	return model.Name{Namespace: ns, Name: name}
}
