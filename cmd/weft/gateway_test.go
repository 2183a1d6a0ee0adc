// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A connection of TCP on which nothing moves ends after the time that the flag gives.
func TestGatewayTunnelIdle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	file := filepath.Join(t.TempDir(), "tables.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
listeners: [{key: l, protocol: TCP, port: %d, addresses: [127.0.0.1]}]
backends: [{key: b, protocol: raw, endpoints: b}]
endpoints: [{key: b, endpoints: [{address: %q}]}]
routes: [{key: r, kind: TCPRoute, parents: [{listener: l, hostnames: [""]}], rules: [{backends: [{backend: b, weight: 1}]}]}]
`, port, l.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := newGatewayCommand()
	cmd.SetArgs([]string{"--config=" + file, "--metrics-bind-address=", "--tunnel-idle=2s", "--drain=1s", "--log-level=error"})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var c net.Conn
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			break
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatal(err)
		}
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 5)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	if n, err := c.Read(b); err != io.EOF {
		t.Errorf("%d bytes, %v: the connection goes on", n, err)
	}
}
