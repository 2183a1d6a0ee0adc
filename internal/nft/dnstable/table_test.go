// SPDX-License-Identifier: Apache-2.0

package dnstable

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/dnspath"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/nstest"
)

func open(t *testing.T) *Table {
	t.Helper()
	tab, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tab.Close() })
	return tab
}

func paths(ready bool, servers ...string) (p dnspath.Paths) {
	for _, s := range servers {
		a := netip.MustParseAddr(s)
		vip := netip.MustParseAddrPort("10.96.0.10:53")
		if a.Is6() {
			vip = netip.MustParseAddrPort("[fd00:96::a]:53")
		}
		if ready {
			p.Queries = append(p.Queries, dnspath.Query{Service: model.Name{Namespace: "kube-system", Name: "dns"}, Frontend: vip, Server: a})
		}
		p.Servers = append(p.Servers, dnspath.Server{Addr: a, Port: 5300, Untracked: 1053, Frontend: vip})
	}
	return p
}

// held is what the kernel's maps have: "map: key -> value", sorted.
func held(t *testing.T, tab *Table) (out []string) {
	t.Helper()
	for _, f := range tab.families {
		pair := func(b []byte) string {
			n := 4 * int(f.words)
			if len(b) < n {
				return fmt.Sprint(int(b[0])<<8 | int(b[1]))
			}
			a, _ := netip.AddrFromSlice(b[:n])
			if len(b) == n {
				return a.String()
			}
			return netip.AddrPortFrom(a, uint16(b[n])<<8|uint16(b[n+1])).String()
		}
		for _, s := range f.sets() {
			err := tab.conn.Elements(s, func(e nft.Elem) {
				line := s.Name + ": " + pair(e.Key)
				if e.Data != nil {
					line += " -> " + pair(e.Data)
				}
				out = append(out, line)
			})
			if err != nil {
				t.Fatalf("%s %s: %v", f.table, s.Name, err)
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestTableHoldsThePaths(t *testing.T) {
	nstest.Enter(t)
	tab := open(t)
	for _, c := range []struct {
		why   string
		paths dnspath.Paths
		want  []string
	}{
		{"nothing", dnspath.Paths{}, nil},
		{"both families", paths(true, "10.1.0.5", "fd00::5"), []string{
			"answers: 10.1.0.5:1053 -> 10.96.0.10", "answers: [fd00::5]:1053 -> fd00:96::a",
			"ports: 10.1.0.5:5300 -> 1053", "ports: [fd00::5]:5300 -> 1053",
			"queries: 10.96.0.10:53 -> 10.1.0.5", "queries: [fd00:96::a]:53 -> fd00::5",
			"servers: 10.1.0.5", "servers: fd00::5",
			"targets: 10.1.0.5:53 -> 5300", "targets: [fd00::5]:53 -> 5300"}},
		{"not ready", paths(false, "10.1.0.5"), []string{
			"answers: 10.1.0.5:1053 -> 10.96.0.10", "ports: 10.1.0.5:5300 -> 1053", "servers: 10.1.0.5", "targets: 10.1.0.5:53 -> 5300"}},
		{"another server", paths(true, "10.1.0.6"), []string{
			"answers: 10.1.0.6:1053 -> 10.96.0.10", "ports: 10.1.0.6:5300 -> 1053", "queries: 10.96.0.10:53 -> 10.1.0.6", "servers: 10.1.0.6",
			"targets: 10.1.0.6:53 -> 5300"}},
		{"nothing again", dnspath.Paths{}, nil},
	} {
		for range 2 { // applied once more it changes nothing
			if err := tab.Apply(c.paths); err != nil {
				t.Fatalf("%s: %v", c.why, err)
			}
			if got := held(t, tab); !slices.Equal(got, c.want) {
				t.Errorf("%s:\n got %s\nwant %s", c.why, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
		}
	}
	// An agent that starts makes the tables anew, whatever was there.
	if err := tab.Apply(paths(true, "10.1.0.6")); err != nil {
		t.Fatal(err)
	}
	next := open(t)
	if err := next.Apply(paths(false, "10.1.0.7")); err != nil {
		t.Fatal(err)
	}
	if got := held(t, next); len(got) != 4 || got[0] != "answers: 10.1.0.7:1053 -> 10.96.0.10" {
		t.Errorf("after a restart: %q", got)
	}
	chains, err := next.conn.Chains(next.families[0].table)
	if err != nil || len(chains) != 4 {
		t.Errorf("chains: %q, %v", chains, err)
	}
	if err := Remove(); err != nil {
		t.Fatal(err)
	}
	if names, err := next.conn.Tables(nft.IPv4); err != nil || slices.Contains(names, TableName) {
		t.Errorf("after Remove: %q, %v", names, err)
	}
}

// The rules are what the kernel says they are.
func TestRules(t *testing.T) {
	nstest.Enter(t)
	tab := open(t)
	if err := tab.Apply(dnspath.Paths{}); err != nil {
		t.Fatal(err)
	}
	for _, f := range tab.families {
		got, err := tab.conn.ChainRules(f.table)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range f.chains() {
			if len(got[c.name]) != len(c.rules) {
				t.Errorf("%s %s: %d rules, want %d", f.table, c.name, len(got[c.name]), len(c.rules))
				continue
			}
			for i, r := range c.rules {
				if !got[c.name][i].Is(f.table.Family, r.exprs) {
					t.Errorf("%s %s: rule %d is not %q", f.table, c.name, i, r.text)
				}
			}
		}
	}
}

// Somebody else's change is noticed, one's own is not.
func TestWait(t *testing.T) {
	nstest.Enter(t)
	tab, other := open(t), open(t)
	if err := tab.Apply(paths(true, "10.1.0.5")); err != nil {
		t.Fatal(err)
	}
	heard := make(chan bool, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		changed, err := tab.Wait(ctx)
		if err != nil {
			t.Error(err)
		}
		heard <- changed
	}()
	if err := tab.Apply(paths(true, "10.1.0.6")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-heard:
		t.Fatal("its own change was taken for another's")
	case <-time.After(50 * time.Millisecond):
	}
	if err := other.Apply(dnspath.Paths{}); err != nil {
		t.Fatal(err)
	}
	if !<-heard {
		t.Error("another's change was not noticed")
	}
	tab.Forget()
	if err := tab.Apply(paths(true, "10.1.0.6")); err != nil {
		t.Fatal(err)
	}
	if got := held(t, tab); len(got) != 5 {
		t.Errorf("after the repair: %q", got)
	}
}
