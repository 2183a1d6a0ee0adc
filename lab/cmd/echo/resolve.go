// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// resolver looks names up the way that musl's getaddrinfo does (1.2.5): A and AAAA at the same moment from one socket,
// to all name servers at once, and the first good answer to each counts. Containers of Alpine Linux have it.
//
// What differs from glibc's: a name with ndots dots is never searched for; the search ends at the first suffix that
// answers anything but "no such name", be it that there is no address; SERVFAIL is asked again at once.
type resolver struct {
	servers  []netip.AddrPort
	search   []string
	ndots    int
	timeout  time.Duration
	attempts int

	asked, again int // questions sent, and those sent again
}

// errNoName is EAI_NONAME, errNoData EAI_NODATA and errAgain EAI_AGAIN.
var (
	errNoName = errors.New("name does not resolve")
	errNoData = errors.New("name has no usable address")
	errAgain  = errors.New("try again")
)

// readResolvConf takes what musl takes from resolv.conf(5).
func readResolvConf(r io.Reader) (*resolver, error) {
	out := &resolver{ndots: 1, timeout: 5 * time.Second, attempts: 2}
	in := bufio.NewScanner(r)
	for in.Scan() {
		f := strings.Fields(in.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(out.servers) < 3 {
				out.servers = append(out.servers, netip.AddrPortFrom(a, 53))
			}
		case "search", "domain":
			out.search = f[1:]
		case "options":
			for _, o := range f[1:] {
				key, value, _ := strings.Cut(o, ":")
				n, err := strconv.Atoi(value)
				if err != nil {
					continue
				}
				switch key {
				case "ndots":
					out.ndots = min(n, 15)
				case "timeout":
					out.timeout = time.Duration(min(max(n, 1), 60)) * time.Second
				case "attempts":
					out.attempts = min(max(n, 1), 10)
				}
			}
		}
	}
	return out, in.Err()
}

// lookup is getaddrinfo of a name.
func (r *resolver) lookup(name string) ([]netip.Addr, error) {
	if strings.Count(name, ".") < r.ndots && !strings.HasSuffix(name, ".") {
		for _, s := range r.search {
			if addrs, err := r.ask(name + "." + strings.TrimSuffix(s, ".") + "."); !errors.Is(err, errNoName) {
				return addrs, err
			}
		}
	}
	return r.ask(strings.TrimSuffix(name, ".") + ".")
}

// ask asks for both families of one name.
func (r *resolver) ask(name string) ([]netip.Addr, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	queries := make([][]byte, len(types))
	for i, t := range types {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(time.Now().UnixNano()) + uint16(i), RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: n, Type: t, Class: dnsmessage.ClassINET}}}
		if queries[i], err = m.Pack(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	answers, err := r.send(queries)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range answers {
		switch {
		case a == nil || a.RCode == dnsmessage.RCodeServerFailure:
			return nil, errAgain
		case a.RCode == dnsmessage.RCodeNameError:
			return nil, errNoName
		case a.RCode != dnsmessage.RCodeSuccess:
			return nil, fmt.Errorf("%s: %s", name, a.RCode)
		}
		for _, rr := range a.Answers {
			switch b := rr.Body.(type) {
			case *dnsmessage.AResource:
				out = append(out, netip.AddrFrom4(b.A))
			case *dnsmessage.AAAAResource:
				out = append(out, netip.AddrFrom16(b.AAAA))
			}
		}
	}
	if len(out) == 0 {
		return nil, errNoData
	}
	return out, nil
}

