// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// What the parser accepts, net/http reads in the same way: two readings of one message are what smuggling lives on.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x?y HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\nX: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\nX: 1\r\n\r\n", "GET http://b/ HTTP/1.0\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nUpgrade: x\r\nConnection: upgrade\r\nExpect: 100-continue\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		i := bytes.Index(b, endOfHead)
		if i < 0 {
			return
		}
		b = b[:i+4]
		var h requestHead
		if parseRequest(b, &h) != nil {
			return
		}
		path, _, _ := strings.Cut(string(h.target), "?")
		if clean, err := cleanPath([]byte(path)); err == nil && (bytes.Contains(clean, []byte("/../")) || bytes.HasSuffix(clean, []byte("/.."))) {
			t.Errorf("%q became %q", path, clean)
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return // stricter still, such as about the target's escapes
		}
		if req.Method != string(h.method) || req.ContentLength != h.length || len(req.TransferEncoding) > 0 != (h.length == -1) {
			t.Errorf("%q: read as %s with %d bytes, by net/http as %s with %d bytes", b, h.method, h.length, req.Method, req.ContentLength)
		}
		if req.Host != string(h.authority) {
			t.Errorf("%q: host %q, by net/http %q", b, h.authority, req.Host)
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HTTP/1.0 204\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
	} {
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, head bool) {
		i := bytes.Index(b, endOfHead)
		if i < 0 {
			return
		}
		b = b[:i+4]
		method := "GET"
		if head {
			method = "HEAD"
		}
		var h responseHead
		if parseResponse(b, method, &h) != nil || h.status < 200 {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: method})
		if err != nil {
			return
		}
		bodyless := head || h.status == 204 || h.status == 304
		if resp.StatusCode != h.status || !bodyless && (resp.ContentLength >= 0) != (h.length >= 0) || h.length > 0 && resp.ContentLength != h.length {
			t.Errorf("%q: %d with %d bytes, by net/http %d with %d bytes", b, h.status, h.length, resp.StatusCode, resp.ContentLength)
		}
	})
}

// scripted is a connection that gives its bytes in small pieces.
type scripted struct {
	net.Conn
	r    io.Reader
	step int
}

func (s *scripted) Read(p []byte) (int, error)       { return s.r.Read(p[:min(len(p), s.step)]) }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

// A chunked body is the same however its bytes arrive, and what ready promises needs no waiting.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "a;x=y\r\n0123456789\r\n1\r\nz\r\n00\r\nX: y\r\n\r\nnext", "0\r\n\r\n", "5\r\nhel", "5\nhello\n0\n\n", "FFFFFFFFFFFFFFFF\r\n", "1\r\nab\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(step int) (string, int, error) {
			src := bytes.NewReader(in)
			w := newWire(&scripted{r: src, step: step})
			defer w.release()
			var b wireBody
			b.reset(w, -1)
			var out bytes.Buffer
			for {
				ready, before := b.ready(), src.Len()
				p, err := b.next()
				if ready && src.Len() != before {
					t.Fatalf("%q: ready, yet it read on", in)
				}
				if err != nil {
					return out.String(), src.Len() + w.w - w.r, err
				}
				out.Write(p)
			}
		}
		one, rest1, err1 := read(1)
		all, rest2, err2 := read(1 << 20)
		if (err1 == io.EOF) != (err2 == io.EOF) || err1 == io.EOF && (one != all || rest1 != rest2) {
			t.Errorf("%q: %q, %v, %d left; at once %q, %v, %d left", in, one, err1, rest1, all, err2, rest2)
		}
	})
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nrest"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add(append(bytes.Clone(proxySignature), 0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 1, 0))
	f.Add(append(bytes.Clone(proxySignature), 0x20, 0, 0, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		src := bytes.NewReader(in)
		var pe peer
		if _, err := readProxyHeader(&scripted{r: src, step: 1 << 20}, &pe); err != nil || !pe.remote.IsValid() {
			return
		}
		// What was read says the same when written.
		for _, version := range []int{1, 2} {
			if version == 1 && pe.remote.Addr().Is4() != pe.local.Addr().Is4() {
				continue
			}
			var again peer
			if _, err := readProxyHeader(&scripted{r: bytes.NewReader(proxyHeader(version, pe.remote, pe.local)), step: 7}, &again); err != nil || pe.remote.Addr().Is4() == pe.local.Addr().Is4() && again.remote != pe.remote {
				t.Errorf("%q: version %d: %v became %v, %v", in, version, pe.remote, again.remote, err)
			}
		}
	})
}

// Whatever endpoints and clients send, what is made of it is one field's value.
func FuzzEditedFields(f *testing.F) {
	f.Add("a=1; Path=/app; Domain=.b; HttpOnly", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "$1", "(.*)")
	f.Fuzz(func(t *testing.T, cookie, parent, to, from string) {
		x := &exchange{peer: &peer{}, asked: asked{path: to, query: cookie}}
		r := []route.Replacement{{From: from, Regex: true, To: route.Template(to)}, {From: "/", To: "$request_uri"}}
		e := &cookieEdit{domains: replacers(r), paths: replacers(r)}
		in := clean([]byte(cookie))
		for _, c := range e.edit(in, x) {
			if !isValue[c] {
				t.Errorf("%q becomes %q", cookie, e.edit(in, x))
			}
		}
		s := &span{}
		if _, ok := s.read(parent); ok && (s.trace == [16]byte{} || s.parent == [8]byte{}) {
			t.Errorf("%q is taken for a trace", parent)
		}
		if path, _ := (&exchange{peer: &peer{}, asked: asked{path: cookie}}).template(mustText(t, "/x/$uri")); path == "" || path[0] != '/' || strings.Contains(path, "/../") {
			t.Errorf("%q leads to %q", cookie, path)
		}
	})
}

func mustText(t *testing.T, s route.Template) *route.Text {
	out, err := route.ParseTemplate(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
