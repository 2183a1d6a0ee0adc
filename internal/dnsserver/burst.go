// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"bytes"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// burst is the memory that a socket's reader hands to the kernel: packets as they came, and answers as they go.
type burst struct {
	in      [batch]mmsghdr
	inIov   [batch]unix.Iovec
	names   [batch]unix.RawSockaddrInet6
	ctl     [batch][ctlSize]byte
	ask     [batch][maxAsk]byte
	nameLen uint32

	answer  [batch][maxUDP]byte
	replies [batch]reply
	order   [batch]uint8
	out     [batch]mmsghdr
	outIov  [batch]unix.Iovec
	outCtl  [batch][ctlSize + segmentCtl]byte

	// needsInfo says that packets tell where they went to, and answers have to come from there.
	needsInfo bool
	// last is how many packets came last.
	last int
	// segments says that the kernel takes several answers to one client as one (UDP_SEGMENT, Linux 4.18).
	segments bool
}

// reply is an answer that is to be sent.
type reply struct {
	msg []byte
	in  uint8  // the packet that it answers
	to  uint64 // a hash of the client's address and port
}

// segmentCtl is room for the control message that says where one answer ends and the next begins.
const segmentCtl = 24

func newBurst(anyAddr bool) *burst {
	b := &burst{needsInfo: anyAddr, segments: true, nameLen: uint32(unsafe.Sizeof(unix.RawSockaddrInet6{}))}
	for i := range batch {
		b.inIov[i].Base = &b.ask[i][0]
		b.inIov[i].SetLen(maxAsk)
		h := &b.in[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Iov = &b.inIov[i]
		h.SetIovlen(1)
		if anyAddr {
			h.Control = &b.ctl[i][0]
		}
	}
	b.ready(batch)
	return b
}

// ready makes the first n places as the kernel wants them for the next packets.
func (b *burst) ready(n int) {
	for i := range b.in[:n] {
		h := &b.in[i].hdr
		h.Namelen = b.nameLen
		h.Flags = 0
		if b.needsInfo {
			h.SetControllen(ctlSize)
		}
	}
}

// While packets come thick and fast, a short pause has more of them come together, and their answers go together: what
// the kernel does for each system call and each client that it wakes is most of what a query costs, and that is a fifth
// less then. The pause is as long as an answer may wait without notice. A burst that was full means that more is
// waiting already, and one of few, as below some 100,000 queries a second, that there is nothing to gather.
const (
	gatherFrom = 16
	gatherFor  = 100 * time.Microsecond
	timerSlack = time.Microsecond // the kernel's, instead of 50 us
)

// gathers tells whether to pause before the next packets are taken.
func (b *burst) gathers() bool { return b.last >= gatherFrom && b.last < batch }

// receive waits for packets and takes as many as there are.
func (b *burst) receive(fd int) (int, error) {
	b.ready(b.last) // the kernel wrote into no more
	if b.gathers() {
		pause := unix.NsecToTimespec(int64(gatherFor))
		_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
	// While packets come thick and fast, what is there already is taken without a word to the scheduler, for that takes no
	// time that matters to it; only a wait is announced. After few there is nothing there, as often as not: then asking
	// first is a system call for nothing.
	n, errno := uintptr(0), syscall.EAGAIN
	if b.last >= gatherFrom {
		n, _, errno = unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.in[0])), batch, unix.MSG_DONTWAIT, 0, 0)
	}
	for {
		switch errno {
		case 0:
			b.last = int(n)
			return b.last, nil
		case syscall.EINTR, syscall.EAGAIN, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENOMEM, syscall.ENOBUFS:
			// Of no consequence for the next packet.
		default:
			return 0, fmt.Errorf("receive: %w", errno)
		}
		n, _, errno = unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.in[0])), batch, unix.MSG_WAITFORONE, 0, 0)
	}
}

func (b *burst) client(i int) clientAddr {
	sa := &b.names[i]
	switch sa.Family {
	case unix.AF_INET:
		return clientAddr{netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)}
	case unix.AF_INET6:
		return clientAddr{netip.AddrFrom16(sa.Addr)}
	}
	return clientAddr{}
}

// reply puts the answer to the i-th packet into the k-th place of what is to be sent.
func (b *burst) reply(k, i int, answer []byte) {
	sa := &b.names[i]
	to := uint64(sa.Port)
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr
		to |= uint64(v4[0])<<16 | uint64(v4[1])<<24 | uint64(v4[2])<<32 | uint64(v4[3])<<40
	} else {
		for j := 0; j < 16; j += 2 {
			to = to*0x9e3779b97f4a7c15 + (uint64(sa.Addr[j])<<8 | uint64(sa.Addr[j+1]))
		}
	}
	b.replies[k] = reply{msg: answer, in: uint8(i), to: to}
}

