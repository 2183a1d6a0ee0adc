// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// The chunks of SCTP's handshake (RFC 9260, section 3.3).
const (
	chunkInit       = 1
	chunkInitAck    = 2
	chunkAbort      = 6
	chunkCookieEcho = 10
	chunkCookieAck  = 11

	paramCookie = 7
)

const (
	headerLen  = 12 // ports, verification tag, checksum
	initLen    = 20 // a chunk header and INIT's fixed fields
	clientTag  = 0x77656674
	serverTag  = 0x74666577
	retransmit = 500 * time.Millisecond
)

// packet is one SCTP packet of one chunk.
type packet struct {
	from, to uint16
	tag      uint32
	chunk    byte
	body     []byte // of the chunk
}

func (p *packet) bytes() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.from)
	b = binary.BigEndian.AppendUint16(b, p.to)
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0)
	b = append(b, p.chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(p.body)))
	b = append(b, p.body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	// CRC32c, in the byte order of RFC 9260, appendix A.
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func parse(b []byte) (p packet, ok bool) {
	if len(b) < headerLen+4 {
		return p, false
	}
	return packet{
		from: binary.BigEndian.Uint16(b), to: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:]),
		chunk: b[headerLen], body: b[headerLen+4:],
	}, true
}

// initBody are the fields of INIT and INIT ACK: our tag, a window, one stream each way, a first sequence number.
func initBody(tag uint32, params ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 64<<10)
	b = append(b, 0, 1, 0, 1)
	b = binary.BigEndian.AppendUint32(b, 1)
	return append(b, params...)
}

// listen opens a raw socket for SCTP's packets of both families, or of one address.
func listen(at string) *net.IPConn {
	network := "ip4:132"
	if a, err := netip.ParseAddr(at); err == nil && a.Is6() {
		network = "ip6:132"
	}
	c, err := net.ListenPacket(network, at)
	if err != nil {
		fail("OTHER: %v", err)
	}
	return c.(*net.IPConn)
}

// serve answers whoever opens an association to a port, for ever.
func serve(port string) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		fail("SERVE_SCTP_PORT_%s: %v", port, err)
	}
	done := make(chan struct{})
	for _, any := range []string{"0.0.0.0", "::"} {
		go func() {
			answer(listen(any), uint16(n))
			close(done)
		}()
	}
	<-done
	os.Exit(1)
}

func answer(c *net.IPConn, port uint16) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		p, ok := parse(buf[:n])
		if !ok || p.to != port || len(p.body) < 4 {
			continue
		}
		reply := packet{from: port, to: p.from}
		switch p.chunk {
		case chunkInit:
			reply.tag, reply.chunk = binary.BigEndian.Uint32(p.body), chunkInitAck
			// The cookie is the peer's tag: all that is needed to answer its echo.
			reply.body = initBody(serverTag, append([]byte{0, paramCookie, 0, 8}, p.body[:4]...)...)
		case chunkCookieEcho:
			reply.tag, reply.chunk = binary.BigEndian.Uint32(p.body), chunkCookieAck
		default:
			continue
		}
		if _, err := c.WriteTo(reply.bytes(), from); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// connect opens an association and ends the process as agnhost does: silence is success, TIMEOUT is nobody's answer.
func connect(dest, timeout string) {
	limit, err := time.ParseDuration(timeout)
	if err != nil {
		fail("UNKNOWN: --timeout: %v", err)
	}
	to, err := netip.ParseAddrPort(dest)
	if err != nil {
		fail("DNS: %v", err)
	}
	any := "0.0.0.0"
	if to.Addr().Is6() {
		any = "::"
	}
	c := listen(any)
	us := uint16(32768 + os.Getpid()%28000)
	out := packet{from: us, to: to.Port(), chunk: chunkInit, body: initBody(clientTag)}
	addr := &net.IPAddr{IP: to.Addr().AsSlice()}
	deadline := time.Now().Add(limit)
	buf := make([]byte, 64<<10)
	for time.Now().Before(deadline) {
		if _, err := c.WriteTo(out.bytes(), addr); err != nil {
			fail("OTHER: %v", err)
		}
		again := time.Now().Add(retransmit)
		if again.After(deadline) {
			again = deadline
		}
		_ = c.SetReadDeadline(again)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				break // time to send again
			}
			p, ok := parse(buf[:n])
			if !ok || p.from != to.Port() || p.to != us {
				continue
			}
			switch p.chunk {
			case chunkInitAck:
				if len(p.body) < initLen-4+8 {
					continue
				}
				out.tag, out.chunk, out.body = binary.BigEndian.Uint32(p.body), chunkCookieEcho, p.body[initLen-4+4:initLen-4+8]
				if _, err := c.WriteTo(out.bytes(), addr); err != nil {
					fail("OTHER: %v", err)
				}
			case chunkCookieAck:
				os.Exit(0)
			case chunkAbort:
				fail("REFUSED")
			}
		}
	}
	fail("TIMEOUT")
}
