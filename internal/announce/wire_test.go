// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
)

var (
	here  = mac{2, 0, 0, 0, 0, 1}
	there = mac{2, 0, 0, 0, 0, 2}
	other = mac{2, 0, 0, 0, 0, 3}
	lb4   = netip.MustParseAddr("192.0.2.1")
	lb6   = netip.MustParseAddr("2001:db8::1")
	who4  = netip.MustParseAddr("192.0.2.100")
	who6  = netip.MustParseAddr("2001:db8::100")
)

// TestARPWire holds the codec against a request as a Linux host sends it.
func TestARPWire(t *testing.T) {
	raw, err := hex.DecodeString(strings.Join(strings.Fields(`
		ffffffffffff 020000000002 0806
		0001 0800 06 04 0001 020000000002 c0000264 000000000000 c0000201`), ""))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := parseARP(append(raw, make([]byte, 18)...)) // Ethernet pads to 60 octets
	want := arpPacket{from: there, op: arpRequest, senderMAC: there, sender: who4, target: lb4}
	if !ok || p != want {
		t.Fatalf("%+v, %v; want %+v", p, ok, want)
	}
	if got := p.frame(broadcast); !bytes.Equal(got, raw) {
		t.Errorf("written:\n%x\nwant:\n%x", got, raw)
	}
	for _, at := range []mac{here, other} { // other: for whom this node stands in
		answer, ok := parseARP(arpAnswer(p, at, here))
		if want := (arpPacket{from: here, op: arpReply, senderMAC: at, sender: lb4, targetMAC: there, target: who4}); !ok || answer != want {
			t.Errorf("answer %+v, want %+v", answer, want)
		}
	}
	probe := arpProbe(who4, lb4, there, here)
	q, ok := parseARP(probe)
	if want := (arpPacket{from: here, op: arpRequest, senderMAC: here, sender: lb4, target: who4}); !ok || q != want || mac(probe[:6]) != there {
		t.Errorf("probe %+v to %x, want %+v to %s", q, probe[:6], want, there)
	}
	for _, f := range arpAnnouncements(lb4, here) {
		a, ok := parseARP(f)
		if !ok || a.sender != lb4 || a.target != lb4 || a.senderMAC != here || !bytes.Equal(f[:6], broadcast[:]) {
			t.Errorf("announcement %+v, %v", a, ok)
		}
	}
	for _, n := range []int{0, 13, 14, 41} {
		if _, ok := parseARP(raw[:n]); ok {
			t.Errorf("%d octets were taken for ARP", n)
		}
	}
}

// solicitation is a Neighbor Solicitation as a host sends it; src unspecified is duplicate address detection.
func solicitation(target, src netip.Addr, from mac) []byte {
	m := &ndp.NeighborSolicitation{TargetAddress: target}
	if !src.IsUnspecified() {
		m.Options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: from[:]}}
	}
	dst := solicitedNode(target)
	return ndpFrame(m, src, dst, from, multicastMAC(dst))
}

func TestNDPWire(t *testing.T) {
	frame := solicitation(lb6, who6, there)
	n, ok := parseNeighbor(frame)
	if want := (neighbor{from: there, src: who6, target: lb6, linkAddr: there}); !ok || n != want {
		t.Fatalf("%+v, %v; want %+v", n, ok, want)
	}
	for _, at := range []mac{here, other} {
		a, ok := parseNeighbor(ndpAnswer(n, at, here))
		if want := (neighbor{advertisement: true, solicited: true, from: here, src: lb6, target: lb6, linkAddr: at}); !ok || a != want {
			t.Errorf("answer %+v, %v; want %+v", a, ok, want)
		}
	}
	probe := ndpProbe(who6, lb6, there, here)
	q, ok := parseNeighbor(probe)
	if want := (neighbor{from: here, src: lb6, target: who6, linkAddr: here}); !ok || q != want || mac(probe[:6]) != there {
		t.Errorf("probe %+v, %v, to %x; want %+v to %s", q, ok, probe[:6], want, there)
	}
	if dst := ndpAnswer(n, here, here)[:6]; !bytes.Equal(dst, there[:]) {
		t.Errorf("answer to %x, want %x", dst, there)
	}
	n, ok = parseNeighbor(solicitation(lb6, netip.IPv6Unspecified(), there))
	if !ok {
		t.Fatal("duplicate address detection was not understood")
	}
	if dst := ndpAnswer(n, here, here)[:6]; !bytes.Equal(dst, []byte{0x33, 0x33, 0, 0, 0, 1}) {
		t.Errorf("answer to duplicate address detection goes to %x, want all nodes", dst)
	}
	for what, change := range map[string]func([]byte){
		"forwarded":      func(b []byte) { b[ethernetLen+7] = 254 },
		"wrong checksum": func(b []byte) { b[len(b)-1] ^= 1 },
		"not ICMPv6":     func(b []byte) { b[ethernetLen+6] = 17 },
		"length":         func(b []byte) { b[ethernetLen+4] = 9 },
	} {
		bad := bytes.Clone(frame)
		change(bad)
		if _, ok := parseNeighbor(bad); ok {
			t.Errorf("%s: was understood", what)
		}
	}
}

