// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Resolutions lapse when the last answer that named them is too old, whatever the order in which answers came.
func TestExpiries(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x, want := newExpiries(), map[resolution]time.Time{}
	now := time.Unix(1_700_000_000, 0)
	for step := range 2000 {
		k := resolution{fmt.Sprintf("%d.example", r.IntN(20)), netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(20))})}
		until := now.Add(time.Duration(1+r.IntN(100)) * time.Second)
		if known := x.knows(k); known != !want[k].IsZero() {
			t.Fatalf("step %d: %v is known: %v", step, k, known)
		}
		x.extend(k, until)
		if until.After(want[k]) {
			want[k] = until
		}
		now = now.Add(time.Duration(r.IntN(1500)) * time.Millisecond)
		gone := 0
		for name, addrs := range x.due(now) {
			for _, a := range addrs {
				if k := (resolution{name, a}); want[k].IsZero() || want[k].After(now) {
					t.Fatalf("step %d: %v lapsed at %s, not %s", step, k, now, want[k])
				}
				delete(want, resolution{name, a})
				gone++
			}
		}
		first := time.Time{}
		if len(want) > 0 {
			first = slices.MinFunc(slices.Collect(maps.Values(want)), time.Time.Compare)
		}
		if x.len() != len(want) || !x.first().Equal(first) || !first.IsZero() && !first.After(now) {
			t.Fatalf("step %d: %d are known, and the first lapses at %s; want %d and %s", step, x.len(), x.first(), len(want), first)
		}
	}
}

// What names resolve to is kept as it comes to be known, for as long as it counts, and without writing all of it.
func TestNamesFile(t *testing.T) {
	at := filepath.Join(t.TempDir(), "weft", "names.json")
	f, x := namesFile{path: at}, newExpiries()
	now := time.Unix(1_700_000_000, 0).UTC()
	hear := func(name string, ttl time.Duration) {
		t.Helper()
		if err := f.keep([]*expiring{x.extend(resolution{name, netip.MustParseAddr("2001:db8::1")}, now.Add(ttl))}, x); err != nil {
			t.Fatal(err)
		}
	}
	read := func() map[string]time.Time {
		t.Helper()
		list, err := (&namesFile{path: at}).read()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]time.Time{}
		for _, l := range list {
			out[l.Name] = l.Until
		}
		return out
	}
	size := func() int64 {
		t.Helper()
		i, err := os.Stat(at)
		if err != nil {
			t.Fatal(err)
		}
		return i.Size()
	}
	if len(read()) != 0 {
		t.Error("a file that is not there says something")
	}
	hear("a.example", time.Minute)
	hear("b.example", time.Minute)
	hear("a.example", time.Hour)
	if got := read(); !got["a.example"].Equal(now.Add(time.Hour)) || !got["b.example"].Equal(now.Add(time.Minute)) || len(got) != 2 {
		t.Errorf("kept are %v", got)
	}
	before := size()
	hear("a.example", time.Hour+keptWithin/2)
	if size() != before {
		t.Error("an answer that says little new is written")
	}

	// Somebody takes the file away, or an agent dies while it writes.
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	hear("c.example", time.Minute)
	if got := read(); len(got) != 3 {
		t.Errorf("after the file was gone, kept are %v", got)
	}
	whole, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, append(whole, `[{"name":"d.exa`...), 0o600); err != nil {
		t.Fatal(err)
	}
	f = namesFile{path: at}
	list, err := f.read()
	if err == nil || len(list) != 3 {
		t.Errorf("of a file with half a line, read %v, %v", list, err)
	}
	hear("d.example", time.Minute)
	if got := read(); len(got) != 4 {
		t.Errorf("after half a line, kept are %v", got)
	}

	// However often names are asked for, the file is of their size.
	for i := range 20 * keptSpare {
		hear("a.example", 2*time.Hour+time.Duration(i)*time.Minute)
	}
	if got, most := size(), int64(100*(keptSpare+10)); got > most {
		t.Errorf("the file of 4 names has %d bytes, want at most %d", got, most)
	}
	if got := read(); !got["a.example"].Equal(now.Add(2*time.Hour + (20*keptSpare-1)*time.Minute)) {
		t.Errorf("kept are %v", got)
	}

	// What can't be kept is said.
	f = namesFile{path: filepath.Join(at, "not-a-folder", "names.json")}
	var path *os.PathError
	if err := f.keep([]*expiring{x.extend(resolution{"e.example", netip.MustParseAddr("192.0.2.1")}, now)}, x); !errors.As(err, &path) {
		t.Errorf("written where nothing can be: %v", err)
	}
}

// An answer is learned, and lapses, with so many addresses known already: what it costs does not depend on them.
func BenchmarkLearn(b *testing.B) {
	for _, n := range []int{100, 50000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			now := time.Now()
			p := &Policy{compiler: policy.NewCompiler("n1"), expiry: newExpiries(), names: namesFile{path: filepath.Join(b.TempDir(), "names.json")}}
			p.compiler.Update(&model.Delta{ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{"by-name": onlyByName("client", "*.example.com")}})
			q, m := new(dns.Msg), new(dns.Msg)
			learn := func(name, addr string) {
				q.SetQuestion(name, dns.TypeA)
				m.SetRcode(q, dns.RcodeSuccess)
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.ParseIP(addr)}}
				wire, err := m.Pack()
				if err == nil {
					err = p.learn(wire, now)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			for i := range n {
				learn(fmt.Sprintf("%d.example.com.", i), fmt.Sprintf("198.51.%d.%d", i/256%256, i%256))
			}
			defer p.lapser.Stop()
			for i := 0; b.Loop(); i++ {
				now = now.Add(100 * time.Millisecond)
				learn(fmt.Sprintf("new-%d.example.com.", i), fmt.Sprintf("203.0.%d.%d", i/256%256, i%256))
				if err := p.lapse(now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
