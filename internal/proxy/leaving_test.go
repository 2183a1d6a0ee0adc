// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// A client of a WebSocket over HTTP/2 takes nothing, and leaves: the tunnel, which waits for it, ends.
func TestTunnelWhoseClientLeaves(t *testing.T) {
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		if _, err := http.ReadRequest(bufio.NewReaderSize(c, 512)); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		b := make([]byte, 16<<10)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	r := start(t, simple(addr))
	f := newFramer(t, r.tcp())
	f.headers(endHeaders, 1, head(":method", "CONNECT", ":protocol", "websocket", ":path", "/", "sec-websocket-version", "13"))
	n := 0
	for n < 65535 {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := fr.(*http2.DataFrame); ok {
			n += len(d.Data())
		}
	}
	time.Sleep(200 * time.Millisecond)
	_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
	time.Sleep(200 * time.Millisecond)
	f.conn.Close()
	until(t, "the connection is gone", func() bool { return r.srv.conns.Load() == 0 && r.srv.active.Load() == 0 })
}

// Once both ends of a tunnel have said their last word, what was said goes on its way to the end.
func TestHalfClosedTunnelsGoOn(t *testing.T) {
	got := make(chan int, 1)
	addr := talk(t, func(c net.Conn) {
		defer c.Close()
		br := bufio.NewReaderSize(c, 512)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		_ = c.(*net.TCPConn).CloseWrite()
		time.Sleep(300 * time.Millisecond)
		n, b := 0, make([]byte, 64<<10)
		for {
			k, err := br.Read(b)
			n += k
			if err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		got <- n
	})
	r := start(t, simple(addr))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(c.r)
	const size = 16 << 20
	_, _ = c.Conn.Write(make([]byte, size))
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	for range 100 {
		r.srv.dropGone()
		time.Sleep(20 * time.Millisecond)
	}
	if n := <-got; n != size {
		t.Errorf("%d of %d bytes", n, size)
	}
}

// An endpoint that has answered and closes, as servers do that do not want a body, is no reason for the client to miss the
// answer: clients write all of a body first, and read then.
func TestAnswersThatComeBeforeABody(t *testing.T) {
	r := start(t, simple(talk(t, func(c net.Conn) {
		defer c.Close()
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = br.Discard(1000)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
	})))
	for range 5 {
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n")
		c.send(strings.Repeat("x", 8<<20))
		if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
	}
}
