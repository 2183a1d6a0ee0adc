// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nstest"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// rig is a node in a namespace, its table, and the compiler that feeds it.
type rig struct {
	t     *testing.T
	node  *policytest.Node
	table *Table
	k     *policy.Compiler
	pods  map[string]*policytest.Pod
}

func newRig(t *testing.T) *rig { return newRigWith(t, false) }

// newRigWith is newRig with a table that others may change, or not.
func newRigWith(t *testing.T, shared bool) *rig {
	node := policytest.NewNode(t)
	table, err := Open(Options{Netns: node.FD, Shared: shared})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	r := &rig{t: t, node: node, table: table, k: policy.NewCompiler("n1"), pods: map[string]*policytest.Pod{}}
	if err := table.Sync(r.k.Program()); err != nil {
		t.Fatal(err)
	}
	return r
}

// held is what a set holds, which may have just grown.
func (r *rig) held(name string) elements {
	r.t.Helper()
	for {
		got, err := r.table.listElements(name)
		if err == nil {
			return got
		}
		if !errors.Is(err, nft.ErrInterrupted) {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) update(objects ...any) {
	r.t.Helper()
	if err := r.table.Apply(r.k.Update(delta(objects...))); err != nil {
		r.t.Fatal(err)
	}
}

// pod connects a pod that listens on TCP and UDP 80 and 81, and tells the compiler.
func (r *rig) pod(name, labels, addrs string) *policytest.Pod {
	r.t.Helper()
	p := r.node.Connect(r.t, policytest.Addrs(addrs)...)
	for _, port := range []uint16{80, 81} {
		p.Listen(r.t, model.TCP, port)
		p.Listen(r.t, model.UDP, port)
	}
	r.pods[name] = p
	r.update(podObject(name, labels, addrs))
	return p
}

// reach asserts, for both families, that traffic passes or not.
func (r *rig) reach(from, to string, proto model.Protocol, port uint16, want bool) {
	r.t.Helper()
	src, dst := r.pods[from], r.pods[to]
	for _, a := range dst.Addrs {
		if got := src.Reaches(r.t, netip.Addr{}, netip.AddrPortFrom(a, port), proto, want); got != want {
			r.t.Errorf("%s to %s (%s) %s %d: passed %v, want %v", from, to, a, proto, port, got, want)
		}
	}
}

func (r *rig) ruleset() string {
	var out []byte
	r.node.Do(r.t, func() (err error) {
		out, err = exec.Command("nft", "list", "ruleset").CombinedOutput()
		return err
	})
	return string(out)
}

func TestNetworkPolicyInTheKernel(t *testing.T) {
	r := newRig(t)
	r.update(namespace("a", "team=a"), namespace("b", "team=b"))
	r.pod("a/web", "role=web", "10.0.0.1 fd00::1")
	r.pod("a/db", "role=db", "10.0.0.2 fd00::2")
	r.pod("b/web", "role=web", "10.0.0.3 fd00::3")
	both := []model.Protocol{model.TCP, model.UDP}
	for _, p := range both {
		r.reach("a/web", "a/db", p, 80, true)
		r.reach("b/web", "a/db", p, 80, true)
	}

	deny := &model.NetworkPolicy{Meta: model.Meta{Name: named("a/deny")}, Ingress: true}
	r.update(deny)
	for _, p := range both {
		r.reach("a/web", "a/db", p, 80, false)
		r.reach("b/web", "a/web", p, 80, false)
		r.reach("a/web", "b/web", p, 80, true)
	}
	for _, a := range r.pods["a/db"].Addrs {
		if !r.node.Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, true) {
			t.Errorf("the node does not reach its own isolated pod at %s", a)
		}
	}

	r.update(&model.NetworkPolicy{Meta: model.Meta{Name: named("a/db")}, PodSelector: *sel("role=db"), Ingress: true,
		IngressFrom: []model.PolicyRule{{
			Peers: []model.PolicyPeer{{PodSelector: sel("role=web"), NamespaceSelector: sel("team=b")}},
			Ports: []model.PolicyPort{{Protocol: model.TCP, Port: 80}},
		}}})
	r.reach("b/web", "a/db", model.TCP, 80, true)
	r.reach("b/web", "a/db", model.TCP, 81, false)
	r.reach("b/web", "a/db", model.UDP, 80, false)
	r.reach("a/web", "a/db", model.TCP, 80, false)

	// Labels change live: namespace's and pod's.
	r.update(namespace("b", "team=c"))
	r.reach("b/web", "a/db", model.TCP, 80, false)
	r.update(namespace("b", "team=b"), podObject("b/web", "role=other", "10.0.0.3 fd00::3"))
	r.reach("b/web", "a/db", model.TCP, 80, false)
	r.update(podObject("b/web", "role=web", "10.0.0.3 fd00::3"))
	r.reach("b/web", "a/db", model.TCP, 80, true)

	// Egress: names mean what they do on the destination.
	out := &model.NetworkPolicy{Meta: model.Meta{Name: named("b/out")}, Egress: true,
		EgressTo: []model.PolicyRule{{Ports: []model.PolicyPort{{Protocol: model.TCP, Name: "http"}}}}}
	r.update(out)
	r.reach("b/web", "a/db", model.TCP, 80, true)
	r.reach("b/web", "a/web", model.TCP, 80, false)
	r.update(nothing(deny.Name))
	r.reach("b/web", "a/web", model.TCP, 80, true)
	r.reach("b/web", "a/web", model.TCP, 81, false)

	// A pod's own node is as far away as anything.
	r.node.AddAddr(t, policytest.Addrs("10.9.9.9 fd99::9")...)
	r.node.Listen(t, model.TCP, 80)
	for _, a := range policytest.Addrs("10.9.9.9 fd99::9") {
		if r.pods["b/web"].Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, false) {
			t.Errorf("egress to the node's %s passed", a)
		}
		if !r.pods["a/web"].Reaches(t, netip.Addr{}, netip.AddrPortFrom(a, 80), model.TCP, true) {
			t.Errorf("egress of an open pod to the node's %s did not pass", a)
		}
	}

	r.update(&model.NetworkPolicy{Meta: model.Meta{Name: named("b/blocks")}, Egress: true, EgressTo: []model.PolicyRule{
		{Peers: []model.PolicyPeer{{Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}}},
			Ports: []model.PolicyPort{{Protocol: model.TCP, Port: 81, EndPort: 90}}},
	}})
	for port, want := range map[uint16]bool{80: true, 81: true} {
		if got := r.pods["b/web"].Reaches(t, netip.Addr{}, netip.AddrPortFrom(r.pods["a/web"].Addrs[0], port), model.TCP, want); got != want {
			t.Errorf("to a block's address, port %d: %v", port, got)
		}
	}
	if r.pods["b/web"].Reaches(t, netip.Addr{}, netip.AddrPortFrom(r.pods["a/db"].Addrs[0], 81), model.TCP, false) {
		t.Error("an exception of a block passed")
	}
	if testing.Verbose() {
		if _, err := exec.LookPath("nft"); err == nil {
			t.Log(r.ruleset())
		}
	}
	r.update(nothing(out.Name), nothing(named("b/blocks")), nothing(named("a/db")))
	if p := r.k.Program(); len(p.Chains)+len(p.Sets)+len(p.Pods) != 0 {
		t.Errorf("without policies the program still has %d chains, %d sets, %d pods", len(p.Chains), len(p.Sets), len(p.Pods))
	}
	r.reach("b/web", "a/db", model.UDP, 81, true)
}

