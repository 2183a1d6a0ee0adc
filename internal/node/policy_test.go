// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/flowlog"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nft/policytable"
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

// newSharedPolicyRig is newPolicyRig on a kernel that can't keep others from the table.
func newSharedPolicyRig(t *testing.T) *policyRig {
	r := &policyRig{t: t, node: policytest.NewNode(t), dir: t.TempDir(), events: &recorded{}, shared: true}
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

func TestPolicyProtectWaitsAndFailsClosed(t *testing.T) {
	r := newPolicyRig(t)
	a := policytest.Addrs("10.0.0.1 fd00::1")
	client, server := r.node.Connect(t, policytest.Addrs("10.0.0.9 fd00::9")...), r.node.Connect(t, a...)
	server.Listen(t, model.TCP, 80)
	p := podOf("late", role("db"), "")

	// The API has told nothing yet: ADD must not succeed.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := r.part.Protect(ctx, localPod(p, a)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("before the first full picture Protect says %v", err)
	}
	r.update(with(deltaOf(), allow("db", "db", "web")))
	reaches := func(want bool) bool {
		got := true
		for _, to := range a {
			got = got && client.Reaches(t, netip.Addr{}, netip.AddrPortFrom(to, 80), model.TCP, want)
		}
		return got
	}
	if reaches(false) {
		t.Error("a pod that nothing is known of is open")
	}
	ctx, cancel = context.WithTimeout(context.Background(), policytest.Deadline)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.part.Protect(ctx, localPod(p, a)) }()
	r.update(deltaOf(p))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if reaches(false) {
		t.Error("an isolated pod is open after Protect")
	}
	r.update(deltaOf(podOf("late", role("other"), "")))
	if !reaches(true) {
		t.Error("a pod that no policy selects is closed")
	}
	r.part.Unprotect(localPod(p, a))
	if n := len(r.part.compiler.Program().Pods); n != 0 {
		t.Errorf("after Unprotect %d addresses are still guarded", n)
	}
}

