// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

// System calls that never wait. They are made without telling the scheduler: package syscall's tell it of every call, and
// it takes a goroutine that makes one after the other for one that waits, and gives its core to another thread again and
// again.

// rawFD is a descriptor of which package os knows nothing.
type rawFD int

// rawCall makes a call again that a signal has interrupted. Arguments may be pointers: without the directive what they
// point to would stay on a stack, which moves when it grows, as it may on the way here.
//
//go:uintptrescapes
func rawCall(trap, a, b, c, d uintptr) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, a, b, c, d, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
			continue
		}
		return -1, errno
	}
}

// read gives 0 bytes at the end, and EAGAIN when there is nothing. It is recv, and write is send: they get to a socket without
// what is there for files, which is a twentieth of what a small request costs.
func (fd rawFD) read(p []byte) (int, error) {
	return rawCall(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_DONTWAIT)
}

func (fd rawFD) write(p []byte) (int, error) {
	return rawCall(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
}

// silent tells whether the other end has neither closed nor said anything that has not been read.
func (fd rawFD) silent() bool {
	var b [1]byte
	for {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno == syscall.EAGAIN
		}
	}
}

// hungUp tells whether the connection is over both ways (poll's POLLHUP).
func (fd rawFD) hungUp() bool {
	const hup = 0x10
	p := struct {
		fd            int32
		events, holds int16
	}{fd: int32(fd)}
	var now syscall.Timespec
	n, err := rawCall(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0)
	return err == nil && n == 1 && p.holds&hup != 0
}

func (fd rawFD) close() { _, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0) }

// splice moves up to n bytes to another descriptor. One of the two is a pipe's.
func (fd rawFD) splice(to rawFD, n int) (int, error) {
	const move, nonblock = 1, 2 // SPLICE_F_MOVE, SPLICE_F_NONBLOCK
	for {
		moved, _, errno := syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(fd), 0, uintptr(to), 0, uintptr(n), move|nonblock)
		switch errno {
		case 0:
			return int(moved), nil
		case syscall.EINTR:
			continue
		}
		return -1, errno
	}
}

// accept takes a connection, and gives its client.
func (fd rawFD) accept() (rawFD, netip.AddrPort, error) {
	var sa syscall.RawSockaddrInet6 // has room for one of IPv4
	size := uint32(unsafe.Sizeof(sa))
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)),
			syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			return rawFD(n), addrPortOf(&sa), nil
		case syscall.EINTR, syscall.ECONNABORTED:
			continue
		}
		return -1, netip.AddrPort{}, errno
	}
}

// local is the socket's own address.
func (fd rawFD) local() netip.AddrPort {
	var sa syscall.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	if _, err := rawCall(syscall.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0); err != nil {
		return netip.AddrPort{}
	}
	return addrPortOf(&sa)
}

func addrPortOf(sa *syscall.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == syscall.AF_INET {
		v4 := (*syscall.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// connect begins a connection.
func connect(to netip.AddrPort) (rawFD, error) {
	var v4 syscall.RawSockaddrInet4
	var v6 syscall.RawSockaddrInet6
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], to.Port())
	family, sa, size := syscall.AF_INET6, unsafe.Pointer(&v6), unsafe.Sizeof(v6)
	if ip := to.Addr().Unmap(); ip.Is4() {
		v4 = syscall.RawSockaddrInet4{Family: syscall.AF_INET, Addr: ip.As4()}
		*(*[2]byte)(unsafe.Pointer(&v4.Port)) = port
		family, sa, size = syscall.AF_INET, unsafe.Pointer(&v4), unsafe.Sizeof(v4)
	} else {
		v6 = syscall.RawSockaddrInet6{Family: syscall.AF_INET6, Addr: ip.As16()}
		*(*[2]byte)(unsafe.Pointer(&v6.Port)) = port
	}
	n, err := rawCall(syscall.SYS_SOCKET, uintptr(family), syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0, 0)
	if err != nil {
		return -1, err
	}
	fd := rawFD(n)
	if err = fd.set(syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err == nil {
		_, _, errno := syscall.RawSyscall(syscall.SYS_CONNECT, uintptr(fd), uintptr(sa), size)
		if errno == 0 || errno == syscall.EINPROGRESS || errno == syscall.EINTR {
			return fd, nil
		}
		err = errno
	}
	fd.close()
	return -1, err
}

// set sets an option of a socket.
func (fd rawFD) set(level, option uintptr, value int32) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), level, option, uintptr(unsafe.Pointer(&value)), 4, 0)
	if errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}

// keepAlive has the kernel ask for a sign of life when nothing has come for a while: every 15 seconds, 9 times.
func (fd rawFD) keepAlive() error {
	return errors.Join(
		fd.set(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1),
		fd.set(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 15),
		fd.set(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 15),
		fd.set(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 9),
	)
}

// watch asks an epoll for events of a descriptor. They come with two numbers.
func (ep rawFD) watch(fd rawFD, events uint32, slot int, tag uint32) error {
	e := syscall.EpollEvent{Events: events, Fd: int32(slot), Pad: int32(tag)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(ep), syscall.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// forget ends watch.
func (ep rawFD) forget(fd rawFD) {
	var e syscall.EpollEvent
	_, _, _ = syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(ep), syscall.EPOLL_CTL_DEL, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
}

// events gives what there is to tell.
func (ep rawFD) events(into []syscall.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(into))), uintptr(len(into)), 0, 0, 0)
	if errno != 0 {
		return 0 // EINTR
	}
	return int(n)
}