// Nobody else changes the table; when its owner is gone the next one takes it over as it is.
func TestOwnership(t *testing.T) {
	r := newRig(t)
	if r.table.shared {
		nstest.Require(t, errors.New("a kernel that keeps others from a table (Linux 6.9)"))
	}
	r.update(namespace("a", ""))
	r.pod("a/web", "role=web", "10.0.0.1 fd00::1")
	r.pod("a/db", "role=db", "10.0.0.2 fd00::2")
	r.update(&model.NetworkPolicy{Meta: model.Meta{Name: named("a/db")}, PodSelector: *sel("role=db"), Ingress: true})
	other, err := Open(Options{Netns: r.node.FD})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for what, m := range map[string]nft.Message{"remove the table": other.delTable(), "flush a chain": other.flushChain(chainForward)} {
		if err := other.transact([]nft.Message{m}); !errors.Is(err, unix.EPERM) {
			t.Errorf("to %s, as somebody else, says %v", what, err)
		}
	}
	// What "nft flush ruleset" sends: everything that is somebody's is left alone.
	if err := other.transact([]nft.Message{{Type: unix.NFT_MSG_DELTABLE}}); err != nil {
		t.Fatal(err)
	}
	if err := other.Sync(r.k.Program()); !errors.Is(err, unix.EPERM) {
		t.Errorf("beside the owner, Sync says %v", err)
	}
	r.reach("a/web", "a/db", model.TCP, 80, false)

	before, err := r.table.read()
	if err != nil {
		t.Fatal(err)
	}
	r.table.Close()
	r.reach("a/web", "a/db", model.TCP, 80, false)
	if err := other.Sync(r.k.Program()); err != nil {
		t.Fatal(err)
	}
	after, err := other.read()
	if err != nil {
		t.Fatal(err)
	}
	if after.owner != other.conn.Port() || before.owner == after.owner {
		t.Errorf("the table passed from %d to %d, want to %d", before.owner, after.owner, other.conn.Port())
	}
	before.owner = after.owner
	if !reflect.DeepEqual(after, before) {
		t.Errorf("the table is now %v, was %v", after, before)
	}
	if err := other.Erase(); err != nil {
		t.Error(err)
	}
}

