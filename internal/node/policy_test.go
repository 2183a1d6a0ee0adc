// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/flowlog"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// policyRig is a policy part on a node in a namespace.
type policyRig struct {
	t    *testing.T
	node *policytest.Node
	part *Policy
	kill func() // the agent that runs

	dir     string
	events  *recorded
	metrics *prometheus.Registry
	shared  bool // as kernels before 6.9 have it: everybody may change the table
	admits  bool // report what is admitted too

	confirm func(context.Context, string) (*model.Delta, error)
	behind  func(string)
}

// recorded keeps Events.
type recorded struct {
	mu   sync.Mutex
	list []model.Event
}

func (r *recorded) add(e model.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
}

func (r *recorded) all() []model.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

func newPolicyRig(t *testing.T) *policyRig {
	r := &policyRig{t: t, node: policytest.NewNode(t), dir: t.TempDir(), events: &recorded{}}
	r.start()
	return r
}

// start runs a new agent's part; the one before it, if any, is as if killed.
func (r *policyRig) start(local ...model.LocalPod) {
	r.t.Helper()
	r.metrics = prometheus.NewRegistry()
	p, err := NewPolicy(PolicyConfig{
		Node: "n1", Netns: r.node.FD, Local: func() []model.LocalPod { return local },
		FlowSocket: filepath.Join(r.dir, "flows.sock"), NamesFile: filepath.Join(r.dir, "names.json"), Events: r.events.add, Registerer: r.metrics,
		Shared: r.shared, LogAdmitted: r.admits, Confirm: r.confirm, Behind: r.behind,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if r.kill != nil {
		r.kill()
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	r.kill = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		p.Close()
	})
	r.t.Cleanup(r.kill)
	r.part = p
}

func (r *policyRig) update(d *model.Delta) {
	r.t.Helper()
	d.Complete = true
	if err := r.part.Update(context.Background(), d); err != nil {
		r.t.Fatal(err)
	}
}

func podOf(name string, labels map[string]string, addrs string) *model.Pod {
	return &model.Pod{Meta: model.Meta{Name: model.Name{Namespace: "a", Name: name}, UID: "uid-" + name, Labels: labels}, Node: "n1", IPs: policytest.Addrs(addrs)}
}

func deltaOf(pods ...*model.Pod) *model.Delta {
	d := &model.Delta{
		Pods: map[model.Name]*model.Pod{}, NetworkPolicies: map[model.Name]*model.NetworkPolicy{},
		Namespaces: map[string]*model.Namespace{"a": {Meta: model.Meta{Name: model.Name{Name: "a"}}}},
	}
	for _, p := range pods {
		d.Pods[p.Name] = p
	}
	return d
}

func with(d *model.Delta, policies ...*model.NetworkPolicy) *model.Delta {
	for _, p := range policies {
		d.NetworkPolicies[p.Name] = p
	}
	return d
}

// allow isolates the pods with a role for ingress, but for pods with another.
func allow(name, role, from string) *model.NetworkPolicy {
	peer := model.MatchLabels(map[string]string{"role": from})
	return &model.NetworkPolicy{
		Meta: model.Meta{Name: model.Name{Namespace: "a", Name: name}}, Ingress: true,
		PodSelector: model.MatchLabels(map[string]string{"role": role}),
		IngressFrom: []model.PolicyRule{{Peers: []model.PolicyPeer{{PodSelector: &peer}}}},
	}
}

func role(s string) map[string]string { return map[string]string{"role": s} }

func localPod(p *model.Pod, addrs []netip.Addr) model.LocalPod {
	return model.LocalPod{Name: p.Name, UID: p.UID, IPs: addrs}
}

func TestPolicyTighteningCutsOnlyWhatIsNoLongerAllowed(t *testing.T) {
	r := newPolicyRig(t)
	addrs := map[string]string{"web": "10.0.0.1 fd00::1", "app": "10.0.0.2 fd00::2", "db": "10.0.0.3 fd00::3"}
	pods := map[string]*policytest.Pod{}
	d := deltaOf()
	for n, a := range addrs {
		pods[n] = r.node.Connect(t, policytest.Addrs(a)...)
		p := podOf(n, role(n), a)
		d.Pods[p.Name] = p
	}
	pods["db"].Listen(t, model.TCP, 80)
	r.update(with(d, allow("db", "db", "web"), allow("db2", "db", "app")))
	for _, a := range pods["db"].Addrs {
		to := netip.AddrPortFrom(a, 80)
		web, app, node := pods["web"].Dial(t, to), pods["app"].Dial(t, to), r.node.Dial(t, to)
		if !policytest.Echoes(t, web, true) || !policytest.Echoes(t, app, true) || !policytest.Echoes(t, node, true) {
			t.Fatal("allowed connections do not work")
		}
		gone := deltaOf()
		gone.NetworkPolicies[model.Name{Namespace: "a", Name: "db2"}] = nil
		r.update(gone)
		if policytest.Echoes(t, app, false) {
			t.Errorf("a connection from app to %s outlived its policy", to)
		}
		if !policytest.Echoes(t, web, true) || !policytest.Echoes(t, node, true) {
			t.Errorf("a connection to %s that is still allowed was cut", to)
		}
		r.update(deltaOf(podOf("web", role("other"), addrs["web"])))
		if policytest.Echoes(t, web, false) {
			t.Errorf("a connection to %s outlived the label that allowed it", to)
		}
		if !policytest.Echoes(t, node, true) {
			t.Errorf("the node's connection to %s was cut", to)
		}
		r.update(with(deltaOf(podOf("web", role("web"), addrs["web"])), allow("db2", "db", "app")))
	}
}

// What a pod sends its node from a link-local address is judged like all else that it sends.
func TestPolicyJudgesLinkLocalByLink(t *testing.T) {
	r := newPolicyRig(t)
	r.node.Listen(t, model.TCP, 80)
	shut, open := r.node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...), r.node.Connect(t, policytest.Addrs("10.0.0.2 fd00::2")...)
	shut.Listen(t, model.TCP, 81)
	gateway := netip.AddrPortFrom(policytest.Gateway6.WithZone("eth0"), 80)
	reaches := func(p *policytest.Pod, to netip.AddrPort, want bool) {
		t.Helper()
		if got := p.Reaches(t, netip.Addr{}, to, model.TCP, want); got != want {
			t.Errorf("from %s to %s: %v, want %v", p.Addrs[0], to, got, want)
		}
	}
	linkLocalOf(t, shut)
	linkLocalOf(t, open)
	reaches(shut, gateway, true)
	deny := &model.NetworkPolicy{Meta: model.Meta{Name: model.Name{Namespace: "a", Name: "deny"}}, PodSelector: model.MatchLabels(role("shut")), Egress: true}
	pods := []*model.Pod{podOf("shut", role("shut"), ""), podOf("open", role("open"), "")}
	r.update(with(deltaOf(pods...), deny))
	wired := make([]model.LocalPod, 2)
	for i, at := range []*policytest.Pod{shut, open} {
		wired[i] = localPod(pods[i], at.Addrs)
		wired[i].Link = at.Link
		if err := r.part.Protect(context.Background(), wired[i]); err != nil {
			t.Fatal(err)
		}
	}
	reaches(shut, gateway, false)
	reaches(shut, netip.AddrPortFrom(policytest.NodeAddr6, 80), false)
	policytest.Eventually(t, policytest.Deadline, "the drop is told, with the policy", func() bool {
		shut.Reaches(t, netip.Addr{}, gateway, model.TCP, false)
		found := false
		_ = flowlog.Query(t.Context(), filepath.Join(r.dir, "flows.sock"), flowlog.Filter{Policy: "deny", Verdict: flowlog.Dropped}, false,
			func(e *flowlog.Event) error { found = found || e.Source.Addr.IsLinkLocalUnicast(); return nil })
		return found
	})
	reaches(open, gateway, true)

	// The node's own connections go on both ways: pods answer from their link-local addresses too.
	own, index := linkLocalOf(t, shut)
	if to := netip.AddrPortFrom(own.WithZone(shut.Link), 81); !r.node.Reaches(t, netip.Addr{}, to, model.TCP, true) {
		t.Errorf("the node does not reach its pod at %s", to)
	}

	// An agent that starts takes it up from what is wired; a policy that goes opens; a pod that goes leaves nothing.
	r.start(wired...)
	r.update(with(deltaOf(pods...), deny))
	reaches(shut, gateway, false)
	loose := deltaOf()
	loose.NetworkPolicies[deny.Name] = nil
	r.update(loose)
	reaches(shut, gateway, true)
	conn := shut.Dial(t, netip.AddrPortFrom(gateway.Addr().WithZone(fmt.Sprint(index)), gateway.Port()))
	r.update(with(deltaOf(), deny))
	if policytest.Echoes(t, conn, false) {
		t.Error("a connection from a link-local address outlived the policy that admitted it")
	}
	r.part.Unprotect(wired[0])
	if links := r.part.compiler.Program().Links; len(links) != 0 {
		t.Errorf("after Unprotect there are links %v", links)
	}
}

