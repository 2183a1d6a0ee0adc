// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// packetSocket sends and receives frames of one EtherType on one link.
type packetSocket struct{ conn *socket.Conn }

// openPacket opens a socket in the network namespace (0: the thread's). Nothing of another link or EtherType ever
// gets into it: it takes packets only once it is bound.
func openPacket(netns, ifindex int, etherType uint16, filter []bpf.Instruction) (*packetSocket, error) {
	conn, err := socket.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0, "packet", &socket.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket (CAP_NET_RAW): %w", err)
	}
	if len(filter) > 0 {
		raw, err := bpf.Assemble(filter)
		if err == nil {
			err = conn.SetBPF(raw)
		}
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("set the packet filter: %w", err)
		}
	}
	if err := conn.Bind(&unix.SockaddrLinklayer{Protocol: networkOrder(etherType), Ifindex: ifindex}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("bind to interface %d: %w", ifindex, err)
	}
	return &packetSocket{conn}, nil
}

// networkOrder is the number whose octets in memory are n's in network order.
func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// receive gives each frame that was sent to this host, or to all, to handle, until the socket is closed. The frame is
// only valid during the call.
func (s *packetSocket) receive(handle func(frame []byte)) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.conn.Recvfrom(context.Background(), buf, 0)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENETDOWN): // the link went down: it will be closed or come up again
			continue
		case err != nil:
			return err
		}
		// Frames of a VLAN that is not configured here, and those meant for others, come as PACKET_OTHERHOST.
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OTHERHOST || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		handle(buf[:n])
	}
}

func (s *packetSocket) send(frame []byte) error {
	_, err := s.conn.Write(frame)
	return err
}

func (s *packetSocket) close() { s.conn.Close() }

// groupsPerSocket bounds memberships, for which the kernel sets a socket's memory limit (net.core.optmem_max).
const groupsPerSocket = 64

// groups joins IPv6 multicast groups on a link, so that the network card and multicast-snooping switches let the
// solicitations for an address through (RFC 4861, section 7.2.1).
type groups struct {
	netns, ifindex int
	sockets        []*groupSocket
	joined         map[netip.Addr]*membership // by group: addresses may share one
}

type groupSocket struct {
	conn *socket.Conn
	n    int
}

type membership struct {
	socket *groupSocket
	users  int
}

func (g *groups) join(group netip.Addr) error {
	if m := g.joined[group]; m != nil {
		m.users++
		return nil
	}
	var s *groupSocket
	for _, x := range g.sockets {
		if x.n < groupsPerSocket {
			s = x
		}
	}
	if s == nil {
		conn, err := socket.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0, "groups", &socket.Config{NetNS: g.netns})
		if err != nil {
			return fmt.Errorf("open a socket for multicast groups: %w", err)
		}
		s = &groupSocket{conn: conn}
		g.sockets = append(g.sockets, s)
	}
	if err := g.set(s, unix.IPV6_JOIN_GROUP, group); err != nil {
		return fmt.Errorf("join %s: %w", group, err)
	}
	s.n++
	g.joined[group] = &membership{s, 1}
	return nil
}

func (g *groups) leave(group netip.Addr) {
	m := g.joined[group]
	if m == nil {
		return
	}
	if m.users--; m.users > 0 {
		return
	}
	delete(g.joined, group)
	m.socket.n--
	_ = g.set(m.socket, unix.IPV6_LEAVE_GROUP, group) // fails only if the link is gone, and the membership with it
}

func (g *groups) set(s *groupSocket, option int, group netip.Addr) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, option,
			&unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.ifindex)})
	})
	return errors.Join(err, failed)
}

func (g *groups) close() {
	for _, s := range g.sockets {
		s.conn.Close()
	}
}
