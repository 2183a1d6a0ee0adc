// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// benchCase is one kind of load. load gives the number of operations that succeeded.
type benchCase struct {
	name, what string
	load       func(ctx context.Context, b *bench, p portSet, d time.Duration) (float64, error)
}

var cases = []benchCase{
	{name: "http1", what: "small requests, kept connections", load: wrk("http://127.0.0.1:%d/", plain)},
	{name: "http1-1000-routes", what: "the same to one of 1,000 routes", load: wrk("http://127.0.0.1:%d/route-777/x", plain)},
	{name: "http1-64KiB", what: "answers of 64 KiB", load: wrk("http://127.0.0.1:%d/64k", plain)},
	{name: "http1-64KiB-up", what: "requests of 64 KiB", load: wrk("http://127.0.0.1:%d/up", plain, "-s", "post.lua")},
	{name: "https", what: "small requests, kept connections", load: wrk("https://localhost:%d/", secure)},
	{name: "https-new", what: "a handshake for each request", load: wrk("https://localhost:%d/", secure, "-H", "Connection: close")},
	{name: "http2", what: "small requests in TLS, 8 at a time", load: h2load("https://localhost:%d/")},
	{name: "http2-64KiB", what: "answers of 64 KiB", load: h2load("https://localhost:%d/64k")},
	{name: "grpc-unary", what: "calls with an empty message, HTTP/2 to the endpoint", load: h2load("https://localhost:%d/grpc/unary", "-d", "message", "-H", "content-type: application/grpc", "-H", "te: trailers")},
	{name: "grpc-stream", what: "messages to and fro on 16 streams", load: grpcStream},
	{name: "websocket", what: "messages to and fro", load: pingPong(plain, upgrade)},
	{name: "tcp", what: "messages to and fro", load: pingPong(tcp, "")},
	{name: "tcp-new", what: "a connection for each message", load: tcpNew},
	{name: "tls-passthrough", what: "messages to and fro after a ClientHello", load: pingPong(pass, clientHello())},
}

// upgrade asks for a WebSocket.
const upgrade = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

func plain(p portSet) int  { return p.plain }
func secure(p portSet) int { return p.secure }
func tcp(p portSet) int    { return p.tcp }
func pass(p portSet) int   { return p.pass }

func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }

var wrkCount = regexp.MustCompile(`(?m)^ *(\d+) requests in`)

func wrk(url string, port func(portSet) int, more ...string) func(context.Context, *bench, portSet, time.Duration) (float64, error) {
	return func(ctx context.Context, b *bench, p portSet, d time.Duration) (float64, error) {
		args := append([]string{"-t1", "-c32", "-d" + seconds(d) + "s"}, more...)
		out, err := b.tool(ctx, "wrk", append(args, fmt.Sprintf(url, port(p)))...)
		if err != nil {
			return 0, err
		}
		if strings.Contains(out, "Non-2xx") {
			return 0, errors.New(out)
		}
		return number(wrkCount, out)
	}
}

var h2loadCount = regexp.MustCompile(`(?m)^status codes: (\d+) 2xx`)

func h2load(url string, more ...string) func(context.Context, *bench, portSet, time.Duration) (float64, error) {
	return func(ctx context.Context, b *bench, p portSet, d time.Duration) (float64, error) {
		args := append([]string{"-t1", "-c4", "-m8", "-D" + seconds(d)}, more...)
		out, err := b.tool(ctx, "h2load", append(args, fmt.Sprintf(url, p.secure))...)
		if err != nil {
			return 0, err
		}
		return number(h2loadCount, out)
	}
}

