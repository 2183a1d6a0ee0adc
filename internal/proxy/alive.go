// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"net"
	"syscall"
)

// alive tells whether the other end of a kept connection has neither closed it nor said anything unasked, which would be
// taken for the answer to the next request (RFC 9112 section 9.2).
func alive(c net.Conn) bool {
	if t, ok := c.(*tls.Conn); ok {
		return aliveTLS(t)
	}
	return ofSocket(c, rawFD.silent, true)
}

// hungUp tells whether the other end has broken the connection, or is no more. One that has only said all it has to say
// (FIN) goes on listening.
func hungUp(c net.Conn) bool {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return ofSocket(c, rawFD.hungUp, false)
}

// ofSocket gives what a connection's socket answers, or how to take it that there is none.
func ofSocket(c net.Conn, f func(rawFD) bool, none bool) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return none
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	answer := false
	err = raw.Control(func(fd uintptr) {
		answer = f(rawFD(fd))
	})
	return err == nil && answer
}

// aliveTLS reads: what was said may be in TLS's hands already, and what the socket has need not be for us, as session tickets
// are not.
func aliveTLS(c *tls.Conn) bool {
	raw, read, err := reader(c)
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, err := read(int(fd), b[:])
		quiet = err == errNothing
	})
	return err == nil && quiet
}
