// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
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

// NewPuller returns a puller that reaches registries from the network that it runs in, or through the proxy that the
// environment names (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
func NewPuller(s *Store) *Puller {
	d := &net.Dialer{Timeout: connectTimeout}
	return &Puller{
		store: s,
		transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext,
			TLSHandshakeTimeout: connectTimeout, ResponseHeaderTimeout: 60 * time.Second, ForceAttemptHTTP2: true,
		},
		running: map[string]chan struct{}{},
	}
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
	return p.store.unpack(want.String(), Pulled, img, want.Digest)
}