// A pod does not start before the watches have brought what the API server had when it was asked: its policies, its
// namespace's labels.
func TestPolicyProtectWaitsForEveryKind(t *testing.T) {
	ns := func(labels map[string]string) *model.Namespace {
		return &model.Namespace{Meta: model.Meta{Name: model.Name{Name: "a"}, Labels: labels}}
	}
	guard := func() *model.ClusterNetworkPolicy {
		return &model.ClusterNetworkPolicy{Meta: model.Meta{Name: model.Name{Name: "guard"}}, Namespaces: model.MatchLabels(map[string]string{"team": "x"})}
	}
	// What the API server has, and what the watches have brought; each test lacks something.
	everything := func() *model.Delta {
		d := with(deltaOf(), allow("db", "db", "web"))
		d.Namespaces["a"] = ns(map[string]string{"team": "x"})
		d.ClusterNetworkPolicies = map[string]*model.ClusterNetworkPolicy{"guard": guard()}
		return d
	}
	other := allow("elsewhere", "db", "web")
	other.Namespace = "b"
	for _, tc := range []struct {
		what, kind string
		brought    func(*model.Delta)
	}{
		{"nothing is missing", "", func(d *model.Delta) { with(d, other) }},
		{"a policy is missing", "NetworkPolicy", func(d *model.Delta) { clear(d.NetworkPolicies) }},
		{"a policy has changed", "NetworkPolicy", func(d *model.Delta) { with(d, allow("db", "db", "app")) }},
		{"a policy is gone", "NetworkPolicy", func(d *model.Delta) { with(d, allow("old", "db", "app")) }},
		{"a cluster policy is missing", "ClusterNetworkPolicy", func(d *model.Delta) { clear(d.ClusterNetworkPolicies) }},
		{"the namespace has other labels", "Namespace", func(d *model.Delta) { d.Namespaces["a"] = ns(nil) }},
	} {
		t.Run(tc.what, func(t *testing.T) {
			asked, behind := make(chan string, 10), make(chan string, 10)
			r := &policyRig{t: t, node: policytest.NewNode(t), dir: t.TempDir(), events: &recorded{}}
			r.confirm = func(_ context.Context, namespace string) (*model.Delta, error) {
				asked <- namespace
				return everything(), nil
			}
			r.behind = func(kind string) { behind <- kind }
			r.start()
			p := podOf("db", role("db"), "")
			addrs := policytest.Addrs("10.0.0.1 fd00::1")
			d := everything()
			d.Pods[p.Name] = p
			tc.brought(d)
			r.update(d)
			done := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 2*policytest.Deadline)
				defer cancel()
				done <- r.part.Protect(ctx, localPod(p, addrs))
			}()
			if n := <-asked; n != "a" {
				t.Errorf("asked for namespace %s", n)
			}
			if tc.kind == "" {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				return
			}
			select {
			case kind := <-behind:
				if kind != tc.kind {
					t.Errorf("the watch of %s is said to be behind, want %s", kind, tc.kind)
				}
			case err := <-done:
				t.Fatalf("the pod started without: %v", err)
			}
			rest := everything()
			rest.NetworkPolicies[model.Name{Namespace: "a", Name: "old"}] = nil
			r.update(rest)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// While there is no API server a pod starts with the policies that are known.
func TestPolicyProtectWithoutAPIServer(t *testing.T) {
	r := newPolicyRig(t)
	r.confirm = func(context.Context, string) (*model.Delta, error) { return nil, errors.New("connection refused") }
	r.start()
	server, client := r.node.Connect(t, policytest.Addrs("10.0.0.1 fd00::1")...), r.node.Connect(t, policytest.Addrs("10.0.0.9 fd00::9")...)
	server.Listen(t, model.TCP, 80)
	p := podOf("db", role("db"), "")
	r.update(with(deltaOf(p), allow("db", "db", "web")))
	ctx, cancel := context.WithTimeout(context.Background(), policytest.Deadline)
	defer cancel()
	if err := r.part.Protect(ctx, localPod(p, server.Addrs)); err != nil {
		t.Fatal(err)
	}
	if client.Reaches(t, netip.Addr{}, netip.AddrPortFrom(server.Addrs[0], 80), model.TCP, false) {
		t.Error("a known policy does not count")
	}
	if n := testutil.ToFloat64(r.part.metrics.unconfirmed); n != 1 {
		t.Errorf("%v pods are counted as unconfirmed, want 1", n)
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

// The API's image of a static pod has another UID than the kubelet gave to the runtime.
func TestPolicyProtectsStaticPods(t *testing.T) {
	r := newPolicyRig(t)
	a := policytest.Addrs("10.0.0.1 fd00::1")
	mirror := podOf("static", role("db"), "")
	mirror.Annotations = map[string]string{"kubernetes.io/config.mirror": "0123abcd"}
	wired := model.LocalPod{Name: mirror.Name, UID: "0123abcd", IPs: a}
	r.update(with(deltaOf(), allow("db", "db", "web")))
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), policytest.Deadline)
		defer cancel()
		done <- r.part.Protect(ctx, wired)
	}()
	r.update(deltaOf(mirror))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, addr := range a {
		if e := r.part.compiler.Program().Pods[addr]; e.Ingress == "" || e.Egress != "" {
			t.Errorf("%s has %+v, want a guard for ingress", addr, e)
		}
	}
	gone := deltaOf()
	gone.Pods[mirror.Name] = nil
	r.update(gone)
	if n := len(r.part.compiler.Program().Pods); n != 2 {
		t.Errorf("of a wired pod that the API has forgotten, %d addresses are guarded", n)
	}
	r.part.Unprotect(wired)
	if n := len(r.part.compiler.Program().Pods); n != 0 {
		t.Errorf("after Unprotect %d addresses are still guarded", n)
	}
}

// An agent's death, the time without it, and its successor's start never open what is isolated.
func TestPolicySurvivesRestartAndRemoval(t *testing.T) {
	r := newPolicyRig(t)
	a := policytest.Addrs("10.0.0.1 fd00::1")
	client, server := r.node.Connect(t, policytest.Addrs("10.0.0.9 fd00::9")...), r.node.Connect(t, a...)
	server.Listen(t, model.UDP, 80)
	server.Listen(t, model.TCP, 80)
	open := func(want bool) bool {
		return client.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a[0], 80), model.TCP, want) ||
			client.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a[1], 80), model.UDP, want)
	}
	p := podOf("db", role("db"), "") // the API has not got its addresses yet
	r.update(with(deltaOf(p), allow("db", "db", "web")))
	if err := r.part.Protect(context.Background(), localPod(p, a)); err != nil {
		t.Fatal(err)
	}
	if open(false) {
		t.Fatal("an isolated pod is open")
	}

	stop := make(chan struct{})
	leaks := make(chan int, 1)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				leaks <- n
				return
			default:
				if open(false) {
					n++
				}
			}
		}
	}()
	for range 50 {
		r.start(localPod(p, a))
		// What comes first is never a full picture.
		if err := r.part.Update(context.Background(), &model.Delta{}); err != nil {
			t.Fatal(err)
		}
		r.update(with(deltaOf(p), allow("db", "db", "web")))
	}
	close(stop)
	if n := <-leaks; n > 0 {
		t.Errorf("%d packets leaked while agents were replaced", n)
	}

	// Somebody flushes the ruleset while there is an agent: the table stays.
	flushRuleset(t, r.node)
	if open(false) {
		t.Error("a flush of the ruleset opened an isolated pod")
	}

	// The next agent starts before the last one is gone: it says so, and takes over once it can.
	old := r.kill
	r.kill = nil
	r.start(localPod(p, a))
	opened := with(deltaOf(podOf("db", role("other"), "")), allow("db", "db", "web"))
	opened.Complete = true
	if err := r.part.Update(context.Background(), opened); !errors.Is(err, unix.EPERM) {
		t.Errorf("beside an agent that has the table, an update says %v", err)
	}
	if open(false) {
		t.Error("a second agent opened an isolated pod")
	}
	old()
	r.update(&model.Delta{})
	if !open(true) {
		t.Error("the second agent did not take over")
	}
}

