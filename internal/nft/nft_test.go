// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/nstest"
)

func dial(t testing.TB) *Conn {
	t.Helper()
	nstest.Enter(t)
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var testTable = Table{IPv4, "t"}

func key(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// TestBatch commits a big transaction and reads all of it back: more elements than one message holds, in a map with
// data and comments.
func TestBatch(t *testing.T) {
	c := dial(t)
	set := &Set{Table: testTable, Name: "m", Key: Type{IPv4Addr}, Data: Type{Mark}, Comment: "a map"}
	var b Batch
	b.AddTable(testTable, "a table")
	b.AddSet(set)
	const n = 20000
	long := strings.Repeat("x", 200)
	for i := range uint32(n) {
		b.Add(set, key(i), binary.NativeEndian.AppendUint32(nil, i^7), long)
	}
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	read := func() map[uint32]uint32 {
		t.Helper()
		for {
			data, came := make(map[uint32]uint32), 0
			if err := c.Elements(set, func(e Elem) {
				k := binary.BigEndian.Uint32(e.Key)
				if data[k] = binary.NativeEndian.Uint32(e.Data); k != 1 && e.Comment != long[:maxComment] {
					t.Errorf("element %d has a comment of %d bytes", k, len(e.Comment))
				}
				came++
			}); err != nil {
				t.Fatal(err)
			}
			if came == len(data) { // else the set has just grown: see Elements
				return data
			}
		}
	}
	got := read()
	for k, v := range got {
		if v != k^7 {
			t.Errorf("element %d: %d", k, v)
		}
	}
	if len(got) != n {
		t.Fatalf("%d elements, want %d", len(got), n)
	}
	// Replaced and deleted in one transaction; a batch that is used again holds nothing of before.
	b.Reset()
	b.Delete(set, key(1))
	b.Add(set, key(1), binary.NativeEndian.AppendUint32(nil, 99), "")
	b.Delete(set, key(2))
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	if got = read(); len(got) != n-1 || got[1] != 99 {
		t.Errorf("%d elements, the first is %d", len(got), got[1])
	}
	if b.Reset(); !b.Empty() || c.Commit(&b) != nil {
		t.Error("an empty batch is not nothing to do")
	}
}

// TestRefused: a refused transaction changes nothing, and the error names what the kernel did not take.
func TestRefused(t *testing.T) {
	c := dial(t)
	set := &Set{Table: testTable, Name: "numbers", Key: Type{IPv4Addr}, Data: Type{Mark}}
	chain := Chain{Table: testTable, Name: "c"}
	var b Batch
	b.AddTable(testTable, "")
	b.AddSet(set)
	b.Add(set, key(1), make([]byte, 4), "")
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		fill  func(*Batch)
		errno error
		name  string
	}{
		{func(b *Batch) { b.Add(set, key(2), make([]byte, 4), ""); b.Delete(set, key(9)) }, unix.ENOENT, "delete elements of set ip t numbers"},
		{func(b *Batch) {
			b.Add(set, key(2), make([]byte, 4), "")
			b.Add(set, key(1), []byte{1, 1, 1, 1}, "")
		}, unix.EEXIST, "add elements to set ip t numbers"},
		{func(b *Batch) {
			b.Add(set, key(2), make([]byte, 4), "")
			b.AddRule(chain, "", &expr.Verdict{Kind: expr.VerdictDrop})
		}, unix.ENOENT, "add rule to chain ip t c"},
		{func(b *Batch) { b.DeleteChain(chain) }, unix.ENOENT, "delete chain ip t c"},
		{func(b *Batch) { b.DeleteTable(Table{IPv6, "none"}) }, unix.ENOENT, "delete table ip6 none"},
	} {
		b.Reset()
		x.fill(&b)
		err := c.Commit(&b)
		if !errors.Is(err, x.errno) || !strings.Contains(err.Error(), x.name) {
			t.Errorf("error %v, want %v of %q", err, x.errno, x.name)
		}
		n := 0
		if err := c.Elements(set, func(Elem) { n++ }); err != nil || n != 1 {
			t.Errorf("%s: %d elements are there; %v", x.name, n, err)
		}
	}
	b.Reset()
	for i := range uint32(c.Limit()/20 + 1) {
		b.Add(set, key(100+i), make([]byte, 4), "")
	}
	if err := c.Commit(&b); err == nil || !strings.Contains(err.Error(), "net.core.wmem_max") {
		t.Errorf("a transaction beyond the limit: %v", err)
	}
	if err := c.Elements(&Set{Table: testTable, Name: "none"}, func(Elem) {}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("elements of a set that is not there: %v", err)
	}
}

// TestRanges reads back what was put into sets of ranges, of one component and of several, up to the last address.
func TestRanges(t *testing.T) {
	c := dial(t)
	one := &Set{Table: testTable, Name: "one", Key: Type{IPv4Addr}, Flags: Interval}
	two := &Set{Table: testTable, Name: "two", Key: Type{Port, IPv4Addr}, Flags: Interval}
	port := func(p byte) []byte { return []byte{0, p, 0, 0} }
	var b Batch
	b.AddTable(testTable, "")
	b.AddSet(one)
	b.AddSet(two)
	b.AddRange(one, []byte{10, 0, 0, 0}, []byte{10, 0, 0, 255}, "")
	b.AddRange(one, []byte{10, 0, 1, 0}, []byte{10, 0, 1, 255}, "") // right behind
	b.AddRange(one, []byte{224, 0, 0, 0}, []byte{255, 255, 255, 255}, "")
	b.AddRange(two, append(port(80), 10, 0, 0, 0), append(port(80), 10, 0, 0, 255), "")
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	starts, ends := 0, 0
	if err := c.Elements(one, func(e Elem) {
		if e.End {
			ends++
		} else {
			starts++
		}
	}); err != nil || starts != 3 {
		t.Errorf("%d starts and %d ends; %v", starts, ends, err)
	}
	if err := c.Elements(two, func(e Elem) {
		if string(e.Key) != string(append(port(80), 10, 0, 0, 0)) || string(e.KeyEnd) != string(append(port(80), 10, 0, 0, 255)) {
			t.Errorf("range %v - %v", e.Key, e.KeyEnd)
		}
	}); err != nil {
		t.Error(err)
	}
	b.Reset()
	b.DeleteRange(one, []byte{10, 0, 1, 0}, []byte{10, 0, 1, 255})
	b.DeleteRange(one, []byte{224, 0, 0, 0}, []byte{255, 255, 255, 255})
	b.DeleteRange(two, append(port(80), 10, 0, 0, 0), append(port(80), 10, 0, 0, 255))
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, s := range []*Set{one, two} {
		if err := c.Elements(s, func(e Elem) {
			if !e.End {
				left++
			}
		}); err != nil {
			t.Error(err)
		}
	}
	if left != 1 {
		t.Errorf("%d ranges left, want 1", left)
	}
}

// TestRuleIs: a rule read back is what was written, and not another.
func TestRuleIs(t *testing.T) {
	c := dial(t)
	set := &Set{Table: testTable, Name: "s", Key: Type{IPv4Addr}}
	chain := Chain{Table: testTable, Name: "c"}
	rule := func(offset uint32, set string, v expr.VerdictKind) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 12, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
			&expr.Lookup{SourceRegister: 12, SetName: set},
			&expr.Verdict{Kind: v},
		}
	}
	var b Batch
	b.AddTable(testTable, "")
	b.AddSet(set)
	b.AddChain(chain)
	b.AddRule(chain, "", rule(16, "s", expr.VerdictDrop)...)
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	rules, err := c.ChainRules(testTable)
	if err != nil || len(rules["c"]) != 1 {
		t.Fatalf("%v %v", rules, err)
	}
	got := rules["c"][0]
	if !got.Is(IPv4, rule(16, "s", expr.VerdictDrop)) {
		t.Error("the rule is not what was written")
	}
	for _, other := range [][]expr.Any{
		rule(12, "s", expr.VerdictDrop), rule(16, "x", expr.VerdictDrop), rule(16, "s", expr.VerdictAccept),
		rule(16, "s", expr.VerdictDrop)[:2], append(rule(16, "s", expr.VerdictDrop), &expr.Counter{}),
	} {
		if got.Is(IPv4, other) {
			t.Errorf("the rule was taken for %v", other)
		}
	}
}

