// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// errFailed says that requests failed, which the summary has told already.
var errFailed = errors.New("requests failed")

func tlsVersion(v uint16) string { return tls.VersionName(v) }
func tlsSuite(v uint16) string   { return tls.CipherSuiteName(v) }

// plan is what to send.
type plan struct {
	url      *url.URL
	count    int           // 0: until for is over
	lasting  time.Duration // 0: until count is reached
	interval time.Duration // between the starts of one worker's requests
	timeout  time.Duration // of one request
	workers  int
	keep     bool // keep connections
	network  string
	quiet    bool
	body     bool // print what came back
	fail     bool // a status of 400 and above is a failure
	ports    *ports
}

// ports hands out source ports one after the other.
type ports struct {
	first uint32
	taken atomic.Uint32
}

// maxPort is the last port; the first is asked for.
const maxPort = 1<<16 - 1

func newPorts(first uint) (*ports, error) {
	if first < 1 || first > maxPort {
		return nil, fmt.Errorf("-from-port %d: want 1 to %d", first, maxPort)
	}
	return &ports{first: uint32(first)}, nil
}

func (p *ports) take() int { return int(p.first + (p.taken.Add(1)-1)%(maxPort+1-p.first)) }

const getUsage = `echo get [flags] URL

Sends requests and prints each answer, then a summary: how many were sent, answered and failed, which pods
answered, and how long it took. Exits 1 if any failed.
URL is http://, https:// (certificates are not checked), tcp://HOST:PORT or udp://HOST:PORT.

`

func get(ctx context.Context, args []string, out io.Writer) error {
	var p plan
	fs := flag.NewFlagSet("echo get", flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), getUsage); fs.PrintDefaults() }
	fs.IntVar(&p.count, "n", 0, "requests to send (default 1, or no limit with -for)")
	fs.DurationVar(&p.lasting, "for", 0, "send for this long, or until interrupted if that is sooner")
	fs.DurationVar(&p.interval, "interval", 0, "least time between a worker's requests")
	fs.DurationVar(&p.timeout, "timeout", 5*time.Second, "time for one request")
	fs.IntVar(&p.workers, "c", 1, "workers that send at the same time")
	fs.BoolVar(&p.keep, "keep", false, "keep connections instead of a new one for every request")
	fs.BoolVar(&p.quiet, "q", false, "print only failures and the summary")
	fs.BoolVar(&p.body, "body", false, "print each answer's body too")
	fs.BoolVar(&p.fail, "fail", true, "count an HTTP status of 400 and above as failed")
	first := fs.Uint("from-port", 0, "UDP: the first request's source port; the others take the next ones, so that no request looks like one more of an earlier connection")
	four, six := fs.Bool("4", false, "IPv4 only"), fs.Bool("6", false, "IPv6 only")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("want one URL; see echo get --help")
	}
	u, err := url.Parse(fs.Arg(0))
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"http", "https", "tcp", "udp"}, u.Scheme) {
		return fmt.Errorf("%s: want http://, https://, tcp:// or udp://", fs.Arg(0))
	}
	p.url = u
	if *first > 0 {
		if p.ports, err = newPorts(*first); err != nil {
			return err
		}
	}
	switch {
	case *four:
		p.network = "4"
	case *six:
		p.network = "6"
	}
	if p.count == 0 && p.lasting == 0 {
		p.count = 1
	}
	return p.run(ctx, out)
}

