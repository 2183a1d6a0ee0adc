// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// udpServer answers from the very address that a datagram came to: a host has several, and a client takes an
// answer only from the one that it asked.
type udpServer struct {
	conn *net.UDPConn
	six  *ipv6.PacketConn // nil on a host without IPv6
	four *ipv4.PacketConn // used when six is nil
}

func listenUDP(port string) (*udpServer, error) {
	p, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return nil, err
	}
	u := &udpServer{conn: p.(*net.UDPConn)}
	u.six = ipv6.NewPacketConn(p)
	if err := u.six.SetControlMessage(ipv6.FlagDst, true); err != nil {
		u.six, u.four = nil, ipv4.NewPacketConn(p)
		if err := u.four.SetControlMessage(ipv4.FlagDst, true); err != nil {
			p.Close()
			return nil, err
		}
	}
	return u, nil
}

func (u *udpServer) Close() error { return u.conn.Close() }

func (u *udpServer) serve(s *server) error {
	buf := make([]byte, 64<<10)
	for {
		if u.six != nil {
			n, cm, from, err := u.six.ReadFrom(buf)
			if err != nil {
				return err
			}
			reply := &ipv6.ControlMessage{}
			if cm != nil {
				reply.Src = cm.Dst
			}
			_, _ = u.six.WriteTo(append([]byte(s.line("udp", from.String())+" data="), buf[:n]...), reply, from)
			continue
		}
		n, cm, from, err := u.four.ReadFrom(buf)
		if err != nil {
			return err
		}
		reply := &ipv4.ControlMessage{}
		if cm != nil {
			reply.Src = cm.Dst
		}
		_, _ = u.four.WriteTo(append([]byte(s.line("udp", from.String())+" data="), buf[:n]...), reply, from)
	}
}