// send sends all questions from one socket to all servers, again each time that a share of the timeout is over, and
// returns the first good answer to each; nil is none.
func (r *resolver) send(queries [][]byte) ([]*dnsmessage.Message, error) {
	network := "udp4"
	if slices.ContainsFunc(r.servers, func(s netip.AddrPort) bool { return s.Addr().Is6() }) {
		network = "udp"
	}
	pc, err := net.ListenPacket(network, ":0")
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	conn := pc.(*net.UDPConn)
	answers := make([]*dnsmessage.Message, len(queries))
	failures := 2 * len(queries) // SERVFAILs that are asked again
	buf := make([]byte, 4096)
	end := time.Now().Add(r.timeout)
	for try := 0; time.Now().Before(end); try++ {
		for i, q := range queries {
			if answers[i] != nil {
				continue
			}
			if r.asked++; try > 0 {
				r.again++
			}
			for _, s := range r.servers {
				_, _ = conn.WriteToUDPAddrPort(q, s)
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(r.timeout / time.Duration(r.attempts)))
		for slices.Contains(answers, nil) {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			var m dnsmessage.Message
			if !slices.Contains(r.servers, from) || m.Unpack(buf[:n]) != nil {
				continue
			}
			i := slices.IndexFunc(queries, func(q []byte) bool { return m.ID == uint16(q[0])<<8|uint16(q[1]) })
			if i < 0 || answers[i] != nil {
				continue
			}
			switch {
			case m.RCode == dnsmessage.RCodeServerFailure && failures > 0:
				failures--
				r.again++
				_, _ = conn.WriteToUDPAddrPort(queries[i], from)
			case m.RCode != dnsmessage.RCodeSuccess && m.RCode != dnsmessage.RCodeNameError:
			case m.Truncated:
				if answers[i], err = overTCP(queries[i], from, end); err != nil {
					return nil, err
				}
			default:
				answers[i] = &m
			}
		}
		if !slices.Contains(answers, nil) {
			break
		}
	}
	return answers, nil
}

// overTCP asks once more where the answer was too long for a datagram.
func overTCP(query []byte, server netip.AddrPort, end time.Time) (*dnsmessage.Message, error) {
	c, err := net.DialTimeout("tcp", server.String(), time.Until(end))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(end)
	if _, err := c.Write(append([]byte{byte(len(query) >> 8), byte(len(query))}, query...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	body := make([]byte, int(length[0])<<8|int(length[1]))
	if _, err := io.ReadFull(c, body); err != nil {
		return nil, err
	}
	var m dnsmessage.Message
	return &m, m.Unpack(body)
}

const resolveUsage = `echo resolve [flags] NAME: look a name up as musl's getaddrinfo or Go does, and count

It prints the addresses, sorted, one a line, and then, for -n or -for, a summary:

  sent 100, answered 99, failed 1, asked again 2
`

// resolve is the subcommand.
func resolve(ctx context.Context, args []string, w io.Writer) error {
	fs := flag.NewFlagSet("resolve", flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), resolveUsage); fs.PrintDefaults() }
	count := fs.Int("n", 0, "lookups; with neither this nor -for, one")
	length := fs.Duration("for", 0, "how long to go on")
	clients := fs.Int("c", 1, "lookups at a time")
	interval := fs.Duration("interval", 0, "pause after each")
	conf := fs.String("resolv-conf", "/etc/resolv.conf", "resolv.conf(5)")
	style := fs.String("style", "musl", "whose resolver: musl, or go (which knows none of -server, -timeout and -attempts)")
	timeout := fs.Duration("timeout", 0, "of a lookup of one name, over resolv.conf's (5s)")
	attempts := fs.Int("attempts", 0, "how often a question is sent within the timeout, over resolv.conf's (2)")
	server := fs.String("server", "", "name server, in the place of those of resolv.conf; no search")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return errFailed
	}
	if fs.NArg() != 1 {
		return errors.New("resolve: want one name; see echo resolve --help")
	}
	if *style != "musl" && *style != "go" {
		return fmt.Errorf("-style %q: want musl or go", *style)
	}
	base, err := resolverFor(*conf, *server)
	if err != nil {
		return err
	}
	if *timeout > 0 {
		base.timeout = *timeout
	}
	if *attempts > 0 {
		base.attempts = *attempts
	}
	lookup := (*resolver).lookup
	if *style == "go" {
		lookup = func(_ *resolver, name string) ([]netip.Addr, error) {
			addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
			for i := range addrs {
				addrs[i] = addrs[i].Unmap()
			}
			return addrs, err
		}
	}
	if *count == 0 && *length == 0 {
		addrs, err := lookup(base, fs.Arg(0))
		if err != nil {
			return fmt.Errorf("%s: %w", fs.Arg(0), err)
		}
		printAddrs(w, addrs)
		return nil
	}
	if *length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *length)
		defer cancel()
	}
	var mu sync.Mutex
	var sent, answered, failed, again int
	var last []netip.Addr
	var wg sync.WaitGroup
	for range *clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				mu.Lock()
				if *count > 0 && sent >= *count {
					mu.Unlock()
					return
				}
				sent++
				mu.Unlock()
				r := *base
				addrs, err := lookup(&r, fs.Arg(0))
				mu.Lock()
				if again += r.again; err == nil {
					answered++
					last = addrs
				} else if failed++; failed <= 5 {
					fmt.Fprintf(w, "%s: %s: %v\n", time.Now().Format("15:04:05.000"), fs.Arg(0), err)
				}
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(*interval):
				}
			}
		})
	}
	wg.Wait()
	printAddrs(w, last)
	fmt.Fprintf(w, "sent %d, answered %d, failed %d, asked again %d\n", sent, answered, failed, again)
	if failed > 0 {
		return errFailed
	}
	return nil
}

func resolverFor(conf, server string) (*resolver, error) {
	if server != "" {
		ap, err := netip.ParseAddrPort(server)
		if err != nil {
			a, aerr := netip.ParseAddr(server)
			if aerr != nil {
				return nil, fmt.Errorf("-server %q: want an address, or address:port", server)
			}
			ap = netip.AddrPortFrom(a, 53)
		}
		return &resolver{servers: []netip.AddrPort{ap}, ndots: 1, timeout: 5 * time.Second, attempts: 2}, nil
	}
	f, err := os.Open(conf)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := readResolvConf(f)
	if err == nil && len(r.servers) == 0 {
		err = fmt.Errorf("%s names no server", conf)
	}
	return r, err
}

func printAddrs(w io.Writer, addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range addrs {
		fmt.Fprintln(w, a)
	}
}
