// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrUnconfirmed is a transaction of which the kernel said neither that it holds nor why not. Read back what is
// there.
var ErrUnconfirmed = errors.New("nftables: the kernel confirmed nothing")

// ErrInterrupted is a dump during which somebody changed what was dumped. Start again.
var ErrInterrupted = errors.New("nftables: the ruleset changed while it was read")

// Conn is a netlink socket to nf_tables in the network namespace that the calling thread had when it was opened.
// Several goroutines may use it; each transaction and each dump has it to itself.
type Conn struct {
	mu    sync.Mutex
	fd    int
	port  uint32
	limit int
	out   []byte // transactions are assembled here
	in    []byte
}

const (
	// wantSendBuffer lets 50,000 Services go in a handful of transactions where the process may force it; where it
	// may not (a user namespace), the system's net.core.wmem_max decides.
	wantSendBuffer = 8 << 20
	recvBuffer     = 1 << 20
	// keptBuffer is the room that a transaction leaves for the next ones.
	keptBuffer = 1 << 20
	// sendSlack is what the kernel counts a message for beyond its bytes.
	sendSlack = 4096
)

// Dial opens a Conn.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables: netlink socket: %w", err)
	}
	c := &Conn{fd: fd, in: make([]byte, 64<<10)}
	if err := c.setup(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("nftables: netlink socket: %w", err)
	}
	return c, nil
}

func (c *Conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.port = name.(*unix.SockaddrNetlink).Pid
	// Without the privilege to force, ask for as much as the system grants anyone.
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, wantSendBuffer) != nil {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, wantSendBuffer); err != nil {
			return err
		}
	}
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recvBuffer) != nil {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, recvBuffer); err != nil {
			return err
		}
	}
	n, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return err
	}
	c.limit = n - sendSlack
	// An error need not bring back the message that it is about, of which there may be a megabyte.
	return unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// Limit is the biggest Batch that one Commit takes, in bytes.
func (c *Conn) Limit() int { return c.limit }

// Port is the socket's netlink port, by which a Monitor knows its changes from those of others.
func (c *Conn) Port() uint32 { return c.port }

// Commit sends the batch as one transaction: it holds as a whole or not at all. The error of a refused one names
// the first object that the kernel did not take. An empty batch is nothing to do.
func (c *Conn) Commit(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	if b.Empty() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var last uint32
	c.out, last = b.assemble(c.out)
	return c.exchange(last, func(seq uint32) string { return describe(c.out, seq) })
}

// exchange sends the transaction in c.out and reads what the kernel says of it; what names the object of a sequence
// number. The caller holds mu.
func (c *Conn) exchange(last uint32, what func(seq uint32) string) error {
	if len(c.out) > c.limit {
		return fmt.Errorf("nftables: a transaction of %d bytes exceeds the socket's %d: raise net.core.wmem_max", len(c.out), c.limit)
	}
	if err := c.drain(nil); err != nil {
		return err
	}
	defer func() {
		if cap(c.out) > keptBuffer {
			c.out = nil
		}
	}()
	if err := c.send(c.out); err != nil {
		return err
	}
	// The kernel answers within the system call that sends, so whatever it has to say is here by now.
	var confirmed bool
	var refused error
	err := c.drain(func(m message) {
		errno, ok := m.errno()
		switch {
		case !ok:
		case errno != 0 && refused == nil:
			refused = fmt.Errorf("nftables: %s: %w", what(m.seq), errno)
		case m.seq == last && errno == 0:
			confirmed = true
		}
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return err
	case !confirmed:
		return ErrUnconfirmed
	}
	return nil
}

func (c *Conn) send(msg []byte) error {
	for {
		err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("nftables: send: %w", err)
			}
			return nil
		}
	}
}

// drain hands out what the socket has received, until there is no more.
func (c *Conn) drain(f func(message)) error {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		switch err {
		case nil:
			eachMessage(c.in[:n], func(m message) {
				if f != nil {
					f(m)
				}
			})
		case unix.EINTR:
		case unix.EAGAIN:
			return nil
		case unix.ENOBUFS:
			// Acknowledgements were lost; those that are left still count.
		default:
			return fmt.Errorf("nftables: receive: %w", err)
		}
	}
}

// message is one netlink message.
type message struct {
	typ   uint16
	flags uint16
	seq   uint32
	port  uint32
	body  []byte // after the nlmsghdr
}

func eachMessage(b []byte, f func(message)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		f(message{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			port:  binary.NativeEndian.Uint32(b[12:]),
			body:  b[unix.SizeofNlMsghdr:n],
		})
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
}

// errno is the result that an NLMSG_ERROR carries; 0 is success. ok is false for any other message.
func (m message) errno() (errno unix.Errno, ok bool) {
	if m.typ != unix.NLMSG_ERROR || len(m.body) < 4 {
		return 0, false
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.body))), true
}

// attrs are the attributes after the nfgenmsg.
func (m message) attrs() []byte {
	if len(m.body) < 4 {
		return nil
	}
	return m.body[4:]
}

// nft is the nf_tables message number; ok is false for messages of other kinds.
func (m message) nft() (msg uint16, ok bool) {
	return m.typ & 0xff, m.typ>>8 == unix.NFNL_SUBSYS_NFTABLES
}

// describe says what the message of a sequence number in a transaction wanted.
func describe(batch []byte, seq uint32) string {
	out := "transaction"
	eachMessage(batch, func(m message) {
		msg, ok := m.nft()
		if m.seq != seq || !ok || len(m.body) < 4 {
			return
		}
		what := map[uint16]string{
			unix.NFT_MSG_NEWTABLE: "add table", unix.NFT_MSG_DELTABLE: "delete table",
			unix.NFT_MSG_NEWCHAIN: "add chain", unix.NFT_MSG_DELCHAIN: "delete chain",
			unix.NFT_MSG_NEWRULE: "add rule to chain", unix.NFT_MSG_DELRULE: "flush chain",
			unix.NFT_MSG_NEWSET: "add set", unix.NFT_MSG_DELSET: "delete set",
			unix.NFT_MSG_NEWSETELEM: "add elements to set", unix.NFT_MSG_DELSETELEM: "delete elements of set",
		}[msg]
		nameAttr := uint16(2) // NFTA_SET_NAME, NFTA_RULE_CHAIN, NFTA_SET_ELEM_LIST_SET
		if msg == unix.NFT_MSG_NEWCHAIN || msg == unix.NFT_MSG_DELCHAIN {
			nameAttr = unix.NFTA_CHAIN_NAME
		}
		out = what + " " + Family(m.body[0]).String()
		eachAttr(m.attrs(), func(typ uint16, data []byte) {
			if typ == 1 || typ == nameAttr && msg != unix.NFT_MSG_NEWTABLE && msg != unix.NFT_MSG_DELTABLE {
				out += " " + cString(data)
			}
		})
	})
	return out
}