// Where the kernel can't keep others from the table, it is put back, and what slipped through meanwhile ends.
func TestPolicyRepairEndsWhatSlippedThrough(t *testing.T) {
	r := newSharedPolicyRig(t)
	track(t, r.node)
	pods := map[string]*policytest.Pod{}
	d := deltaOf()
	for n, a := range map[string]string{"web": "10.0.0.1 fd00::1", "app": "10.0.0.2 fd00::2", "db": "10.0.0.3 fd00::3"} {
		pods[n] = r.node.Connect(t, policytest.Addrs(a)...)
		p := podOf(n, role(n), a)
		d.Pods[p.Name] = p
	}
	pods["db"].Listen(t, model.TCP, 80)
	r.update(with(d, allow("db", "db", "web")))
	for _, a := range pods["db"].Addrs {
		to := netip.AddrPortFrom(a, 80)
		web, node := pods["web"].Dial(t, to), r.node.Dial(t, to)
		if pods["app"].Reaches(t, netip.Addr{}, to, model.TCP, false) {
			t.Fatal("an isolated pod is open")
		}

		r.part.mu.Lock() // keeps the repair waiting
		removeTable(t, r.node)
		app := pods["app"].Dial(t, to)
		alive := policytest.Echoes(t, app, true)
		start := time.Now()
		r.part.mu.Unlock()
		if !alive {
			t.Fatal("without a table nothing should be closed")
		}
		policytest.Eventually(t, time.Second, "a connection that was opened while the table was gone ends", func() bool {
			return !policytest.Echoes(t, app, false)
		})
		t.Logf("ended within %s", time.Since(start))
		if pods["app"].Reaches(t, netip.Addr{}, to, model.TCP, false) {
			t.Error("the table is not back")
		}
		if !policytest.Echoes(t, web, true) || !policytest.Echoes(t, node, true) {
			t.Errorf("an allowed connection to %s was cut", to)
		}
	}
}

// The same, where the table goes while there is no agent.
func TestPolicyStartEndsWhatSlippedThrough(t *testing.T) {
	r := newPolicyRig(t)
	track(t, r.node)
	client, db := r.node.Connect(t, policytest.Addrs("10.0.0.9 fd00::9")...), r.node.Connect(t, policytest.Addrs("10.0.0.3 fd00::3")...)
	db.Listen(t, model.TCP, 80)
	state := func() *model.Delta {
		return with(deltaOf(podOf("db", role("db"), "10.0.0.3 fd00::3")), allow("db", "db", "web"))
	}
	r.update(state())
	r.kill()
	if client.Reaches(t, netip.Addr{}, netip.AddrPortFrom(db.Addrs[0], 80), model.TCP, false) {
		t.Fatal("the table went with its agent")
	}
	removeTable(t, r.node)
	conn := client.Dial(t, netip.AddrPortFrom(db.Addrs[0], 80))
	if !policytest.Echoes(t, conn, true) {
		t.Fatal("without a table nothing should be closed")
	}
	r.start()
	r.update(state())
	if policytest.Echoes(t, conn, false) {
		t.Error("a connection that was opened without a table and an agent goes on")
	}
}