func TestHelloWire(t *testing.T) {
	key := []byte("0f6bdc6a-uid")
	h := hello{node: strings.Repeat("n", 253), settled: true, incarnation: 1 << 60, tick: 77, part: 1, parts: 3,
		age: 90 * time.Second, ifindex: 7, claims: someAddrs(maxListed)[:60], wishes: someAddrs(4)}
	frame := h.frame(here, key)
	if len(frame) > 1514 {
		t.Errorf("%d octets do not fit an Ethernet frame", len(frame))
	}
	got, from, ok := parseHello(append(frame, 0, 0, 0), key)
	if !ok || from != here || !reflect.DeepEqual(got, h) {
		t.Fatalf("%+v, %v, %v", got, from, ok)
	}
	h.unable = true
	if got, _, ok := parseHello(h.frame(here, key), key); !ok || !got.unable {
		t.Errorf("one that does not forward: %+v, %v", got, ok)
	}
	told := hello{node: strings.Repeat("n", 253), absent: true, mac: mac{1, 2, 3, 4, 5, 6}, incarnation: 1 << 60, tick: 77, part: 1, parts: 3,
		age: 20 * time.Second, claims: someAddrs(maxListed)}
	if frame := told.frame(here, key); len(frame) > 1514 {
		t.Errorf("what is told of another: %d octets do not fit an Ethernet frame", len(frame))
	} else if got, from, ok := parseHello(append(frame, 0, 0, 0), key); !ok || from != here || !reflect.DeepEqual(got, told) {
		t.Errorf("what is told of another: %+v, %v, %v", got, from, ok)
	} else if _, _, ok := parseHello(frame[:len(frame)-1], key); ok {
		t.Error("what is told of another: it was believed without its last octet")
	}
	if _, _, ok := parseHello(frame, []byte("another cluster")); ok {
		t.Error("another cluster's hello was believed")
	}
	for i := ethernetLen; i < len(frame); i++ {
		bad := bytes.Clone(frame)
		bad[i] ^= 1
		if _, _, ok := parseHello(bad, key); ok {
			t.Fatalf("a change of octet %d went unnoticed", i)
		}
	}
	for n := range frame {
		if _, _, ok := parseHello(frame[:n], key); ok {
			t.Fatalf("%d of %d octets were believed", n, len(frame))
		}
	}
	many := hello{node: "n", claims: someAddrs(maxListed + 10), wishes: someAddrs(maxListed)}.split()
	var claims, wishes []netip.Addr
	for i, part := range many {
		if int(part.part) != i || int(part.parts) != len(many) || len(part.claims)+len(part.wishes) > maxListed {
			t.Errorf("part %d of %d: %+v", i, len(many), part)
		}
		claims, wishes = append(claims, part.claims...), append(wishes, part.wishes...)
	}
	if len(many) != 3 || !slices.Equal(claims, someAddrs(maxListed+10)) || !slices.Equal(wishes, someAddrs(maxListed)) {
		t.Errorf("%d parts with %d claims and %d wishes", len(many), len(claims), len(wishes))
	}
	if one := (hello{node: "n"}).split(); len(one) != 1 || one[0].parts != 1 {
		t.Errorf("with nothing to list: %+v", one)
	}
	if got, _, _ := parseHello((&hello{node: "n", parts: 1, age: 100 * time.Hour}).frame(here, key), key); got.age != maxAge {
		t.Errorf("age %s, want the most that fits, %s", got.age, maxAge)
	}
}

func TestSolicitedNode(t *testing.T) {
	a := netip.MustParseAddr("2001:db8::12:3456")
	if got := solicitedNode(a).String(); got != "ff02::1:ff12:3456" {
		t.Error(got)
	}
	if got := multicastMAC(solicitedNode(a)).String(); got != "33:33:ff:12:34:56" {
		t.Error(got)
	}
}

func FuzzParsers(f *testing.F) {
	key := []byte("k")
	f.Add(arpAnnouncements(lb4, here)[0])
	f.Add(ndpAnnouncement(lb6, here))
	f.Add(solicitation(lb6, who6, there))
	f.Add((&hello{node: "n", parts: 1, claims: someAddrs(3)}).frame(here, key))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if p, ok := parseARP(frame); ok {
			if again, ok := parseARP(p.frame(broadcast)); !ok || again != p {
				t.Errorf("ARP %+v reads back as %+v", p, again)
			}
		}
		if n, ok := parseNeighbor(frame); ok && !n.advertisement && n.target.Is6() {
			if _, ok := parseNeighbor(ndpAnswer(n, here, here)); !ok {
				t.Errorf("the answer to %+v can't be read", n)
			}
		}
		if h, from, ok := parseHello(frame, key); ok {
			if again, _, ok := parseHello(h.frame(from, key), key); !ok || !reflect.DeepEqual(again, h) {
				t.Errorf("hello %+v reads back as %+v", h, again)
			}
		}
	})
}

