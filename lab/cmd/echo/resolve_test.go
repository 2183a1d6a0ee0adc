// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers names from a table, over UDP and TCP: "rcode" or addresses. It notes what it was asked.
type nameServer struct {
	at    netip.AddrPort
	mu    sync.Mutex
	names map[string]string
	asked []string
	deaf  int // questions yet to be passed over
}

func newNameServer(t *testing.T, names map[string]string) *nameServer {
	t.Helper()
	s := &nameServer{names: names}
	var u net.PacketConn
	var l net.Listener
	for { // a port that is free for both
		var err error
		if u, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", u.LocalAddr().String()); err == nil {
			break
		}
		u.Close()
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	s.at = netip.MustParseAddrPort(u.LocalAddr().String())
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			if a := s.answer(buf[:n], true); a != nil {
				_, _ = u.WriteTo(a, from)
			}
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 514)
			if n, _ := c.Read(buf); n > 2 {
				a := s.answer(buf[2:n], false)
				_, _ = c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
			}
			c.Close()
		}
	}()
	return s
}

func (s *nameServer) answer(query []byte, udp bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m dnsmessage.Message
	if m.Unpack(query) != nil {
		return nil
	}
	q := m.Questions[0]
	s.asked = append(s.asked, fmt.Sprintf("%s %s", q.Name, strings.TrimPrefix(q.Type.String(), "Type")))
	if s.deaf > 0 {
		s.deaf--
		return nil
	}
	m.Response = true
	what, ok := s.names[q.Name.String()]
	switch {
	case !ok:
		m.RCode = dnsmessage.RCodeNameError
	case what == "SERVFAIL":
		m.RCode = dnsmessage.RCodeServerFailure
	case strings.HasPrefix(what, "long ") && udp:
		m.Truncated = true
	default:
		for _, f := range strings.Fields(strings.TrimPrefix(what, "long ")) {
			a := netip.MustParseAddr(f)
			h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, Type: q.Type}
			switch {
			case a.Is4() && q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && q.Type == dnsmessage.TypeAAAA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func TestResolveAsMuslDoes(t *testing.T) {
	for _, c := range []struct {
		name, ask string
		want      string // addresses or the error
		asked     []string
	}{
		{"short: searched for", "web", "10.0.0.1 fd00::1", []string{"web.a.test. A", "web.a.test. AAAA", "web.test. A", "web.test. AAAA"}},
		{"enough dots: not searched for", "web.test", "10.0.0.1 fd00::1", []string{"web.test. A", "web.test. AAAA"}},
		{"nowhere", "nope", errNoName.Error(), []string{"nope.a.test. A", "nope.a.test. AAAA", "nope.test. A", "nope.test. AAAA", "nope. A", "nope. AAAA"}},
		{"no address: the search ends", "empty", errNoData.Error(), []string{"empty.a.test. A", "empty.a.test. AAAA"}},
		{"one family", "four.test.", "10.0.0.4", []string{"four.test. A", "four.test. AAAA"}},
		{"too long for UDP", "long.test.", "10.0.0.5 10.0.0.6", []string{"long.test. A", "long.test. AAAA", "long.test. A", "long.test. AAAA"}},
		{"a server that fails", "broken.test.", errAgain.Error(), nil},
	} {
		s := newNameServer(t, map[string]string{"web.test.": "fd00::1 10.0.0.1", "empty.a.test.": "", "four.test.": "10.0.0.4", "long.test.": "long 10.0.0.6 10.0.0.5", "broken.test.": "SERVFAIL"})
		r, err := readResolvConf(strings.NewReader("search a.test test\noptions ndots:1 timeout:1 attempts:2\n"))
		if err != nil {
			t.Fatal(err)
		}
		r.servers = []netip.AddrPort{s.at}
		if c.asked != nil {
			r.timeout = 30 * time.Second // nothing is asked again
		}
		addrs, err := r.lookup(c.ask)
		var out bytes.Buffer
		printAddrs(&out, addrs)
		got := strings.Join(strings.Fields(out.String()), " ")
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		slices.Sort(s.asked)
		slices.Sort(c.asked)
		if c.asked != nil && !slices.Equal(s.asked, c.asked) {
			t.Errorf("%s: asked %q, want %q", c.name, s.asked, c.asked)
		}
	}
}

func TestResolveAsksAgain(t *testing.T) {
	s := newNameServer(t, map[string]string{"web.": "10.0.0.1"})
	s.deaf = 1
	r := &resolver{servers: []netip.AddrPort{s.at}, ndots: 1, timeout: 20 * time.Second, attempts: 20}
	if a, err := r.lookup("web."); err != nil || len(a) != 1 || r.again < 1 {
		t.Errorf("%v, %v, asked again %d", a, err, r.again)
	}
}

func TestResolveCounts(t *testing.T) {
	s := newNameServer(t, map[string]string{"web.": "10.0.0.1"})
	var out bytes.Buffer
	if err := resolve(t.Context(), []string{"-server", s.at.String(), "-n", "20", "-c", "4", "web."}, &out); err != nil || out.String() != "10.0.0.1\nsent 20, answered 20, failed 0, asked again 0\n" {
		t.Errorf("%v: %q", err, out.String())
	}
	out.Reset()
	err := resolve(t.Context(), []string{"-server", s.at.String(), "-n", "2", "nope."}, &out)
	if !errors.Is(err, errFailed) || !strings.Contains(out.String(), "sent 2, answered 0, failed 2") {
		t.Errorf("%v: %q", err, out.String())
	}
	for _, bad := range [][]string{{}, {"a", "b"}, {"-server", "x", "a"}, {"-resolv-conf", "/nonexistent", "a"}} {
		if err := resolve(t.Context(), bad, &out); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
