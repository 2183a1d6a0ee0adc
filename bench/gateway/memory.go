// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// connections is how many wait at a time when memory is measured, and tunnels how many of those that have one more to the
// endpoint.
const (
	connections = 10000
	tunnels     = 5000
)

// memory measures how much more a contender takes with many routes, and with many connections that wait.
func (b *bench) memory(ctx context.Context) ([]figure, error) {
	var out []figure
	for _, c := range []waiter{
		{"idle connections", connections, plain, false, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "most APIs are\n"},
		{"slow connections", connections, plain, false, "GET / HTTP/1.1\r\nHost: loc", ""},
		{"idle TCP connections", tunnels, tcp, false, message, message},
		{"idle WebSockets over TLS", tunnels, secure, true, upgrade, "\r\n\r\n"},
	} {
		for _, name := range contenders {
			if err := b.again(ctx, name); err != nil {
				return nil, err
			}
			grown, err := b.waiting(ctx, name, c)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", c.what, name, err)
			}
			out = append(out, figure{name, fmt.Sprintf("KiB for each of %d %s", c.n, c.what), float64(grown) / float64(c.n) / 1024})
		}
	}
	first := int64(0)
	for _, n := range []int{0, 1000, 5000} {
		rss, err := b.withRoutes(ctx, n)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			first = rss
		}
		out = append(out, figure{"weft", fmt.Sprintf("MiB more with %d routes", n), float64(rss-first) / (1 << 20)})
	}
	return out, nil
}

// waiter is a kind of connection that waits, once something has been said and perhaps answered.
type waiter struct {
	what       string
	n          int
	port       func(portSet) int
	tls        bool
	say, until string
}

// waiting opens such connections, and gives the growth in bytes.
func (b *bench) waiting(ctx context.Context, name string, w waiter) (int64, error) {
	before := b.procs[name].rss()
	conns := make([]net.Conn, 0, w.n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	buf := make([]byte, 4096)
	for range w.n {
		c, err := dial(ctx, w.port(ports(name)))
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
		if w.tls {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}) // a certificate of this run's own
		}
		if _, err := io.WriteString(c, w.say); err != nil {
			return 0, err
		}
		for got := ""; !strings.HasSuffix(got, w.until); {
			n, err := c.Read(buf)
			if err != nil {
				return 0, err
			}
			got += string(buf[:n])
		}
	}
	return b.procs[name].rss() - before, nil
}

// withRoutes gives weft's memory in bytes when it serves so many routes and has answered requests.
func (b *bench) withRoutes(ctx context.Context, n int) (int64, error) {
	chain, key, err := certificate()
	if err != nil {
		return 0, err
	}
	tables, err := json.Marshal(weftTables(n, chain, key))
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(b.file("weft.yaml"), tables, 0o644); err != nil {
		return 0, err
	}
	if err := b.again(ctx, "weft"); err != nil {
		return 0, err
	}
	if _, err := cases[0].load(ctx, b, ports("weft"), 5*time.Second); err != nil {
		return 0, err
	}
	return b.procs["weft"].rss(), nil
}

// figure is one measurement that is no ratio.
type figure struct {
	Contender string  `json:"contender"`
	What      string  `json:"what"`
	Value     float64 `json:"value"`
}

func figures(list []figure) string {
	var b bytes.Buffer
	for _, f := range list {
		fmt.Fprintf(&b, "| %s | %s | %.1f |\n", f.Contender, f.What, f.Value)
	}
	return b.String()
}
