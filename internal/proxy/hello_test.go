// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/ocsp"

	"github.com/weft-net/weft/internal/route"
)

// saying is a connection that takes what a client says first, and answers nothing.
type saying struct {
	net.Conn
	said bytes.Buffer
}

func (c *saying) Write(p []byte) (int, error)      { return c.said.Write(p) }
func (c *saying) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *saying) Close() error                     { return nil }
func (c *saying) SetWriteDeadline(time.Time) error { return nil }

// hello is what a client of crypto/tls says first.
func hello(conf *tls.Config) []byte {
	var c saying
	_ = tls.Client(&c, conf).Handshake() // ends without an answer
	return c.said.Bytes()
}

// serverName reads a ClientHello's server name, as RFC 8446 section 4.1.2 and RFC 6066 section 3 lay it out: "" when
// there is none, ok false when it is not well-formed.
func serverName(records []byte) (name string, ok bool) {
	var message []byte
	in := cryptobyte.String(records)
	for {
		var kind uint8
		var version uint16
		var body cryptobyte.String
		if !in.ReadUint8(&kind) || !in.ReadUint16(&version) || !in.ReadUint16LengthPrefixed(&body) || kind != 22 {
			return "", false
		}
		message = append(message, body...)
		if len(message) >= 4 {
			if n := int(message[1])<<16 | int(message[2])<<8 | int(message[3]); len(message) >= 4+n {
				message = message[:4+n]
				break
			}
		}
	}
	h := cryptobyte.String(message)
	var session, suites, compression, extensions cryptobyte.String
	if message[0] != 1 || !h.Skip(4+2+32) || !h.ReadUint8LengthPrefixed(&session) || !h.ReadUint16LengthPrefixed(&suites) || !h.ReadUint8LengthPrefixed(&compression) {
		return "", false
	}
	if h.Empty() {
		return "", true
	}
	if !h.ReadUint16LengthPrefixed(&extensions) {
		return "", false
	}
	for !extensions.Empty() {
		var kind uint16
		var body, list cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&body) {
			return "", false
		}
		if kind != 0 {
			continue
		}
		if !body.ReadUint16LengthPrefixed(&list) {
			return "", false
		}
		for !list.Empty() {
			var form uint8
			var host cryptobyte.String
			if !list.ReadUint8(&form) || !list.ReadUint16LengthPrefixed(&host) {
				return "", false
			}
			if form == 0 {
				name = string(host)
			}
		}
	}
	return strings.ToLower(name), true
}

// Whatever a client says first: it is kept as it came, however it came in pieces, nothing is answered, and the name that
// chooses the route is the one that stands there.
func FuzzClientHello(f *testing.F) {
	for _, name := range []string{"", "a.example.com", "A.Example.COM", strings.Repeat("a.", 100) + "example.com"} {
		f.Add(hello(&tls.Config{ServerName: name, InsecureSkipVerify: true}), uint16(5))
		f.Add(hello(&tls.Config{ServerName: name, InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}), uint16(1))
	}
	whole := hello(&tls.Config{ServerName: "split.example.com"})
	split := append([]byte{22, 3, 1, 0, 50}, whole[5:55]...)
	rest := whole[55:]
	f.Add(append(append(split, 22, 3, 1, byte(len(rest)>>8), byte(len(rest))), rest...), uint16(9)) // in two records
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(3))
	f.Add([]byte{22, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff}, uint16(1))
	f.Fuzz(func(t *testing.T, in []byte, step uint16) {
		c := &scripted{r: bytes.NewReader(in), step: int(step)%600 + 1}
		read, name, err := readHello(c)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(in, read) {
			t.Errorf("%d bytes were read, and not as they came", len(read))
		}
		if want, ok := serverName(in); !ok || want != name {
			t.Errorf("%q: the server name is %q, want %q, %v", in, name, want, ok)
		}
		if len(read) > maxHello {
			t.Errorf("%d bytes were read of a client that has not said what it wants", len(read))
		}
	})
}

// A client that never gets to the end of its first message is not waited for beyond a bound.
func TestClientHelloIsBounded(t *testing.T) {
	record := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
	copy(record[5:], []byte{1, 0xff, 0xff, 0xff}) // a ClientHello of 16 MiB
	again := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
	src := &counted{r: io.MultiReader(bytes.NewReader(record), &repeated{b: again})}
	if _, _, err := readHello(&scripted{r: src, step: 1 << 20}); err == nil {
		t.Error("it has an end after all")
	}
	if src.n > 2*maxHello {
		t.Errorf("%d bytes were read", src.n)
	}
}

type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// repeated says the same again and again.
type repeated struct {
	b  []byte
	at int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.at:])
	r.at = (r.at + n) % len(r.b)
	return n, nil
}

// A staple goes to clients that ask for it, as it was given, with the certificate it is for.
func TestOCSPStaple(t *testing.T) {
	ca := newAuthority(t)
	u := secure(t, ca, newEcho(t, "one").addr(), "a.example.com", "b.example.com")
	u.Certificates[0].OCSP = []byte("what the responder said")
	r := start(t, u)
	staple := func(name string) string {
		t.Helper()
		c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return string(c.ConnectionState().OCSPResponse)
	}
	if got := staple("a.example.com"); got != "what the responder said" {
		t.Errorf("%q", got)
	}
	if got := staple("b.example.com"); got != "" {
		t.Errorf("another certificate's: %q", got)
	}
	// A newer one comes with the next update, for the same certificate.
	renewed := r.update.Certificates[0]
	renewed.OCSP = []byte("said later")
	if err := r.srv.Apply(&route.Update{Certificates: []route.Certificate{renewed}}); err != nil {
		t.Fatal(err)
	}
	if got := staple("a.example.com"); got != "said later" {
		t.Errorf("%q", got)
	}
}

// A staple that clients would refuse is not sent, be it too old when it comes or later.
func TestOCSPStapleExpires(t *testing.T) {
	ca := newAuthority(t)
	u := secure(t, ca, newEcho(t, "one").addr(), "a.example.com", "b.example.com")
	respond := func(i int, until time.Time) {
		pair, err := keyPair(&u.Certificates[i])
		if err != nil {
			t.Fatal(err)
		}
		u.Certificates[i].OCSP, err = ocsp.CreateResponse(ca.own.Leaf, ca.own.Leaf, ocsp.Response{Status: ocsp.Good, SerialNumber: pair.Leaf.SerialNumber,
			ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}, ca.own.PrivateKey.(crypto.Signer))
		if err != nil {
			t.Fatal(err)
		}
	}
	respond(0, time.Now().Add(time.Hour))
	respond(1, time.Now().Add(-time.Minute))
	r := start(t, u)
	stapled := func(name string) bool {
		t.Helper()
		c, err := tls.Dial("tcp", r.tcp(), &tls.Config{RootCAs: ca.pool(), ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return len(c.ConnectionState().OCSPResponse) > 0
	}
	if !stapled("a.example.com") || stapled("b.example.com") {
		t.Error("stapled is what is too old, or not what is good")
	}
	r.srv.tables.mu.Lock()
	defer r.srv.tables.mu.Unlock()
	if now := time.Now(); r.srv.tables.expireStaples(now) || !r.srv.tables.expireStaples(now.Add(2*time.Hour)) {
		t.Error("a staple is renewed before its time, or not at it")
	}
}