// TestGeneration: each transaction counts, whoever makes it, and nothing else does.
func TestGeneration(t *testing.T) {
	c := dial(t)
	other, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	before, err := c.Generation()
	if err != nil {
		t.Fatal(err)
	}
	for i, by := range []*Conn{c, other, c} {
		var b Batch
		b.AddTable(Table{IPv4, string(rune('a' + i))}, "")
		if err := by.Commit(&b); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Generation(); err != nil || got != before+uint32(i)+1 {
			t.Errorf("after %d transactions: generation %d, was %d; %v", i+1, got, before, err)
		}
	}
}

func TestMonitor(t *testing.T) {
	c := dial(t)
	m, err := NewMonitor(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := errors.Join(m.Join(), m.Join()); err != nil {
		t.Fatal(err)
	}
	other, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	var b Batch
	commit := func(by *Conn, name string) {
		t.Helper()
		b.Reset()
		b.AddTable(Table{IPv4, name}, "")
		if err := by.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	commit(c, "t")           // its own
	commit(other, "foreign") // not ours
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if changed, err := m.Wait(ctx, testTable); changed || err != nil {
		t.Errorf("woken: %v %v", changed, err)
	}
	b.Reset()
	b.DeleteTable(testTable)
	if err := other.Commit(&b); err != nil {
		t.Fatal(err)
	}
	if changed, err := m.Wait(context.Background(), testTable); !changed || err != nil {
		t.Errorf("not woken: %v %v", changed, err)
	}
}
