// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// Kernels need not have SCTP's sockets, but policies and connection tracking know the protocol. So its packets are made
// by hand: the INIT that opens an association (RFC 9260, section 3.3.2), told apart by its initiate tag.

// sctpInit is an INIT between two ports.
func sctpInit(from, to uint16, tag uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = append(b, 0, 0, 0, 0) // verification tag: none yet
	b = append(b, 0, 0, 0, 0) // checksum
	b = append(b, 1, 0, 0, 20)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = binary.BigEndian.AppendUint32(b, 1<<16) // receiver's window
	b = append(b, 0, 1, 0, 1)                   // streams
	b = binary.BigEndian.AppendUint32(b, 1)     // first TSN
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// sendSCTP sends an INIT from the calling thread's namespace.
func sendSCTP(from uint16, to netip.AddrPort, tag uint32) error {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(model.SCTP))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, sctpInit(from, to.Port(), tag), 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
}

// sctpSink notes the INITs that reach a namespace.
type sctpSink struct {
	mu   sync.Mutex
	tags map[uint32]bool
}

// sctpSink listens on every address of the namespace.
func (n *Namespace) sctpSink(t testing.TB) *sctpSink {
	t.Helper()
	s := &sctpSink{tags: map[uint32]bool{}}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var fd int
		n.Do(t, func() (err error) {
			fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(model.SCTP))
			return err
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.read(fd, family)
		}()
		t.Cleanup(func() {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
			<-done
			_ = unix.Close(fd)
		})
	}
	return s
}

func (s *sctpSink) read(fd, family int) {
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		b := buf[:n]
		if family == unix.AF_INET { // with its header
			b = b[min(int(b[0]&15)*4, n):]
		}
		if len(b) >= 20 && b[12] == 1 {
			s.mu.Lock()
			s.tags[binary.BigEndian.Uint32(b[16:])] = true
			s.mu.Unlock()
		}
	}
}

func (s *sctpSink) has(tag uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tags[tag]
}
