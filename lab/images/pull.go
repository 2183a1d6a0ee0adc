// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

// Auth is what a registry may ask for; the zero value is an anonymous pull.
type Auth struct {
	Username, Password, IdentityToken, RegistryToken string
}

// Puller pulls images from registries into a store.
type Puller struct {
	store     *Store
	transport http.RoundTripper

	mu      sync.Mutex
	running map[string]chan struct{} // pulls under way, by reference
}

// connectTimeout bounds the connection to a registry, so that a lab without an internet says so quickly.
const connectTimeout = 8 * time.Second

// NewPuller returns a puller that reaches registries from the network namespace at netNS, with the name servers of
// resolvConf; "" for both is the caller's own network.
func NewPuller(s *Store, netNS, resolvConf string) *Puller {
	d := &net.Dialer{Timeout: connectTimeout}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext,
		TLSHandshakeTimeout: connectTimeout, ResponseHeaderTimeout: 60 * time.Second, ForceAttemptHTTP2: true,
	}
	if netNS != "" {
		in := &namespaceDialer{netNS: netNS, resolvConf: resolvConf}
		t.DialContext = in.DialContext
	}
	return &Puller{store: s, transport: t, running: map[string]chan struct{}{}}
}

// Pull returns what ref means: what is loaded or shipped, or else what its registry has. The error of an image that
// can't be had says how to load it.
func (p *Puller) Pull(ctx context.Context, ref string, auth Auth) (Entry, error) {
	e, ok, err := p.store.Find(ref)
	if err != nil {
		return e, err
	}
	if ok && e.Origin != Pulled {
		return e, nil
	}
	if _, isID := imageID(ref); isID {
		if ok {
			return e, nil
		}
		return e, fmt.Errorf("image %s is not in this lab", ref)
	}
	// Several nodes and pods want the same image at once; one pull serves those of this process.
	done := p.begin(ctx, ref)
	if done == nil {
		return e, ctx.Err()
	}
	defer done()
	want, err := Parse(ref)
	if err != nil {
		return e, err
	}
	img, err := p.fetch(ctx, ref, want, auth)
	if err != nil {
		return e, fmt.Errorf("image %s is not in this lab and can't be pulled: %w. "+
			"Load it: weft lab load %s --binary PATH (a static program), --rootfs DIR or --oci FILE", want, err, want)
	}
	return Entry{Pattern: want.String(), Origin: Pulled, Image: img}, nil
}

func (p *Puller) begin(ctx context.Context, ref string) (done func()) {
	for {
		p.mu.Lock()
		other := p.running[ref]
		if other == nil {
			mine := make(chan struct{})
			p.running[ref] = mine
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.running, ref)
				p.mu.Unlock()
				close(mine)
			}
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Puller) fetch(ctx context.Context, ref string, want Reference, auth Auth) (Image, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	img, err := remote.Image(parsed,
		remote.WithContext(ctx),
		remote.WithTransport(p.transport),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithAuth(authn.FromConfig(authn.AuthConfig{
			Username: auth.Username, Password: auth.Password,
			IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
		})),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Steps: 2}),
	)
	if err != nil {
		return Image{}, err
	}
	got, err := p.store.unpack(img)
	if err != nil {
		return Image{}, err
	}
	if want.Digest != "" {
		got.Digest = want.Digest // of the index, where the reference names one
	}
	return got, p.store.register(want.String(), Pulled, got)
}

// namespaceDialer dials from inside another network namespace: a socket stays in the namespace of the thread that
// made it.
type namespaceDialer struct{ netNS, resolvConf string }

func (d *namespaceDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs := []string{host}
	if net.ParseIP(host) == nil {
		r := &net.Resolver{PreferGo: true, Dial: d.dialNameServer}
		if addrs, err = r.LookupHost(ctx, host); err != nil {
			return nil, err
		}
	}
	for _, a := range addrs {
		var c net.Conn
		if c, err = d.dial(ctx, network, net.JoinHostPort(a, port)); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// dialNameServer ignores the address, which comes from this process's own resolv.conf.
func (d *namespaceDialer) dialNameServer(ctx context.Context, network, _ string) (net.Conn, error) {
	text, err := os.ReadFile(d.resolvConf)
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			return d.dial(ctx, network, net.JoinHostPort(f[1], "53"))
		}
	}
	return nil, fmt.Errorf("%s names no name server", d.resolvConf)
}

// dial connects to an IP address and port.
func (d *namespaceDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open(d.netNS)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("join network namespace %s: %w", d.netNS, err)}
			return
		}
		c, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, address)
		done <- result{c, err}
	}()
	r := <-done
	return r.conn, r.err
}
