// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestTCP sends much both ways and closes one direction first, as HTTP/1.0 clients do.
func TestTCP(t *testing.T) {
	target := listen(t)
	go func() {
		conn, err := target.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		got, err := io.ReadAll(conn) // until the client closes its direction
		if err != nil {
			t.Error(err)
		}
		io.WriteString(conn, strings.ToUpper(string(got)))
	}()
	l := listen(t)
	go ServeTCP(l, (&net.Dialer{}).DialContext, target.Addr().String())
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := strings.Repeat("much ", 200_000)
	if _, err := io.WriteString(conn, sent); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != strings.ToUpper(sent) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(sent), err)
	}
}

func TestTCPToNowhere(t *testing.T) {
	target := listen(t)
	target.Close()
	l := listen(t)
	go ServeTCP(l, (&net.Dialer{}).DialContext, target.Addr().String())
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("got %q, %v from nowhere", got, err)
	}
}

func TestUDP(t *testing.T) {
	target, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := target.ReadFrom(buf)
			if err != nil {
				return
			}
			target.WriteTo([]byte(strings.ToUpper(string(buf[:n]))), from)
		}
	}()
	l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go ServeUDP(l, (&net.Dialer{}).DialContext, target.LocalAddr().String())
	for _, client := range []string{"one", "two"} { // each has an answer of its own
		conn, err := net.Dial("udp", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, client); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil || string(buf[:n]) != strings.ToUpper(client) {
			t.Errorf("got %q, %v", buf[:n], err)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