// tool runs a load generator in the directory of the bench's files.
func (b *bench) tool(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func number(re *regexp.Regexp, out string) (float64, error) {
	m := re.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no number of requests in\n%s", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// many runs f in n goroutines until the time is over, and adds up what they count.
func many(ctx context.Context, n int, d time.Duration, f func(ctx context.Context, count *atomic.Int64) error) (float64, error) {
	end := time.Now().Add(d)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	var count atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, n)
	for range n {
		all.Go(func() {
			if err := f(ctx, &count); err != nil && time.Now().Before(end.Add(-10*time.Millisecond)) { // what comes later is the end itself
				errs <- err
				cancel()
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(count.Load()), nil
	}
}

func dial(ctx context.Context, port int) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err == nil {
		end, _ := ctx.Deadline()
		_ = c.SetDeadline(end)
	}
	return c, err
}

// message is what is sent to and fro. To WebSocket it is a masked text of 26 bytes.
var message = "\x81\x9a\x00\x00\x00\x00abcdefghijklmnopqrstuvwxyz"

func pingPong(port func(portSet) int, hello string) func(context.Context, *bench, portSet, time.Duration) (float64, error) {
	return func(ctx context.Context, _ *bench, p portSet, d time.Duration) (float64, error) {
		return many(ctx, 32, d, func(ctx context.Context, count *atomic.Int64) error {
			c, err := dial(ctx, port(p))
			if err != nil {
				return err
			}
			defer c.Close()
			r := bufio.NewReader(c)
			if hello != "" {
				if _, err := io.WriteString(c, hello); err != nil {
					return err
				}
			}
			switch {
			case port(p) == p.pass: // it comes back, as all does
				if _, err := r.Discard(len(hello)); err != nil {
					return err
				}
			case hello != "":
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
					return fmt.Errorf("not switched: %v, %w", resp, err)
				}
			}
			buf := make([]byte, len(message))
			for {
				if _, err := io.WriteString(c, message); err != nil {
					return err
				}
				if _, err := io.ReadFull(r, buf); err != nil {
					return err
				}
				count.Add(1)
			}
		})
	}
}

// clientHello is the first that a TLS client says to localhost.
func clientHello() string {
	var c firstWrite
	_ = tls.Client(&c, &tls.Config{ServerName: "localhost"}).Handshake() // which can't succeed
	return string(c.said)
}

// firstWrite is a connection that takes one write and is closed then.
type firstWrite struct {
	net.Conn
	said []byte
}

func (c *firstWrite) Write(p []byte) (int, error) {
	c.said = append(c.said, p...)
	return len(p), nil
}

func (c *firstWrite) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *firstWrite) Close() error                     { return nil }
func (c *firstWrite) SetWriteDeadline(time.Time) error { return nil }

func tcpNew(ctx context.Context, _ *bench, p portSet, d time.Duration) (float64, error) {
	return many(ctx, 32, d, func(ctx context.Context, count *atomic.Int64) error {
		buf := make([]byte, len(message))
		for ctx.Err() == nil {
			c, err := dial(ctx, p.tcp)
			if err != nil {
				return err
			}
			_ = c.(*net.TCPConn).SetLinger(0) // no port is kept busy
			if _, err = io.WriteString(c, message); err == nil {
				_, err = io.ReadFull(c, buf)
			}
			c.Close()
			if err != nil {
				return err
			}
			count.Add(1)
		}
		return nil
	})
}

func grpcStream(ctx context.Context, _ *bench, p portSet, d time.Duration) (float64, error) {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true} // a certificate of this run's own
	defer tr.CloseIdleConnections()
	return many(ctx, 16, d, func(ctx context.Context, count *atomic.Int64) error {
		pr, pw := io.Pipe()
		defer pw.Close()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("https://localhost:%d/grpc/stream", p.secure), pr)
		if err != nil {
			return err
		}
		req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
		go func() { _, _ = pw.Write([]byte("\x00\x00\x00\x00\x05first")) }() // some proxies wait for data before they pass a request on
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		buf := make([]byte, 10)
		for {
			if _, err := io.ReadFull(resp.Body, buf); err != nil {
				return err
			}
			count.Add(1)
			if _, err := pw.Write(buf); err != nil {
				return err
			}
		}
	})
}