// linkLocalOf waits for a pod's link-local address, which the kernel makes when the link has a carrier, and tells it with
// the link's index.
func linkLocalOf(t *testing.T, p *policytest.Pod) (own netip.Addr, index int) {
	t.Helper()
	policytest.Eventually(t, policytest.Deadline, "a link-local address", func() bool {
		p.Do(t, func() error {
			l, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			index = l.Index
			addrs, err := l.Addrs()
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsLinkLocalUnicast() {
					own = p.Addr()
				}
			}
			return err
		})
		return own.IsValid()
	})
	return own, index
}

func TestPolicyDropsAreExplained(t *testing.T) {
	r := newPolicyRig(t)
	web, db := r.node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...), r.node.Connect(t, policytest.Addrs("10.0.0.2 fd00::2")...)
	db.Listen(t, model.TCP, 80)
	r.update(with(deltaOf(podOf("web", role("web"), "10.0.0.1 fd00::1"), podOf("db", role("db"), "10.0.0.2 fd00::2")),
		allow("db", "db", "app")))
	// The log group is bound beside everything else; until then drops are only counted.
	var got []flowlog.Event
	policytest.Eventually(t, policytest.Deadline, "a drop is reported", func() bool {
		web.Reaches(t, netip.Addr{}, netip.AddrPortFrom(db.Addrs[1], 80), model.TCP, false)
		got = nil
		err := flowlog.Query(t.Context(), filepath.Join(r.dir, "flows.sock"), flowlog.Filter{Namespace: "a", Verdict: flowlog.Dropped}, false,
			func(e *flowlog.Event) error { got = append(got, *e); return nil })
		return err == nil && len(got) > 0
	})
	e := got[0]
	want := flowlog.Event{
		Time: e.Time, Verdict: flowlog.Dropped, Node: "n1", Direction: "ingress", Protocol: "TCP", Port: 80, SourcePort: e.SourcePort, Chain: e.Chain,
		Source:      flowlog.End{Kind: "Pod", Namespace: "a", Name: "web", Addr: web.Addrs[1]},
		Destination: flowlog.End{Kind: "Pod", Namespace: "a", Name: "db", Addr: db.Addrs[1]},
		Policies:    []string{"NetworkPolicy a/db"},
		Reason: "pod a/db is isolated for ingress by NetworkPolicy a/db, and it has no rule for TCP 80 from pod a/web (role=web): " +
			"a/db: rule ingress[0] is only for traffic from pods with role=app in namespace a; pod a/web (role=web) does not match",
	}
	if fmt.Sprint(e) != fmt.Sprint(want) {
		t.Errorf("got\n%+v\nwant\n%+v", e, want)
	}
	policytest.Eventually(t, policytest.Deadline, "the pod's owner is told", func() bool { return len(r.events.all()) > 0 })
	if events := r.events.all(); len(events) != 1 || events[0].Reason != "NetworkPolicyDrop" || events[0].Name.String() != "a/db" {
		t.Errorf("events: %+v", events)
	}
	if n := r.drops(t, "a", "db", "ingress"); n == 0 {
		t.Error("no drop is counted for the policy")
	}

	// A ClusterNetworkPolicy's drops count for the pod's namespace too.
	d := deltaOf()
	d.ClusterNetworkPolicies = map[string]*model.ClusterNetworkPolicy{"guard": {
		Meta: model.Meta{Name: model.Name{Name: "guard"}}, Pods: model.MatchLabels(role("db")),
		IngressFrom: []model.ClusterPolicyRule{{Action: model.DenyTraffic, Peers: []model.ClusterPolicyPeer{{Namespaces: &model.Selector{}}}}},
	}}
	r.update(d)
	if web.Reaches(t, netip.Addr{}, netip.AddrPortFrom(db.Addrs[0], 80), model.TCP, false) {
		t.Error("a ClusterNetworkPolicy's Deny lets through")
	}
	if n := r.drops(t, "a", "guard", "ingress"); n == 0 {
		t.Error("no drop is counted for the ClusterNetworkPolicy and the pod's namespace")
	}
}

