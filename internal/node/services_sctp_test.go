// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// Types of SCTP chunks (RFC 9260, section 3.2).
const (
	sctpData       = 0
	sctpInit       = 1
	sctpInitAck    = 2
	sctpCookieEcho = 10
	sctpCookieAck  = 11
)

// TestSCTP sets up an association through each kind of frontend, and sends data both ways: both directions are
// translated, with their ports and checksums, and it stays where it is while other endpoints come. The packets are made
// by hand, for neither Go nor every kernel has SCTP.
func TestSCTP(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	s := newShop()
	s.service.Ports = []model.ServicePort{{Name: "sctp", Protocol: model.SCTP, Port: 80, NodePort: 30080}}
	update := func(endpoints ...string) {
		t.Helper()
		s.endpoints = nil
		for _, name := range endpoints {
			s.endpoints = append(s.endpoints, endpoint(name))
		}
		d := s.delta()
		for _, sl := range d.EndpointSlices {
			sl.Ports = []model.EndpointPort{{Name: "sctp", Protocol: model.SCTP, Port: 8080}}
		}
		c.update(t, d)
	}
	for _, f := range families {
		server := &sctpSide{t: t, what: f.String() + ": at the endpoint", port: 8080, tag: 0x5e5e5e5e}
		server.listen(c.pod["a1"], f)
		for n, target := range []string{"cluster IP", "node port", "LB IP"} {
			addr := netip.MustParseAddrPort(targets[target][f])
			from := c.client("pod")
			if target != "cluster IP" {
				from = c.outside
			}
			client := &sctpSide{t: t, what: fmt.Sprintf("%s: %s: at the client", f, target), port: uint16(4000 + n), tag: 0x12345678}
			client.dial(from, f, addr)

			update("a1")
			params := append(binary.BigEndian.AppendUint32(nil, client.tag), 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
			client.send(0, sctpInit, params)
			server.receive(sctpInit, 0, params)
			params = append(binary.BigEndian.AppendUint32(nil, server.tag), 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
			params = append(params, 0, 7, 0, 8, 'c', 'a', 'k', 'e') // the state cookie
			server.send(client.tag, sctpInitAck, params)
			client.receive(sctpInitAck, client.tag, params)
			client.send(server.tag, sctpCookieEcho, []byte("cake"))
			server.receive(sctpCookieEcho, server.tag, []byte("cake"))
			server.send(client.tag, sctpCookieAck, nil)
			client.receive(sctpCookieAck, client.tag, nil)

			update("a1", "b1", "c2")
			for i := range byte(6) {
				data := append([]byte{0, 0, 0, i, 0, 0, 0, i, 0, 0, 0, 0}, "who?"...)
				client.send(server.tag, sctpData, data)
				server.receive(sctpData, server.tag, data)
				data = append([]byte{0, 0, 0, i, 0, 0, 0, i, 0, 0, 0, 0}, "a1.."...)
				server.send(client.tag, sctpData, data)
				client.receive(sctpData, client.tag, data)
			}
		}
	}
}

// sctpSide is one end of an association.
type sctpSide struct {
	t        *testing.T
	what     string
	port     uint16
	tag      uint32 // that the other side is to send
	conn     *net.IPConn
	peer     net.Addr // nil where the socket has one
	peerPort uint16   // 0: that of the first packet
}

func sctpNetwork(f model.Family) string {
	if f == model.IPv6 {
		return "ip6:sctp"
	}
	return "ip4:sctp"
}

func (s *sctpSide) listen(on *space, f model.Family) {
	s.t.Helper()
	var err error
	on.in(func() { s.conn, err = net.ListenIP(sctpNetwork(f), nil) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.conn.Close() })
}

// dial makes a socket that takes packets from the address only.
func (s *sctpSide) dial(from *space, f model.Family, to netip.AddrPort) {
	s.t.Helper()
	var err error
	from.in(func() { s.conn, err = net.DialIP(sctpNetwork(f), nil, &net.IPAddr{IP: to.Addr().AsSlice()}) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.conn.Close() })
	s.peerPort = to.Port()
}

// send sends a packet of one chunk (RFC 9260, section 3).
func (s *sctpSide) send(tag uint32, chunk byte, body []byte) {
	s.t.Helper()
	p := binary.BigEndian.AppendUint16(nil, s.port)
	p = binary.BigEndian.AppendUint16(p, s.peerPort)
	p = binary.BigEndian.AppendUint32(p, tag)
	p = append(p, 0, 0, 0, 0) // checksum
	flags := byte(0)
	if chunk == sctpData {
		flags = 3 // not fragmented
	}
	p = append(p, chunk, flags)
	p = binary.BigEndian.AppendUint16(p, uint16(4+len(body)))
	p = append(p, body...)
	binary.LittleEndian.PutUint32(p[8:], sctpSum(p))
	var err error
	if s.peer == nil {
		_, err = s.conn.Write(p)
	} else {
		_, err = s.conn.WriteTo(p, s.peer)
	}
	if err != nil {
		s.t.Fatalf("%s: %v", s.what, err)
	}
}

// receive wants the next packet to be that one, whole, to this side's port and from the other's.
func (s *sctpSide) receive(chunk byte, tag uint32, body []byte) {
	s.t.Helper()
	buf := make([]byte, 2048)
	_ = s.conn.SetReadDeadline(time.Now().Add(patience))
	n, from, err := s.conn.ReadFrom(buf)
	if err != nil {
		s.t.Fatalf("%s: chunk %d did not come: %v", s.what, chunk, err)
	}
	p := buf[:n]
	if len(p) < 16 || p[12] != chunk || binary.BigEndian.Uint32(p[4:]) != tag || !bytes.Equal(p[16:], body) {
		s.t.Fatalf("%s: % x came, want chunk %d with tag %#x and % x", s.what, p, chunk, tag, body)
	}
	if sum := binary.LittleEndian.Uint32(p[8:]); sum != sctpSum(p) {
		s.t.Errorf("%s: chunk %d: the checksum is %#x, want %#x", s.what, chunk, sum, sctpSum(p))
	}
	if to := binary.BigEndian.Uint16(p[2:]); to != s.port {
		s.t.Errorf("%s: chunk %d is to port %d, want %d", s.what, chunk, to, s.port)
	}
	switch port := binary.BigEndian.Uint16(p); {
	case chunk == sctpInit: // who that is, and by which port a masqueraded one goes, turns out here
		s.peer, s.peerPort = from, port
	case port != s.peerPort:
		s.t.Errorf("%s: chunk %d is from port %d, want %d", s.what, chunk, port, s.peerPort)
	}
}

// sctpSum is the CRC32c of a packet with its checksum field zero.
func sctpSum(p []byte) uint32 {
	q := slices.Clone(p)
	clear(q[8:12])
	return crc32.Checksum(q, crc32.MakeTable(crc32.Castagnoli))
}