// Sync takes over what is there, puts right what somebody changed, and leaves nothing else.
func TestSyncAdoptsAndRepairs(t *testing.T) {
	r := newRigWith(t, true)
	r.update(namespace("a", ""))
	r.pod("a/web", "role=web", "10.0.0.1 fd00::1")
	r.pod("a/db", "role=db", "10.0.0.2 fd00::2")
	r.update(&model.NetworkPolicy{Meta: model.Meta{Name: named("a/db")}, PodSelector: *sel("role=db"), Ingress: true,
		IngressFrom: []model.PolicyRule{{Peers: []model.PolicyPeer{{PodSelector: sel("role=app")}}}}})
	r.reach("a/web", "a/db", model.TCP, 80, false)
	before, err := r.table.read()
	if err != nil {
		t.Fatal(err)
	}

	damage := map[string][]nft.Message{
		"nothing":         nil,
		"the whole table": {r.table.delTable()},
		"the rules":       {r.table.flushChain(chainGuard)},
		"a base chain":    {r.table.flushChain(chainForward), r.table.delChain(chainForward)},
		"a foreign set":   {r.table.newSet(&set{name: "stranger", fields: []field{fieldAddr4}})},
	}
	for name := range r.k.Program().Sets {
		more, _ := memberElements(policy.Addrs, map[policy.Member]struct{}{{Addr: r.pods["a/web"].Addrs[0]}: {}})
		damage["foreign elements"] = append(damage["foreign elements"], r.table.change(unix.NFT_MSG_NEWSETELEM, name+family4, more)...)
	}
	for what, msgs := range damage {
		t.Run(what, func(t *testing.T) {
			if err := r.table.transact(msgs); err != nil {
				t.Fatal(err)
			}
			again, err := Open(Options{Netns: r.node.FD, Shared: true})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			fresh := policy.NewCompiler("n1")
			fresh.Update(delta(podObject("a/web", "role=web", "10.0.0.1 fd00::1"), podObject("a/db", "role=db", "10.0.0.2 fd00::2"),
				r.k.NetworkPolicies("a")[0]))
			if err := again.Sync(fresh.Program()); err != nil {
				t.Fatal(err)
			}
			after, err := again.read()
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(after, before) {
				t.Errorf("the table is now %v, was %v", after, before)
			}
			// What is as it should be is left alone: two agents must not work against each other.
			if err := again.Sync(fresh.Program()); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{true: 1}[len(msgs) > 0]; again.sent != want {
				t.Errorf("%d transactions were sent, want %d", again.sent, want)
			}
			sub := *r
			sub.t = t
			sub.reach("a/web", "a/db", model.TCP, 80, false)
			sub.reach("a/db", "a/web", model.TCP, 80, true)
		})
	}
	if err := r.table.Erase(); err != nil {
		t.Fatal(err)
	}
	if s, err := r.table.read(); s != nil || err != nil {
		t.Errorf("after Erase there is %v, %v", s, err)
	}
	r.reach("a/web", "a/db", model.TCP, 80, true)
}