// track has the node track connections whether there is a policy table or not, as Services have it do.
func track(t *testing.T, n *policytest.Node) {
	t.Helper()
	chain := nft.Chain{Table: nft.Table{Family: nft.Inet, Name: "services"}, Name: "forward",
		Hook: &nft.Hook{Type: "filter", Num: unix.NF_INET_FORWARD}}
	commit(t, n, func(b *nft.Batch) {
		b.AddTable(chain.Table, "")
		b.AddChain(chain)
		b.AddRule(chain, "", &expr.Ct{Key: expr.CtKeySTATE, Register: 1})
	})
}

// removeTable takes the policy table away, and nothing else.
func removeTable(t *testing.T, n *policytest.Node) {
	t.Helper()
	commit(t, n, func(b *nft.Batch) { b.DeleteTable(nft.Table{Family: nft.Inet, Name: policytable.Name}) })
}

func commit(t *testing.T, n *policytest.Node, fill func(*nft.Batch)) {
	t.Helper()
	n.Do(t, func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		var b nft.Batch
		fill(&b)
		return c.Commit(&b)
	})
}

func flushRuleset(t *testing.T, n *policytest.Node) {
	n.Do(t, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		message := func(typ, flags uint16, family byte, resource byte) []byte {
			return []byte{20, 0, 0, 0, byte(typ), byte(typ >> 8), byte(flags), byte(flags >> 8), 0, 0, 0, 0, 0, 0, 0, 0, family, 0, 0, resource}
		}
		batch := message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES)
		batch = append(batch, message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_REQUEST, 0, 0)...)
		batch = append(batch, message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES)...)
		return unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

// From a pod's first microsecond with a link, nothing that its policies forbid gets in or out.
func TestPolicyNoLeakAtPodStart(t *testing.T) {
	r := newPolicyRig(t)
	client := r.node.Connect(t, policytest.Addrs("10.0.0.9 fd00::9")...)
	sink := client.Sink(t, 80)
	starts := 200
	if testing.Short() {
		starts = 20
	}
	r.update(with(deltaOf(podOf("client", role("client"), "10.0.0.9 fd00::9")), &model.NetworkPolicy{
		Meta: model.Meta{Name: model.Name{Namespace: "a", Name: "deny"}}, PodSelector: model.MatchLabels(role("db")), Ingress: true, Egress: true,
	}))
	sent := 0
	for i := range starts {
		p := podOf(fmt.Sprintf("p%d", i), role("db"), "")
		addrs := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00::1:%x", i+1))}
		ns := policytest.NewNamespace(t)
		in := ns.Sink(t, 80)
		stopOut := ns.Flood(t, 80, "out", client.Addrs...)
		stopIn := client.Flood(t, 80, "in", addrs...)

		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), policytest.Deadline)
			defer cancel()
			done <- r.part.Protect(ctx, localPod(p, addrs))
		}()
		r.update(deltaOf(p))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		pod := r.node.Attach(t, ns, addrs...)
		for _, a := range addrs {
			in.Drain(t, r.node, a) // the link works by now
		}
		sent += stopOut() + stopIn()
		for i, a := range addrs {
			in.Drain(t, r.node, a)
			sink.Drain(t, r.node, client.Addrs[i])
		}
		if n, m := sink.Count("out"), in.Count("in"); n+m > 0 {
			t.Fatalf("start %d: %d packets got out, %d got in", i, n, m)
		}
		pod.Disconnect(t)
		r.part.Unprotect(localPod(p, addrs))
		gone := deltaOf()
		gone.Pods[p.Name] = nil
		r.update(gone)
	}
	if sent < starts {
		t.Errorf("only %d packets were sent in %d starts", sent, starts)
	}
	t.Logf("%d starts, %d packets sent, none passed", starts, sent)
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
