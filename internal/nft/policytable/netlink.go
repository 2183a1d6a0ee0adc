// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// attrs is a netlink message's attributes under construction.
type attrs []byte

func (a *attrs) put(typ uint16, data []byte) {
	n := unix.SizeofNlAttr + len(data)
	*a = binary.NativeEndian.AppendUint16(*a, uint16(n))
	*a = binary.NativeEndian.AppendUint16(*a, typ)
	*a = append(*a, data...)
	for range -n & (unix.NLA_ALIGNTO - 1) {
		*a = append(*a, 0)
	}
}

func (a *attrs) str(typ uint16, s string) { a.put(typ, append([]byte(s), 0)) }

func (a *attrs) u32(typ uint16, v uint32) { a.put(typ, binary.BigEndian.AppendUint32(nil, v)) }

func (a *attrs) nest(typ uint16, inner attrs) { a.put(typ|unix.NLA_F_NESTED, inner) }

// nested builds attributes in place: nested(func(a *attrs) { … }).
func nested(f func(*attrs)) attrs {
	var a attrs
	f(&a)
	return a
}

// eachAttr calls f for each attribute, types without their flag bits. It stops at what is malformed.
func eachAttr(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		f(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n])
		b = b[min(len(b), (n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
}

// cstring is a string attribute without its final zero.
func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// message is one nf_tables request without its header.
type message struct {
	typ   uint16 // unix.NFT_MSG_…
	flags uint16
	body  attrs
	about string // for errors: the object
}

// genHeader is struct nfgenmsg.
func genHeader(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

func appendMessage(b []byte, typ, flags uint16, seq uint32, gen, body []byte) []byte {
	n := unix.SizeofNlMsghdr + len(gen) + len(body)
	b = binary.NativeEndian.AppendUint32(b, uint32(n))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, gen...)
	b = append(b, body...)
	for range -n & (unix.NLMSG_ALIGNTO - 1) {
		b = append(b, 0)
	}
	return b
}

// socket is a netlink socket to nf_tables.
type socket struct {
	fd     int
	portID uint32
	room   int // bytes of one sendmsg
	seq    uint32
	sent   int // transactions
}

// The buffers asked for: a whole cluster's policies in one transaction, and the events of one.
const (
	wantedSend    = 64 << 20
	wantedReceive = 8 << 20
)

// dial opens a socket in a network namespace, given by a file descriptor; -1 is the caller's own.
func dial(netns int) (*socket, error) {
	var s *socket
	err := inNetns(netns, func() (err error) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open a netlink socket to nf_tables: %w", err)
		}
		s = &socket{fd: fd}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := s.setup(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setup() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind a netlink socket: %w", err)
	}
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("name of a netlink socket: %w", err)
	}
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		s.portID = nl.Pid
	}
	// Beyond the system's limit only with CAP_NET_ADMIN in the first user namespace.
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, wantedSend) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, wantedSend)
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wantedReceive) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, wantedReceive)
	}
	size, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("send buffer of a netlink socket: %w", err)
	}
	s.room = size - 4096 // the kernel keeps a few bytes to itself
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return nil
}

// Port is the socket's netlink port, by which a monitor knows this process's changes from those of others.
func (s *socket) Port() uint32 { return s.portID }

func (s *socket) close() { _ = unix.Close(s.fd) }

// inNetns runs f on a thread that is in another network namespace.
func inNetns(netns int, f func() error) error {
	if netns < 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and nobody else gets it in a foreign namespace.
		runtime.LockOSThread()
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

const (
	subsystem   = unix.NFNL_SUBSYS_NFTABLES << 8
	familyINET  = unix.NFPROTO_INET
	batchMargin = 2 * 64 // begin and end
)

// transact sends messages as one transaction. If any is refused, all are.
func (s *socket) transact(msgs []message) error {
	if len(msgs) == 0 {
		return nil
	}
	s.sent++
	size := batchMargin
	for _, m := range msgs {
		size += len(m.body) + 32
	}
	buf := make([]byte, 0, size)
	s.seq++
	first := s.seq
	buf = appendMessage(buf, unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, s.seq, genHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES), nil)
	for i, m := range msgs {
		s.seq++
		flags := m.flags | unix.NLM_F_REQUEST
		if i == len(msgs)-1 {
			flags |= unix.NLM_F_ACK // refusals come unasked; one acknowledgement says that all went well
		}
		buf = appendMessage(buf, subsystem|m.typ, flags, s.seq, genHeader(familyINET, 0), m.body)
	}
	last := s.seq
	s.seq++
	buf = appendMessage(buf, unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, s.seq, genHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES), nil)
	if err := unix.Sendto(s.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send a transaction of %d bytes to nf_tables: %w", len(buf), err)
	}

	// The kernel works during sendmsg, so every answer is there by now.
	var errs []error
	acked := false
	in := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(s.fd, in, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if len(errs) > 0 {
				return errors.Join(errs...)
			}
			if !acked {
				return errors.New("nf_tables did not acknowledge a transaction")
			}
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil: // ENOBUFS: more refusals than fit
			errs = append(errs, fmt.Errorf("receive from nf_tables: %w", err))
			if !errors.Is(err, unix.ENOBUFS) {
				return errors.Join(errs...)
			}
			continue
		}
		eachMessage(in[:n], func(typ uint16, _ uint16, seq, _ uint32, data []byte) {
			if typ != unix.NLMSG_ERROR || len(data) < 4 || seq < first || seq > s.seq {
				return
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(data)))
			switch {
			case errno == 0:
				acked = acked || seq == last
			case len(errs) >= 5:
			case seq > first && seq <= last:
				errs = append(errs, fmt.Errorf("nf_tables refused %s: %w", msgs[seq-first-1].about, errno))
			default:
				errs = append(errs, fmt.Errorf("nf_tables refused the transaction: %w", errno))
			}
		})
	}
}

// eachMessage calls f for each netlink message in a datagram.
func eachMessage(b []byte, f func(typ, flags uint16, seq, portID uint32, data []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]),
			binary.NativeEndian.Uint32(b[12:]), b[unix.SizeofNlMsghdr:n])
		b = b[min(len(b), (n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
}

// errInterrupted says that the ruleset changed while it was read.
var errInterrupted = errors.New("the ruleset changed while it was read")

// dump asks for a list and calls f with the attributes of each entry.
func (s *socket) dump(typ uint16, body attrs, f func(attrs []byte)) error {
	s.seq++
	req := appendMessage(nil, subsystem|typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, s.seq, genHeader(familyINET, 0), body)
	if err := unix.Sendto(s.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask nf_tables for a list: %w", err)
	}
	in := make([]byte, 128<<10)
	var failure error
	for done := false; !done; {
		n, _, err := unix.Recvfrom(s.fd, in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read a list from nf_tables: %w", err)
		}
		eachMessage(in[:n], func(t, flags uint16, seq, _ uint32, data []byte) {
			if seq != s.seq {
				return
			}
			if flags&unix.NLM_F_DUMP_INTR != 0 {
				failure = errInterrupted
			}
			switch {
			case t == unix.NLMSG_DONE:
				done = true
			case t == unix.NLMSG_ERROR:
				done = true
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(data))); errno != 0 {
					failure = errno
				}
			case len(data) >= 4:
				f(data[4:])
			}
		})
	}
	return failure
}