// With LogAdmitted a new connection that policies admit is told, once; an established one is not told again, and what was
// dropped is told as ever.
func TestPolicyAdmittedFlowsAreTold(t *testing.T) {
	r := newPolicyRig(t)
	r.admits = true
	r.start()
	web, db := r.node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...), r.node.Connect(t, policytest.Addrs("10.0.0.2 fd00::2")...)
	db.Listen(t, model.TCP, 80)
	r.update(with(deltaOf(podOf("web", role("web"), "10.0.0.1 fd00::1"), podOf("db", role("db"), "10.0.0.2 fd00::2")), allow("db", "db", "web")))
	flows := func(f flowlog.Filter) (got []flowlog.Event) {
		f.Port = 80
		if err := flowlog.Query(t.Context(), filepath.Join(r.dir, "flows.sock"), f, false,
			func(e *flowlog.Event) error { got = append(got, *e); return nil }); err != nil {
			t.Log(err) // it is served beside everything else
		}
		return got
	}
	for _, a := range db.Addrs {
		here := flowlog.Filter{Verdict: flowlog.Admitted, Addr: netip.PrefixFrom(a, a.BitLen())}
		policytest.Eventually(t, policytest.Deadline, "an admitted connection is told", func() bool {
			web.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, true)
			return len(flows(here)) > 0
		})
		conn := web.Dial(t, netip.AddrPortFrom(a, 80))
		from := conn.LocalAddr().(*net.TCPAddr).AddrPort().Port()
		told := func() []flowlog.Event {
			return slices.DeleteFunc(flows(here), func(e flowlog.Event) bool { return e.SourcePort != from })
		}
		policytest.Eventually(t, policytest.Deadline, "the next one too", func() bool { return len(told()) == 1 })
		for range 20 {
			if !policytest.Echoes(t, conn, true) {
				t.Fatal("the connection does not work")
			}
		}
		got := told()
		if len(got) != 1 {
			t.Fatalf("a connection in use is told %d times", len(got))
		}
		if e := got[0]; e.Source.Name != "web" || e.Destination.Name != "db" || e.Protocol != "TCP" || len(e.Policies) != 0 || e.Reason != "" {
			t.Errorf("told is %+v", e)
		}
	}
	shut := deltaOf()
	shut.NetworkPolicies[model.Name{Namespace: "a", Name: "db"}] = allow("db", "db", "nobody")
	r.update(shut)
	policytest.Eventually(t, policytest.Deadline, "a drop is told", func() bool {
		web.Reaches(t, netip.Addr{}, netip.AddrPortFrom(db.Addrs[0], 80), model.TCP, false)
		return len(flows(flowlog.Filter{Verdict: flowlog.Dropped})) > 0
	})
}

// drops is what the metric says for these labels.
func (r *policyRig) drops(t *testing.T, namespace, policies, direction string) float64 {
	t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"namespace": namespace, "policies": policies, "direction": direction}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			if f.GetName() == "weft_policy_dropped_packets_total" && maps.Equal(got, want) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