// sort puts the first k replies in order: those to one client together, longer ones first.
func (b *burst) sort(k int) {
	for i := range k {
		r := &b.replies[i]
		j := i
		for ; j > 0; j-- {
			o := &b.replies[b.order[j-1]]
			if o.to < r.to || (o.to == r.to && len(o.msg) >= len(r.msg)) {
				break
			}
			b.order[j] = b.order[j-1]
		}
		b.order[j] = uint8(i)
	}
}

// maxSegments is how many answers Linux takes as one (UDP_MAX_SEGMENTS of its older versions), maxSegmented how many
// octets.
const maxSegments, maxSegmented = 64, 60000

// pack makes messages of the first k replies and returns how many. Answers of one length to one client, and then a
// shorter one, go through the network stack, its filters and its connection tracking as one packet, and are taken
// apart at the receiver's socket or network card: what a resolver gets for its A and AAAA questions is one such.
func (b *burst) pack(k int) (n int) {
	b.sort(k)
	for i := 0; i < k; n++ {
		first := &b.replies[b.order[i]]
		size, total, count := len(first.msg), 0, 0
		for i+count < k && count < maxSegments {
			r := &b.replies[b.order[i+count]]
			if count > 0 && (!b.segments || len(r.msg) > size || total+len(r.msg) > maxSegmented || !b.sameWay(first, r)) {
				break
			}
			b.outIov[i+count].Base = &r.msg[0]
			b.outIov[i+count].SetLen(len(r.msg))
			total += len(r.msg)
			count++
			if len(r.msg) < size {
				break
			}
		}
		b.message(n, first, i, count, size)
		i += count
	}
	return n
}

// sameWay tells whether two answers have the same source and destination.
func (b *burst) sameWay(x, y *reply) bool {
	if x.to != y.to || b.names[x.in] != b.names[y.in] {
		return false
	}
	return !b.needsInfo || bytes.Equal(b.ctl[x.in][:b.in[x.in].hdr.Controllen], b.ctl[y.in][:b.in[y.in].hdr.Controllen])
}

// message makes the n-th message, of count answers from the i-th on.
func (b *burst) message(n int, r *reply, i, count, size int) {
	in, out := &b.in[r.in].hdr, &b.out[n].hdr
	out.Name, out.Namelen = in.Name, in.Namelen
	out.Iov = &b.outIov[i]
	out.SetIovlen(count)
	ctl := b.outCtl[n][:0]
	if b.needsInfo {
		ctl = ctl[:copy(b.outCtl[n][:ctlSize], b.ctl[r.in][:in.Controllen])]
		ctl = ctl[:fromDestination(ctl)]
	}
	if count > 1 {
		at := len(ctl)
		ctl = ctl[:at+segmentCtl]
		clear(ctl[at:])
		h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[at]))
		h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		*(*uint16)(unsafe.Pointer(&ctl[at+unix.CmsgLen(0)])) = uint16(size)
	}
	out.Control = nil
	if len(ctl) > 0 {
		out.Control = &ctl[0]
	}
	out.SetControllen(len(ctl))
}

// fromDestination turns the control message that says where a packet went to into one that has the answer come from
// there, in place. The interface is left to routing, but for link-local addresses.
func fromDestination(ctl []byte) int {
	if len(ctl) < unix.SizeofCmsghdr {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[0]))
	body := ctl[unix.CmsgLen(0):]
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(body) >= unix.SizeofInet4Pktinfo:
		clear(body[:4])
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(body) >= unix.SizeofInet6Pktinfo:
		if !netip.AddrFrom16([16]byte(body[:16])).IsLinkLocalUnicast() {
			clear(body[16:20])
		}
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	return 0
}

// send sends the first k replies. One that the kernel won't take is lost, as any packet can be.
func (b *burst) send(fd, k int) {
	n := b.pack(k)
	for at := 0; at < n; {
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.out[at])), uintptr(n-at), unix.MSG_DONTWAIT, 0, 0)
		if errno == syscall.EAGAIN {
			sent, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.out[at])), uintptr(n-at), 0, 0, 0)
		}
		switch {
		case errno == syscall.EINTR:
		case errno != 0:
			b.apart(fd, at, errno)
			at++
		default:
			at += int(sent)
		}
	}
}

// apart sends the answers of one message that the kernel did not take as one: they are longer than the path's MTU, or
// the way goes through something that can't take them apart.
func (b *burst) apart(fd, n int, why syscall.Errno) {
	h := b.out[n].hdr
	if h.Iovlen < 2 {
		return
	}
	if why == syscall.EIO {
		b.segments = false // not on this machine
	}
	h.SetControllen(int(h.Controllen) - segmentCtl)
	if h.Controllen == 0 {
		h.Control = nil
	}
	iov := unsafe.Slice(h.Iov, h.Iovlen)
	h.SetIovlen(1)
	for i := range iov {
		h.Iov = &iov[i]
		_, _, _ = unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), 0)
	}
}