// A socket of the size that a user namespace gets takes several transactions, and the result is the same.
func TestSmallBuffers(t *testing.T) {
	r := newRig(t)
	r.table.limit = 20000
	d := delta(namespace("a", ""))
	for i := range 3000 {
		p := podObject(fmt.Sprintf("a/p%d", i), fmt.Sprintf("n=%d", i%7), fmt.Sprintf("10.1.%d.%d fd00::1:%x", i/256, i%256, i))
		d.Pods[p.Name] = p
		if i > 40 {
			p.Node = "n2"
		}
	}
	for i := range 7 {
		np := &model.NetworkPolicy{Meta: model.Meta{Name: model.Name{Namespace: "a", Name: fmt.Sprint("np", i)}}, PodSelector: *sel(fmt.Sprintf("n=%d", i)), Ingress: true,
			IngressFrom: []model.PolicyRule{{Peers: []model.PolicyPeer{{PodSelector: sel(fmt.Sprintf("n=%d", (i+1)%7))}}}}}
		d.NetworkPolicies[np.Name] = np
	}
	if err := r.table.Apply(r.k.Update(d)); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.k.Program().Sets {
		for k, want := range halves(s) {
			got := r.held(k.name)
			if del, add := difference(got, want); len(del)+len(add) != 0 {
				t.Errorf("set %s: %d elements too many, %d too few of %d", k.name, len(del), len(add), len(want))
			}
		}
	}
}

// Blocks with exceptions, of any shape, arrive in the kernel as they are meant.
func TestBlocks(t *testing.T) {
	r := newRig(t)
	w := rand.New(rand.NewPCG(1, 2))
	prefix := func(min int) netip.Prefix {
		p, err := netip.AddrFrom4([4]byte{10, 0, byte(w.IntN(4)), byte(w.IntN(256))}).Prefix(min + w.IntN(33-min))
		if w.IntN(2) == 0 {
			p, err = netip.MustParseAddr(fmt.Sprintf("fd00::%x", w.IntN(1<<16))).Prefix(96 + min + w.IntN(33-min))
		}
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for i := range 100 {
		d := delta(podObject("a/db", "", "10.0.0.2 fd00::2"))
		np := &model.NetworkPolicy{Meta: model.Meta{Name: named("a/blocks")}, Ingress: true, IngressFrom: []model.PolicyRule{{}}}
		for range 1 + w.IntN(8) {
			peer := model.PolicyPeer{Block: prefix(0)}
			for range w.IntN(8) {
				peer.Except = append(peer.Except, prefix(16))
			}
			np.IngressFrom[0].Peers = append(np.IngressFrom[0].Peers, peer)
		}
		d.NetworkPolicies[np.Name] = np
		if err := r.table.Apply(r.k.Update(d)); err != nil {
			t.Fatalf("policy %d: %v: %+v", i, err, np.IngressFrom)
		}
		for _, s := range r.k.Program().Sets {
			for k, want := range halves(s) {
				if del, add := difference(r.held(k.name), want); len(del)+len(add) > 0 {
					t.Fatalf("policy %d: set %s: %v too many, %v too few", i, k.name, del, add)
				}
			}
		}
	}
}
