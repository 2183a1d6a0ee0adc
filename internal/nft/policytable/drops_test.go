// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/hex"
	"fmt"
	"testing"
)

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
