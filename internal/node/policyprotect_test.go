// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

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
			asked, behind := make(chan string, 100), make(chan string, 10)
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

// Pods that start together share a question; its answer counts for a moment, and for one namespace.
func TestConfirmerAsksOnceForMany(t *testing.T) {
	asked := make(chan string, 10)
	answer := make(chan *model.Delta)
	c := confirmer{latest: map[string]*confirmation{}, read: func(_ context.Context, namespace string) (*model.Delta, error) {
		asked <- namespace
		return <-answer, nil
	}}
	start := time.Now()
	first, second, other := c.ask("a", start), c.ask("a", start), c.ask("b", start)
	if first != second || first == other {
		t.Error("two pods of a namespace don't share a question, or those of two do")
	}
	for range 2 {
		answer <- &model.Delta{}
	}
	<-first.done
	<-other.done
	if got := c.ask("a", start); got != first {
		t.Error("an answer does not count for those who accept its age")
	}
	later := time.Now()
	third := c.ask("a", later)
	if third == first {
		t.Error("an answer counts for those who want a newer one")
	}
	answer <- &model.Delta{}
	<-third.done
	if n := len(asked); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}
