// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Monitor hears of every change to the network namespace's ruleset but those of one Conn, from Join on.
type Monitor struct {
	file   *os.File
	buf    []byte
	joined bool
}

// monitorBuffer holds the news of the biggest transactions that others make; what does not fit is reported as
// "something changed".
const monitorBuffer = 2 << 20

// NewMonitor makes a monitor of the network namespace of the calling thread. Changes made through own, a Conn, are
// kept out by the kernel.
func NewMonitor(own interface{ Port() uint32 }) (*Monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables: monitor socket: %w", err)
	}
	if err := monitorSetup(fd, own.Port()); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("nftables: monitor socket: %w", err)
	}
	return &Monitor{file: os.NewFile(uintptr(fd), "nftables monitor"), buf: make([]byte, 64<<10)}, nil
}

func monitorSetup(fd int, own uint32) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, monitorBuffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, monitorBuffer); err != nil {
			return err
		}
	}
	// A message's nlmsg_pid is the port of who made the change. The filter's loads are big-endian.
	if nativeLittle() {
		own = bits.ReverseBytes32(own)
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: own},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// Join starts listening; more than once is once. As long as anybody listens, the kernel puts every element that is
// added into words, for which it takes half as long again: a table that nobody uses yet is better filled before.
func (m *Monitor) Join() error {
	if m.joined {
		return nil
	}
	raw, err := m.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("nftables: monitor: %w", err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	})
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("nftables: monitor: %w", err)
	}
	m.joined = true
	return nil
}

// Joined tells whether it listens.
func (m *Monitor) Joined() bool { return m.joined }

func nativeLittle() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }

// Wait returns when somebody else has changed one of the tables: true, or when ctx is done: false. What it can't
// tell (news was lost) counts as a change.
func (m *Monitor) Wait(ctx context.Context, tables ...Table) (bool, error) {
	if err := m.file.SetReadDeadline(time.Time{}); err != nil {
		return false, fmt.Errorf("nftables: monitor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = m.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := m.file.SyscallConn()
	if err != nil {
		return false, fmt.Errorf("nftables: monitor: %w", err)
	}
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), m.buf, unix.MSG_DONTWAIT)
			return rerr != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return false, nil
		case errors.Is(err, os.ErrDeadlineExceeded): // of a Wait before this one
			if err := m.file.SetReadDeadline(time.Time{}); err != nil {
				return false, fmt.Errorf("nftables: monitor: %w", err)
			}
		case err != nil:
			return false, fmt.Errorf("nftables: monitor: %w", err)
		case rerr == unix.EINTR:
		case rerr == unix.ENOBUFS:
			return true, nil
		case rerr != nil:
			return false, fmt.Errorf("nftables: monitor: %w", rerr)
		default:
			found := false
			eachMessage(m.buf[:n], func(msg message) { found = found || touches(msg, tables) })
			if found {
				return true, nil
			}
		}
	}
}

// touches tells whether a notification is about one of the tables. In all of them the first attribute is the
// table's name.
func touches(m message, tables []Table) bool {
	msg, ok := m.nft()
	if !ok || msg == unix.NFT_MSG_NEWGEN || len(m.body) < 4 {
		return false
	}
	found := false
	eachAttr(m.attrs(), func(typ uint16, data []byte) {
		if typ != 1 {
			return
		}
		for _, t := range tables {
			found = found || Family(m.body[0]) == t.Family && cString(data) == t.Name
		}
	})
	return found
}

// Close ends the monitor and a Wait under way.
func (m *Monitor) Close() error { return m.file.Close() }
