// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net"
	"testing"
)

// The kernel writes to where a variable is, however much of its stack a goroutine has used: a stack that grows moves.
func TestRawCallsAtAnyDepthOfStack(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, want := rawFD(f.Fd()), l.Addr().String()
	for depth := range 1000 {
		got := make(chan string)
		go func() { // whose stack is small
			got <- deep(depth, func() string { return fd.local().String() })
		}()
		if got := <-got; got != want {
			t.Fatalf("%d calls deep: %s, want %s", depth, got, want)
		}
	}
}

// deep calls f below so many frames, which are small.
//
//go:noinline
func deep(depth int, f func() string) string {
	if depth == 0 {
		return f()
	}
	return deep(depth-1, f)
}
