// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// piece is one object of a Change: put sets it, or with false removes it.
type piece struct {
	id  string
	put func(c *Change, present bool)
}

// pieces takes a Change apart. Objects of the same name in different files are variants of each other, with generations
// of their own as in a cluster. What is not known of an object comes and goes with it.
func pieces(c *Change, generation int64) (out []piece) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() != reflect.Map || v.Type().Field(i).Name == "Unknown" {
			continue
		}
		for _, k := range f.MapKeys() {
			val := f.MapIndex(k)
			if fb, ok := val.Interface().(*Feedback); ok && fb.Confirmed > 0 {
				fb.Confirmed = 1 << 40 // serials depend on the way, what follows must not
			}
			var key model.ObjectKey
			if o, ok := val.Interface().(metav1.Object); ok {
				o.SetGeneration(generation)
				key = model.ObjectKey{Kind: val.Type().Elem().Name(), Namespace: o.GetNamespace(), Name: o.GetName()}
			}
			unknown := c.Unknown[key]
			out = append(out, piece{
				id: fmt.Sprintf("%s %#v", v.Type().Field(i).Name, k.Interface()),
				put: func(c *Change, present bool) {
					if key.Kind != "" {
						c.Unknown[key] = nil
					}
					if present {
						if len(unknown) > 0 {
							c.Unknown[key] = unknown
						}
						reflect.ValueOf(c).Elem().Field(i).SetMapIndex(k, val)
					} else {
						reflect.ValueOf(c).Elem().Field(i).SetMapIndex(k, reflect.Zero(val.Type()))
					}
				},
			})
		}
	}
	return out
}

// Whatever the order in which objects come, change and go, what was told adds up to what follows from the objects
// that are there.
func TestIncremental(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var pool []piece
	for i, f := range files {
		pool = append(pool, pieces(readObjects(t, f), int64(i+1))...)
	}
	slices.SortFunc(pool, func(a, b piece) int { return cmpString(a.id, b.id) })
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s, have := New(Options{}), newTold()
			there := map[string]piece{}
			for step := range 60 {
				c := emptyChange()
				gone := map[string]bool{}
				for range 1 + rnd.IntN(12) {
					p := pool[rnd.IntN(len(pool))]
					if rnd.IntN(5) == 0 {
						if _, is := there[p.id]; is {
							p.put(c, false)
							delete(there, p.id)
							gone[p.id] = true
						}
						continue
					}
					p.put(c, true)
					there[p.id] = p
					delete(gone, p.id)
				}
				have.take(s.Apply(c))
				have.forget(c)
				if step%6 != 5 {
					continue
				}
				fresh, all, want := New(Options{}), emptyChange(), newTold()
				for _, p := range there {
					p.put(all, true)
				}
				want.take(fresh.Apply(all))
				if d := cmp.Diff(want.clean(s), have.clean(s), addresses); d != "" {
					t.Fatalf("step %d: what was told is not what follows from what is there (-want +got):\n%s", step, d)
				}
				whole(t, s)
				for name := range have.tables {
					got := map[route.Ref]any{}
					apply(got, s.Tables(name))
					if d := cmp.Diff(have.tables[name], got, addresses); d != "" {
						t.Fatalf("step %d: the updates of Gateway %s do not add up to its tables:\n%s", step, name, d)
					}
				}
			}
		})
	}
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// forget drops the statuses of objects that are gone: nothing is told of them.
func (t *told) forget(c *Change) {
	for n, v := range c.GatewayClasses {
		if v == nil || v.Spec.ControllerName != ControllerName {
			delete(t.classes, n)
			delete(t.inUse, n)
		}
	}
	for n, v := range c.ListenerSets {
		if v == nil {
			delete(t.sets, n)
		}
	}
	for n, v := range c.BackendTLSPolicies {
		if v == nil {
			delete(t.policies, n)
		}
	}
	drop := func(kind route.RouteKind, n model.Name, gone bool) {
		if gone {
			delete(t.routes, RouteID{kind, n})
		}
	}
	for n, v := range c.HTTPRoutes {
		drop(route.HTTPRoute, n, v == nil)
	}
	for n, v := range c.GRPCRoutes {
		drop(route.GRPCRoute, n, v == nil)
	}
	for n, v := range c.TLSRoutes {
		drop(route.TLSRoute, n, v == nil)
	}
	for n, v := range c.TCPRoutes {
		drop(route.TCPRoute, n, v == nil)
	}
	for n, v := range c.UDPRoutes {
		drop(route.UDPRoute, n, v == nil)
	}
}