// run sends and reports. An interrupt ends the sending, not the summary; a request under way is let finish.
func (p plan) run(ctx context.Context, out io.Writer) error {
	if p.lasting > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.lasting)
		defer cancel()
	}
	tickets := make(chan struct{})
	go func() {
		defer close(tickets)
		for i := 0; p.count == 0 || i < p.count; i++ {
			select {
			case tickets <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	var mu sync.Mutex
	sum := summary{pods: map[string]int{}, errors: map[string]int{}}
	var wg sync.WaitGroup
	for range p.workers {
		wg.Go(func() {
			send, done := p.sender()
			defer done()
			for range tickets {
				start := time.Now()
				r := send()
				r.took = time.Since(start)
				mu.Lock()
				sum.add(r)
				if !p.quiet || r.err != nil {
					fmt.Fprintln(out, r)
				}
				if p.body && r.err == nil {
					fmt.Fprintf(out, "%s\n", bytes.TrimSpace(r.body))
				}
				mu.Unlock()
				if rest := p.interval - r.took; rest > 0 {
					select {
					case <-time.After(rest):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	wg.Wait()
	fmt.Fprint(out, sum.String())
	if sum.failed > 0 || sum.sent == 0 {
		return errFailed
	}
	return nil
}

// result is one request's outcome.
type result struct {
	status int // HTTP
	pod    string
	node   string
	client string
	body   []byte
	took   time.Duration
	err    error
}

func (r result) String() string {
	if r.err != nil {
		return fmt.Sprintf("%s FAILED after %s: %v", time.Now().Format("15:04:05.000"), r.took.Round(time.Microsecond), r.err)
	}
	s := fmt.Sprintf("pod=%s node=%s client=%s %s", r.pod, r.node, r.client, r.took.Round(time.Microsecond))
	if r.status != 0 {
		s = fmt.Sprintf("%d %s", r.status, s)
	}
	return s
}

// sender makes a worker's way to send one request, and to let go of its connections.
func (p plan) sender() (func() result, func()) {
	dialer := &net.Dialer{Timeout: p.timeout}
	if p.url.Scheme == "tcp" || p.url.Scheme == "udp" {
		return func() result { return p.raw(dialer) }, func() {}
	}
	t := &http.Transport{
		DisableKeepAlives: !p.keep,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp"+p.network, addr)
		},
	}
	c := &http.Client{Transport: t, Timeout: p.timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return func() result { return p.http(c) }, t.CloseIdleConnections
}

func (p plan) http(c *http.Client) result {
	var at progress
	req, err := http.NewRequestWithContext(at.trace(context.Background()), http.MethodGet, p.url.String(), nil)
	if err != nil {
		return result{err: err}
	}
	resp, err := c.Do(req)
	if err != nil {
		return result{err: fmt.Errorf("%w (%s)", err, at.String())}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	r := result{status: resp.StatusCode, body: body, err: err}
	var f facts
	if json.Unmarshal(body, &f) == nil {
		r.pod, r.node, r.client = f.Pod, f.Node, f.Client
	}
	if r.err == nil && p.fail && resp.StatusCode >= 400 {
		r.err = fmt.Errorf("status %s: %s", resp.Status, bytes.TrimSpace(body[:min(len(body), 200)]))
	}
	return r
}

// progress is how far a request has come: of one that got lost that is half of finding out where.
type progress struct {
	mu   sync.Mutex
	step string
}

func (p *progress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(p.step, "not begun")
}

func (p *progress) reach(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step = fmt.Sprintf(format, args...)
}

func (p *progress) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart:     func(i httptrace.DNSStartInfo) { p.reach("looking up %s", i.Host) },
		ConnectStart: func(_, addr string) { p.reach("connecting to %s", addr) },
		GotConn:      func(i httptrace.GotConnInfo) { p.reach("connected to %s", i.Conn.RemoteAddr()) },
		WroteRequest: func(i httptrace.WroteRequestInfo) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.step += ", asked"
		},
	})
}

// raw asks over TCP or UDP: one line or datagram with the facts comes back.
func (p plan) raw(d *net.Dialer) result {
	if p.url.Scheme == "udp" && p.ports != nil {
		d = &net.Dialer{Timeout: d.Timeout, LocalAddr: &net.UDPAddr{Port: p.ports.take()}}
	}
	c, err := d.Dial(p.url.Scheme+p.network, p.url.Host)
	if err != nil {
		return result{err: err}
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(p.timeout))
	if p.url.Scheme == "udp" {
		if _, err := c.Write([]byte("ping\n")); err != nil {
			return result{err: err}
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return result{err: err}
	}
	r := result{body: []byte(line)}
	for word := range strings.FieldsSeq(line) {
		switch k, v, _ := strings.Cut(word, "="); k {
		case "pod":
			r.pod = v
		case "node":
			r.node = v
		case "client":
			r.client = v
		}
	}
	return r
}

type summary struct {
	sent, failed int
	took         []time.Duration
	pods, errors map[string]int
}

func (s *summary) add(r result) {
	s.sent++
	if r.err != nil {
		s.failed++
		s.errors[r.err.Error()]++
		return
	}
	s.took = append(s.took, r.took)
	s.pods[r.pod]++
}

func (s *summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sent %d, answered %d, failed %d", s.sent, s.sent-s.failed, s.failed)
	if len(s.took) > 0 {
		slices.Sort(s.took)
		at := func(q float64) time.Duration { return s.took[int(q*float64(len(s.took)-1))].Round(time.Microsecond) }
		fmt.Fprintf(&b, "; p50 %s, p99 %s, longest %s", at(0.5), at(0.99), at(1))
	}
	b.WriteByte('\n')
	for _, pod := range slices.Sorted(maps.Keys(s.pods)) {
		fmt.Fprintf(&b, "  %6d answered by %s\n", s.pods[pod], pod)
	}
	for _, e := range slices.Sorted(maps.Keys(s.errors)) {
		fmt.Fprintf(&b, "  %6d failed: %s\n", s.errors[e], e)
	}
	return b.String()
}

// fetchJSON reads one URL's JSON answer.
func fetchJSON(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true // the next call may reach another endpoint
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return fmt.Errorf("status %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