func TestUsable(t *testing.T) {
	net1 := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	eth := linkInfo{name: "eth0", kind: "device", ethernet: true, running: true, subnets: net1}
	with := func(change func(*linkInfo)) linkInfo { l := eth; change(&l); return l }
	ips := []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	for _, c := range []struct {
		what     string
		l        linkInfo
		patterns []string
		ips      []netip.Addr
		want     bool
	}{
		{"hardware", eth, nil, nil, true},
		{"a lab's veth", with(func(l *linkInfo) { l.kind = "veth" }), nil, nil, true},
		{"a bond", with(func(l *linkInfo) { l.name, l.kind = "bond0", "bond" }), nil, nil, true},
		{"no carrier", with(func(l *linkInfo) { l.running = false }), nil, nil, false},
		{"loopback", with(func(l *linkInfo) { l.loopback = true }), nil, nil, false},
		{"no Ethernet", with(func(l *linkInfo) { l.ethernet = false }), nil, nil, false},
		{"no subnet", with(func(l *linkInfo) { l.subnets = nil }), nil, nil, false},
		{"of a bond", with(func(l *linkInfo) { l.slave = true }), nil, nil, false},
		{"a pod's", with(func(l *linkInfo) { l.name, l.kind = "weft0123456789a", "veth" }), nil, nil, false},
		{"a tunnel", with(func(l *linkInfo) { l.kind = "vxlan" }), nil, nil, false},
		{"the node's bridge", with(func(l *linkInfo) { l.kind = "bridge" }), nil, ips, true},
		{"containers' bridge", with(func(l *linkInfo) { l.kind = "bridge" }), nil, nil, false},
		{"chosen", with(func(l *linkInfo) { l.subnets = nil }), []string{"lan*", "eth*"}, nil, true},
		{"not chosen", eth, []string{"lan*"}, nil, false},
		{"chosen, no carrier", with(func(l *linkInfo) { l.running = false }), []string{"eth0"}, nil, false},
	} {
		if got := usable(c.l, c.patterns, c.ips); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func TestPair(t *testing.T) {
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, x := range s {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	addrs := func(s ...string) (out []netip.Addr) {
		for _, x := range s {
			out = append(out, netip.MustParseAddr(x))
		}
		return out
	}
	for _, c := range []struct {
		name     string
		subnets  []netip.Prefix
		own, its []netip.Addr
		want     string
	}{
		{"both families", prefixes("2001:db8::/64", "192.0.2.0/24"), addrs("2001:db8::1", "192.0.2.1"), addrs("2001:db8::2", "192.0.2.2"), "192.0.2.1 192.0.2.2"},
		{"one has no IPv4", prefixes("2001:db8::/64", "192.0.2.0/24"), addrs("2001:db8::1", "192.0.2.1"), addrs("2001:db8::2"), "2001:db8::1 2001:db8::2"},
		{"on different subnets", prefixes("198.51.100.0/24", "192.0.2.0/24"), addrs("198.51.100.1"), addrs("192.0.2.2"), "invalid IP invalid IP"},
		{"on the second subnet", prefixes("198.51.100.0/24", "192.0.2.0/24"), addrs("198.51.100.1", "192.0.2.1"), addrs("192.0.2.2"), "192.0.2.1 192.0.2.2"},
		{"of another link", prefixes("192.0.2.0/24"), addrs("10.0.0.1"), addrs("10.0.0.2"), "invalid IP invalid IP"},
		{"unknown", prefixes("192.0.2.0/24"), addrs("192.0.2.1"), nil, "invalid IP invalid IP"},
	} {
		if own, its := pair(c.subnets, c.own, c.its); own.String()+" "+its.String() != c.want {
			t.Errorf("%s: %s %s, want %s", c.name, own, its, c.want)
		}
	}
}

func TestBelongs(t *testing.T) {
	lan, dmz := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	all := [][]netip.Prefix{lan, dmz}
	for _, c := range []struct {
		addr     string
		lan, dmz bool
	}{
		{"192.0.2.5", true, false},
		{"198.51.100.5", false, true},
		{"2001:db8::5", false, true},
		{"203.0.113.5", true, true}, // routed to some node: any link may be the one
	} {
		a := netip.MustParseAddr(c.addr)
		if l, d := belongs(a, lan, all), belongs(a, dmz, all); l != c.lan || d != c.dmz {
			t.Errorf("%s: lan %v, dmz %v; want %v, %v", c.addr, l, d, c.lan, c.dmz)
		}
	}
}