// clean gives what was told without what makes no difference: empty lists of entries, and ListenerSets whose Gateway
// is not ours any more, of which only he who saw it tells something.
func (t *told) clean(s *State) map[string]any {
	sets := map[string]any{}
	for n, st := range t.sets {
		if s.gateways[s.listenerSets[n].gateway] != nil {
			sets[n.String()] = st
		}
	}
	routes := map[string]any{}
	for id, s := range t.routes {
		if len(s) > 0 {
			routes[id.String()] = s
		}
	}
	policies := map[string]any{}
	for n, s := range t.policies {
		if len(s) > 0 {
			policies[n.String()] = s
		}
	}
	tables := map[model.Name]map[route.Ref]any{}
	for n, m := range t.tables {
		if len(m) > 0 {
			tables[n] = m
		}
	}
	return map[string]any{"tables": tables, "infrastructure": t.infra, "classes": t.classes, "gateways": t.gateways,
		"sets": sets, "routes": routes, "policies": policies, "in use": t.inUse}
}

// A status that somebody else changed is told again, and one that says what was told is not.
func TestStatusIsToldAgain(t *testing.T) {
	c := readObjects(t, "testdata/golden/backendtls.yaml")
	more := readObjects(t, "testdata/golden/listenersets.yaml")
	for n, ls := range more.ListenerSets {
		c.ListenerSets[n] = ls
	}
	c.Gateways[model.Name{Namespace: "infra", Name: "closed"}] = more.Gateways[model.Name{Namespace: "infra", Name: "closed"}]
	for _, r := range c.HTTPRoutes {
		r.Generation = 3
	}
	s := New(Options{})
	first := s.Apply(c)
	written := emptyChange()
	foreign := metav1.Condition{Type: "example.com/Foreign", Status: metav1.ConditionTrue}
	write := func(in []metav1.Condition) []metav1.Condition {
		out := []metav1.Condition{foreign}
		for _, c := range in {
			c.LastTransitionTime = metav1.Now()
			out = append(out, c)
		}
		return out
	}
	for n, st := range first.ClassStatuses {
		o := c.GatewayClasses[n].DeepCopy()
		st.DeepCopyInto(&o.Status)
		o.Status.Conditions = write(o.Status.Conditions)
		written.GatewayClasses[n] = o
	}
	for n, st := range first.GatewayStatuses {
		o := c.Gateways[n].DeepCopy()
		st.DeepCopyInto(&o.Status)
		o.Status.Conditions = write(o.Status.Conditions)
		written.Gateways[n] = o
	}
	for n, st := range first.ListenerSetStatuses {
		o := c.ListenerSets[n].DeepCopy()
		st.DeepCopyInto(&o.Status)
		o.Status.Conditions = write(o.Status.Conditions)
		written.ListenerSets[n] = o
	}
	for id, parents := range first.RouteStatuses {
		o := c.HTTPRoutes[id.Name]
		if o == nil {
			continue
		}
		o = o.DeepCopy()
		o.Status.Parents = []gwv1.RouteParentStatus{{ControllerName: "example.com/other"}}
		for _, p := range parents {
			p.Conditions = write(p.Conditions)
			o.Status.Parents = append(o.Status.Parents, p)
		}
		written.HTTPRoutes[id.Name] = o
	}
	for n, ancestors := range first.PolicyStatuses {
		o := c.BackendTLSPolicies[n].DeepCopy()
		for _, a := range ancestors {
			a.Conditions = write(a.Conditions)
			o.Status.Ancestors = append(o.Status.Ancestors, a)
		}
		written.BackendTLSPolicies[n] = o
	}
	if len(written.GatewayClasses)*len(written.Gateways)*len(written.ListenerSets)*len(written.HTTPRoutes)*len(written.BackendTLSPolicies) == 0 {
		t.Fatal("the objects do not have a status of every kind")
	}
	if out := s.Apply(written); statuses(out) > 0 || len(out.Gateways) > 0 {
		t.Errorf("told again though the objects say it: %+v", out)
	}
	spoiled := emptyChange()
	for n, o := range written.GatewayClasses {
		o = o.DeepCopy()
		o.Status.Conditions[1].Reason = "Spoiled"
		spoiled.GatewayClasses[n] = o
	}
	for n, o := range written.Gateways {
		o = o.DeepCopy()
		o.Status.Listeners = nil
		spoiled.Gateways[n] = o
	}
	for n, o := range written.ListenerSets {
		o = o.DeepCopy()
		o.Status.Conditions = o.Status.Conditions[:1]
		spoiled.ListenerSets[n] = o
	}
	for n, o := range written.HTTPRoutes {
		o = o.DeepCopy()
		o.Status.Parents[1].Conditions = append(o.Status.Parents[1].Conditions, metav1.Condition{Type: string(gwv1.RouteConditionPartiallyInvalid)})
		spoiled.HTTPRoutes[n] = o
	}
	for n, o := range written.BackendTLSPolicies {
		o = o.DeepCopy()
		o.Status.Ancestors = append(o.Status.Ancestors, gwv1.PolicyAncestorStatus{ControllerName: ControllerName})
		spoiled.BackendTLSPolicies[n] = o
	}
	want, got := statuses(&Output{ClassStatuses: first.ClassStatuses, GatewayStatuses: first.GatewayStatuses,
		ListenerSetStatuses: first.ListenerSetStatuses, PolicyStatuses: first.PolicyStatuses})+len(written.HTTPRoutes), s.Apply(spoiled)
	if n := statuses(got); n != want {
		t.Errorf("%d statuses were told again, want %d", n, want)
	}
	if out := s.Apply(written); statuses(out) > 0 {
		t.Errorf("told though the objects say it again: %+v", out)
	}
}

