// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// A copy streams as its request does, and the request waits for neither the copy nor its own end.
func TestMirrorsStream(t *testing.T) {
	got := make(chan string, 10)
	copies := func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		got <- fmt.Sprint(len(b), " ", err == nil, " ", r.Trailer.Get("X-In"))
	}
	for name, addr := range map[string]string{"HTTP/1.1": serve(t, copies), "HTTP/2": serve2(t, copies).Listener.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			heard := func() string {
				select {
				case m := <-got:
					return m
				case <-time.After(20 * time.Second):
					return "nothing"
				}
			}
			u := withBackend(over2(serve2(t, echoes(false)).Listener.Addr().String()), "m", addr)
			if name == "HTTP/2" {
				u.Backends[1].Protocol = route.HTTP2
			}
			u.Routes[0].Rules[0].Filters = []route.Filter{{Mirror: &route.Mirror{Backend: "m", Numerator: 100}}}
			r := start(t, u)
			// A call whose message does not come with its head.
			f := newFramer(t, r.tcp())
			f.headers(endHeaders, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers"))
			time.Sleep(100 * time.Millisecond) // the message is late
			f.data(endStream, 1, "hello")
			if m := heard(); m != "5 true " {
				t.Errorf("a call: %s", m)
			}
			// A stream that goes both ways, of more than is kept for a copy.
			tr := h2cClient()
			defer tr.CloseIdleConnections()
			resp, pw := r.duplexed(tr, "application/grpc")
			piece := strings.Repeat("x", 100_000)
			for range 20 {
				go func() { _, _ = io.WriteString(pw, piece) }()
				if _, err := io.ReadFull(resp.Body, make([]byte, len(piece))); err != nil {
					t.Fatal(err)
				}
			}
			pw.Close()
			if m := heard(); m != "2000000 true " {
				t.Errorf("a stream: %s", m)
			}
			// A chunked body with trailers.
			c := r.dial()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-In\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
			time.Sleep(50 * time.Millisecond) // it comes in parts
			c.send("0\r\nX-In: in\r\n\r\n")
			if resp, b := c.answer("POST"); resp.StatusCode != 200 || b != "abc" {
				t.Errorf("%d %q", resp.StatusCode, b)
			}
			if m := heard(); m != "3 true in" && m != "3 true " {
				t.Errorf("chunks: %s", m)
			}
			until(t, "the copies are over", func() bool { return r.srv.mirrors.Load() == 0 && r.srv.held.bytes.Load() == 0 })
		})
	}
}

// A copy that does not keep up is cut off, and costs the request nothing; so is one of a request that breaks off.
func TestMirrorsThatLag(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	begun := make(chan struct{}, 10)
	slow := talk(t, func(c net.Conn) {
		defer c.Close()
		_, _ = http.ReadRequest(bufio.NewReaderSize(c, 512))
		begun <- struct{}{}
		<-stop
	})
	u := withBackend(simple(newEcho(t, "one").addr()), "m", slow)
	u.Routes[0].Rules[0].Filters = []route.Filter{{Mirror: &route.Mirror{Backend: "m", Numerator: 100}}}
	r := start(t, u)
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	piece := strings.Repeat("x", 100_000)
	for range 100 {
		c.send(fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece))
	}
	c.send("0\r\n\r\n")
	if resp, b := c.answer("POST"); resp.StatusCode != 200 || len(b) < 100*len(piece) {
		t.Errorf("%d, %d bytes", resp.StatusCode, len(b))
	}
	<-begun
	until(t, "the copy is over", func() bool { return r.srv.mirrors.Load() == 0 && r.srv.held.bytes.Load() == 0 })
	c = r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + piece)
	<-begun
	c.Close()
	until(t, "the copy is over", func() bool { return r.srv.mirrors.Load() == 0 && r.srv.held.bytes.Load() == 0 })
}

// A body whose length is known is all there with its last byte: nobody reads on to find out.
func TestCopiesEnd(t *testing.T) {
	for _, c := range []struct {
		length int64
		want   error
	}{{5, io.EOF}, {6, errBrokenOff}, {-1, errBrokenOff}} {
		var held holding
		b := newCopiedBody(&held, c.length)
		b.add([]byte("hello"))
		b.end(errBrokenOff)
		p, err := b.next()
		if c.want == io.EOF {
			if string(p) != "hello" || err != nil {
				t.Errorf("%q, %v", p, err)
			}
			_, err = b.next()
		}
		if err != c.want || held.bytes.Load() != 0 {
			t.Errorf("of %d bytes: %v, want %v; %d are held", c.length, err, c.want, held.bytes.Load())
		}
	}
}
