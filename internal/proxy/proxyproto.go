// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// The PROXY protocol (haproxy's proxy-protocol.txt), versions 1 and 2: who the client of a connection is.

var (
	proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")
	errProxyHeader = errors.New("the connection does not begin with a PROXY protocol header")
)

// readProxyHeader reads the header, and changes the peer's addresses to what it says. It reads nothing beyond it.
func readProxyHeader(c net.Conn, pe *peer) (net.Conn, error) {
	var b [12]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return c, err
	}
	if bytes.Equal(b[:], proxySignature) {
		return c, readProxyV2(c, pe)
	}
	if string(b[:6]) != "PROXY " {
		return c, errProxyHeader
	}
	line := append(make([]byte, 0, 107), b[:]...)
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		if len(line) == 107 {
			return c, errProxyHeader
		}
		var one [1]byte
		if _, err := io.ReadFull(c, one[:]); err != nil {
			return c, err
		}
		line = append(line, one[0])
	}
	return c, parseProxyV1(string(line[:len(line)-2]), pe)
}

func parseProxyV1(line string, pe *peer) error {
	words := strings.Split(line, " ")
	if len(words) >= 2 && words[1] == "UNKNOWN" {
		return nil
	}
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return errProxyHeader
	}
	src, err1 := proxyAddr(words[2], words[4])
	dst, err2 := proxyAddr(words[3], words[5])
	if err1 != nil || err2 != nil || src.Addr().Is4() != (words[1] == "TCP4") {
		return errProxyHeader
	}
	// A mapped address is the IPv4 one, for lists of addresses too.
	pe.remote, pe.local = netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	return nil
}

func proxyAddr(addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" {
		return netip.AddrPort{}, errProxyHeader
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, errProxyHeader
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

func readProxyV2(c net.Conn, pe *peer) error {
	var h [4]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(h[2:]))
	if h[0]>>4 != 2 || n > 2048 {
		return errProxyHeader
	}
	rest := make([]byte, n)
	if _, err := io.ReadFull(c, rest); err != nil {
		return err
	}
	if h[0]&0xf == 0 { // LOCAL: a health check of the proxy itself
		return nil
	}
	if h[0]&0xf != 1 {
		return errProxyHeader
	}
	size := 0
	switch h[1] {
	case 0x11: // TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	default:
		return nil
	}
	if n < 2*size+4 {
		return errProxyHeader
	}
	src, _ := netip.AddrFromSlice(rest[:size])
	dst, _ := netip.AddrFromSlice(rest[size : 2*size])
	ports := rest[2*size:]
	pe.remote = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(ports))
	pe.local = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	return nil
}

// proxyHeader is the header of the version for a connection from src to dst.
func proxyHeader(version int, src, dst netip.AddrPort) []byte {
	same := src.Addr().Is4() == dst.Addr().Is4() && src.IsValid() && dst.IsValid()
	if version == 1 {
		if !same {
			return []byte("PROXY UNKNOWN\r\n")
		}
		family := "TCP6"
		if src.Addr().Is4() {
			family = "TCP4"
		}
		return []byte("PROXY " + family + " " + src.Addr().String() + " " + dst.Addr().String() + " " +
			strconv.Itoa(int(src.Port())) + " " + strconv.Itoa(int(dst.Port())) + "\r\n")
	}
	b := bytes.Clone(proxySignature)
	if !same {
		return append(b, 0x20, 0, 0, 0)
	}
	family, size := byte(0x21), 36
	if src.Addr().Is4() {
		family, size = 0x11, 12
	}
	b = append(b, 0x21, family, 0, byte(size))
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}