func statuses(o *Output) int {
	return len(o.ClassStatuses) + len(o.GatewayStatuses) + len(o.ListenerSetStatuses) + len(o.RouteStatuses) + len(o.PolicyStatuses)
}

// A Gateway is programmed only when its pods have confirmed the listeners as they are.
func TestProgrammedWaitsForConfirmation(t *testing.T) {
	c := readObjects(t, "testdata/golden/http.yaml")
	web := model.Name{Namespace: "infra", Name: "web"}
	addresses := c.Feedback[web].Addresses
	delete(c.Feedback, web)
	s, have := New(Options{}), newTold()
	programmed := func() bool {
		st := have.gateways[web]
		g, l := find(st.Conditions, "Programmed"), find(st.Listeners[0].Conditions, "Programmed")
		if g.Status != l.Status {
			t.Errorf("the Gateway's Programmed is %s, its listener's %s", g.Status, l.Status)
		}
		return g.Status == metav1.ConditionTrue
	}
	out := s.Apply(c)
	have.take(out)
	serial := out.Gateways[web].Serial
	confirm := func(n uint64) {
		have.take(s.Apply(&Change{Feedback: map[model.Name]*Feedback{web: {Addresses: addresses, Confirmed: n}}}))
	}
	if programmed() {
		t.Error("programmed without any feedback")
	}
	confirm(0)
	if programmed() {
		t.Error("programmed without confirmation")
	}
	confirm(serial)
	if !programmed() {
		t.Error("not programmed when confirmed")
	}
	// A change of endpoints is no matter of listeners.
	slice := maps.Clone(c.EndpointSlices)
	for n, e := range slice {
		changed := *e
		changed.Endpoints = changed.Endpoints[:1]
		slice[n] = &changed
	}
	out = s.Apply(&Change{EndpointSlices: slice})
	have.take(out)
	if !programmed() || out.Gateways[web].Serial != serial+1 {
		t.Errorf("after a change of endpoints: programmed %t, serial %d", programmed(), out.Gateways[web].Serial)
	}
	g := c.Gateways[web].DeepCopy()
	g.Generation++
	g.Spec.Listeners[0].Port = 81
	out = s.Apply(&Change{Gateways: map[model.Name]*gwv1.Gateway{web: g}})
	have.take(out)
	if programmed() || have.gateways[web].Conditions[0].ObservedGeneration != g.Generation {
		t.Error("programmed with a listener that nobody confirmed")
	}
	confirm(out.Gateways[web].Serial)
	if !programmed() {
		t.Error("not programmed when the change is confirmed")
	}
}

