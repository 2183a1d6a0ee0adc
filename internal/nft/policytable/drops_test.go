// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"

	"github.com/florianl/go-nflog/v2"

	"github.com/weft-net/weft/internal/nft"
)

// A tracked connection of which the destination was replaced, as the kernel describes it.
func TestAskedFor(t *testing.T) {
	tuple := func(typ uint16, src, dst string, sport, dport uint16) (out nft.Attrs) {
		out.Nest(typ, func(a *nft.Attrs) {
			a.Nest(ctaTupleIP, func(a *nft.Attrs) {
				s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
				if d.Is6() {
					a.Put(3, s.AsSlice())
					a.Put(ctaIPv6Dst, d.AsSlice())
				} else {
					a.Put(1, s.AsSlice())
					a.Put(ctaIPv4Dst, d.AsSlice())
				}
			})
			a.Nest(ctaTupleProto, func(a *nft.Attrs) {
				a.Put(1, []byte{6})
				a.Put(2, binary.BigEndian.AppendUint16(nil, sport))
				a.Put(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dport))
			})
		})
		return out
	}
	four := append(tuple(1, "10.0.0.1", "10.96.0.1", 40000, 80), tuple(2, "10.0.0.2", "10.0.0.1", 8080, 40000)...)
	six := append(tuple(1, "fd00::1", "fd96::1", 40000, 80), tuple(2, "fd00::2", "fd00::1", 8080, 40000)...)
	for want, ct := range map[string]nft.Attrs{"10.96.0.1:80": four, "[fd96::1]:80": six} {
		if got := askedFor(ct); got != netip.MustParseAddrPort(want) {
			t.Errorf("asked for %s, want %s", got, want)
		}
	}
	if got := askedFor(nil); got.Addr().IsValid() {
		t.Errorf("of nothing it makes %s", got)
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		// IPv4, TCP 1024 to 80
		"4500003c00004000400600000a0000010a000002" + "04000050": "10.0.0.1 10.0.0.2 TCP 1024 80",
		// IPv4 with an option, UDP
		"4600003c000040004011000000000000c0000201" + "00000000" + "00350036": "0.0.0.0 192.0.2.1 UDP 53 54",
		// IPv4, ICMP
		"4500003c0000400040010000ac100001ac100002" + "08000000": "172.16.0.1 172.16.0.2 Protocol(1) 0 0",
		// IPv6, hop-by-hop options, fragment, SCTP
		"6000000000100040" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" +
			"2c00000000000000" + "8400000000000000" + "00010002": "fd00::1 fd00::2 SCTP 1 2",
		// IPv6, cut off within an extension header
		"6000000000100040" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" + "0605": "fd00::1 fd00::2 Protocol(0) 0 0",
		"45":   "",
		"5500": "",
	} {
		b, err := hex.DecodeString(in)
		if err != nil {
			// The IPv4 headers above are written without their two bytes of checksum's padding.
			t.Fatal(err)
		}
		p, ok := parse(b)
		got := fmt.Sprintf("%s %s %s %d %d", p.Src, p.Dst, p.Protocol, p.SrcPort, p.DstPort)
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0x45, 19: 1, 23: 2})
	f.Add([]byte{0x60, 6: 0, 47: 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok && (!p.Src.IsValid() || !p.Dst.IsValid()) {
			t.Errorf("%x: a packet without addresses", b)
		}
	})
}

// Whoever ceases to listen as soon as he has begun disturbs nobody: the race detector is the judge.
func TestHearEndsAtOnce(t *testing.T) {
	r := newRig(t)
	for i := range 300 {
		ctx, cancel := context.WithCancel(context.Background())
		if i%2 == 0 {
			cancel()
		} else {
			go cancel()
		}
		if err := r.table.hear(ctx, DefaultGroup, 64, 0, func(*nflog.Attribute) {}); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
}
