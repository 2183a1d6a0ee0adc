// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nft/policytable"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// newSharedPolicyRig is newPolicyRig on a kernel that can't keep others from the table.
func newSharedPolicyRig(t *testing.T) *policyRig {
	r := &policyRig{t: t, node: policytest.NewNode(t), dir: t.TempDir(), events: &recorded{}, shared: true}
	r.start()
	return r
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
		policytest.Eventually(t, policytest.Deadline, "a connection that was opened while the table was gone ends", func() bool {
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