// A process that begins lets stand what an earlier one said, until the pods had time to connect.
func TestRestartDoesNotTakeBack(t *testing.T) {
	c := readObjects(t, "testdata/golden/listenersets.yaml")
	web := model.Name{Namespace: "infra", Name: "web"}
	feedback := c.Feedback[web]
	s, have := New(Options{}), newTold()
	have.take(s.Apply(c))
	for n, st := range have.gateways {
		c.Gateways[n] = c.Gateways[n].DeepCopy()
		c.Gateways[n].Status = *st
	}
	for n, st := range have.sets {
		c.ListenerSets[n] = c.ListenerSets[n].DeepCopy()
		c.ListenerSets[n].Status = *st
	}
	if find(have.gateways[web].Conditions, "Programmed").Status != metav1.ConditionTrue {
		t.Fatal("the Gateway is not programmed to begin with")
	}
	delete(c.Feedback, web)
	again, after := New(Options{}), newTold()
	after.take(again.Apply(c))
	if d := cmp.Diff(have.gateways, after.gateways); d != "" {
		t.Errorf("before feedback (-earlier +now):\n%s", d)
	}
	if d := cmp.Diff(have.sets, after.sets); d != "" {
		t.Errorf("before feedback (-earlier +now):\n%s", d)
	}
	give := func(f Feedback) {
		after.take(again.Apply(&Change{Feedback: map[model.Name]*Feedback{web: &f}}))
	}
	give(Feedback{Addresses: feedback.Addresses, Restarted: true})
	if d := cmp.Diff(have.gateways, after.gateways); d != "" {
		t.Errorf("while pods connect (-earlier +now):\n%s", d)
	}
	give(Feedback{Addresses: feedback.Addresses})
	if find(after.gateways[web].Conditions, "Programmed").Status != metav1.ConditionFalse {
		t.Error("programmed though the pods had their time")
	}
	give(Feedback{Addresses: feedback.Addresses, Confirmed: 1 << 40})
	if d := cmp.Diff(have.gateways, after.gateways); d != "" {
		t.Errorf("confirmed again (-earlier +now):\n%s", d)
	}
	changed := c.Gateways[web].DeepCopy()
	changed.Generation++
	changed.Spec.Listeners[0].Port = 8080
	c.Gateways[web] = changed
	after = newTold()
	after.take(New(Options{}).Apply(c))
	if find(after.gateways[web].Conditions, "Programmed").Status != metav1.ConditionFalse {
		t.Error("what was said of another generation stands")
	}
}

func find(cs []metav1.Condition, typ string) metav1.Condition {
	for _, c := range cs {
		if c.Type == typ {
			return c
		}
	}
	return metav1.Condition{}
}
