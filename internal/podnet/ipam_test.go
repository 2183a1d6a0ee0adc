// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func addrs(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// drain allocates until the pool is full.
func drain(t *testing.T, p *pool, now time.Time) (got []string) {
	t.Helper()
	for i := 0; ; i++ {
		ips, err := p.allocate(fmt.Sprint("fill", i), now)
		if errors.Is(err, errNoAddress) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.Trim(fmt.Sprint(ips), "[]"))
	}
}

func TestPoolRanges(t *testing.T) {
	for _, c := range []struct {
		name  string
		cidrs []netip.Prefix
		want  []string
	}{
		{"network and broadcast addresses are not for pods", prefixes("10.0.0.0/29"), []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"}},
		{"IPv6 has no broadcast address", prefixes("fd00::/126"), []string{"fd00::1", "fd00::2", "fd00::3"}},
		{"host bits are ignored", prefixes("10.0.0.9/30"), []string{"10.0.0.9", "10.0.0.10"}},
		{"a range too small for either is used whole", prefixes("10.0.0.0/31"), []string{"10.0.0.0", "10.0.0.1"}},
		{"one address", prefixes("10.0.0.7/32"), []string{"10.0.0.7"}},
		{"the last addresses there are", prefixes("255.255.255.252/30"), []string{"255.255.255.253", "255.255.255.254"}},
		{"dual: the order of the podCIDRs", prefixes("fd00::/126", "10.0.0.0/24"), []string{"fd00::1 10.0.0.1", "fd00::2 10.0.0.2", "fd00::3 10.0.0.3"}},
		{"the second range of a family comes when the first is full", prefixes("10.0.0.0/30", "10.1.0.0/30"), []string{"10.0.0.1", "10.0.0.2", "10.1.0.1", "10.1.0.2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPool()
			p.setRanges(c.cidrs)
			if got := drain(t, p, time.Unix(0, 0)); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestPoolIsFull(t *testing.T) {
	p := newPool()
	p.setRanges(prefixes("10.0.0.0/24", "fd00::/126"))
	drain(t, p, time.Unix(0, 0))
	_, err := p.allocate("x", time.Unix(0, 0))
	if !errors.Is(err, errNoAddress) || !strings.Contains(err.Error(), "fd00::/126") || !strings.Contains(err.Error(), "3 pods") {
		t.Errorf("error %v: want the full range and the number of pods", err)
	}
	// The IPv4 address that came first must not be lost to the failure.
	if n := len(p.used); n != 6 {
		t.Errorf("%d addresses in use after the failure, want 6", n)
	}
}

// TestPoolRest frees addresses and sees when they come back.
func TestPoolRest(t *testing.T) {
	now := time.Unix(1000, 0)
	p := newPool()
	p.setRanges(prefixes("10.0.0.0/29"))
	one := func(owner string, want string) {
		t.Helper()
		ips, err := p.allocate(owner, now)
		if err != nil || ips[0].String() != want {
			t.Fatalf("got %v, %v, want %s", ips, err, want)
		}
	}
	one("a", "10.0.0.1")
	p.release("a", addrs("10.0.0.1"), now)
	one("b", "10.0.0.2") // not the one just freed
	for _, ip := range []string{"10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"} {
		one(ip, ip)
	}
	// All others are in use: rather an early reuse than a pod without a network.
	one("c", "10.0.0.1")
	p.release("10.0.0.4", addrs("10.0.0.4"), now)
	now = now.Add(time.Second)
	p.release("10.0.0.3", addrs("10.0.0.3"), now)
	one("d", "10.0.0.4") // the one that has rested longest, though 10.0.0.3 is nearer
	p.release("b", addrs("10.0.0.2"), now)
	now = now.Add(restTime)
	p.release("10.0.0.5", addrs("10.0.0.5"), now)
	one("e", "10.0.0.2") // rested; .5 comes first in the round but hasn't
	p.release("somebody else", addrs("10.0.0.2"), now)
	one("f", "10.0.0.3") // what somebody else does not own is not freed
}

func TestPoolTake(t *testing.T) {
	p := newPool()
	p.setRanges(prefixes("10.0.0.0/30"))
	if o := p.take("a", addrs("10.0.0.1", "10.9.9.9")); o != "" {
		t.Fatalf("taken by %s", o)
	}
	if o := p.take("b", addrs("10.0.0.2", "10.0.0.1")); o != "a" {
		t.Errorf("other owner is %q, want a", o)
	}
	if o := p.take("a", addrs("10.0.0.1")); o != "" {
		t.Errorf("taking again what one has: %s", o)
	}
	if got := drain(t, p, time.Unix(0, 0)); !slices.Equal(got, []string{"10.0.0.2"}) {
		t.Errorf("free were %v", got)
	}
}

func TestRangeSize(t *testing.T) {
	for cidr, want := range map[string]float64{"10.0.0.0/24": 254, "10.0.0.0/31": 2, "10.0.0.0/32": 1, "fd00::/126": 3, "fd00::/128": 1, "fd00::/64": 1<<53 - 1} {
		r := newRange(netip.MustParsePrefix(cidr))
		if got := r.size(); got != want {
			t.Errorf("%s: %v, want %v", cidr, got, want)
		}
		for range 20 {
			if a := randomStart(r); !r.contains(a) {
				t.Errorf("%s: random start %s is outside", cidr, a)
			}
		}
	}
}

func TestMergePrefixes(t *testing.T) {
	var got []string
	for _, r := range mergePrefixes(prefixes("10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32", "10.0.4.0/24", "10.0.6.0/23", "10.0.7.1/32", "fd00:0:0:1::/64", "fd00::/64", "255.0.0.0/8", "::/1")) {
		got = append(got, r.first.String()+"-"+r.last.String())
	}
	want := []string{
		"10.0.0.0-10.0.1.255", "10.0.4.0-10.0.4.255", "10.0.6.0-10.0.7.255", "255.0.0.0-255.255.255.255",
		"::-7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::-fd00::1:ffff:ffff:ffff:ffff",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &record{Link: "weft0123456789a", ContainerID: "c", IPs: addrs("10.0.0.1", "fd00::1"), Wired: true}
	other := &record{Link: "weftbbbbbbbbbbb"}
	if err := errors.Join(s.put(r), s.put(other)); err != nil {
		t.Fatal(err)
	}
	other.Boot = "an earlier one"
	if err := errors.Join(writeJSON(s.path(other.Link), other), writeFile(s.path("weftccccccccccc"), []byte(`{"link":`), 0o600), writeFile(s.path("weftddddddddddd"), []byte(`{"link":"x"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	recs, errs := s.load()
	if len(recs) != 1 || recs[0].Link != r.Link || !slices.Equal(recs[0].IPs, r.IPs) || !recs[0].Wired {
		t.Errorf("records: %+v", recs)
	}
	if len(errs) != 2 {
		t.Errorf("errors: %v, want those of the two broken files", errs)
	}
	if recs, errs = s.load(); len(recs) != 1 || len(errs) != 0 {
		t.Errorf("again: %d records, %v: what is no use must be gone", len(recs), errs)
	}

	p := newPool()
	p.setRanges(prefixes("10.0.0.0/24"))
	now := time.Unix(1000, 0).UTC()
	ips, _ := p.allocate("a", now)
	p.release("a", ips, now)
	if err := s.putRanges(p); err != nil {
		t.Fatal(err)
	}
	q := newPool()
	st := s.loadRanges()
	q.cursor, q.freed = st.Cursor, st.Freed
	q.setRanges(prefixes("10.0.0.0/24"))
	if ips, err := q.allocate("b", now); err != nil || ips[0] != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("after a restart: %v, %v, want the next address", ips, err)
	}

	// A second agent waits for the first.
	got := make(chan error)
	go func() {
		s2, err := openStore(dir)
		if err == nil {
			err = s2.close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("two agents hold one state folder (%v)", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}
