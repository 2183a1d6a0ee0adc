// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// authoritySecret holds the authority of the configuration stream, in the controller's namespace.
const authoritySecret = "weft-gateway-ca"

// renewEvery is how often it is looked whether a certificate is due; they are renewed weeks before they expire.
const renewEvery = time.Hour

// Identities issues the certificates of the configuration stream's two ends. The leader alone writes its Secret.
type Identities struct {
	mu        sync.Mutex
	authority *configsync.Authority
	changed   []func()
}

// Client is configsync.Authority.Client; ok is false until the authority has been read.
func (i *Identities) Client(gateway string, data map[string][]byte, now time.Time) (out map[string][]byte, changed, ok bool, err error) {
	i.mu.Lock()
	a := i.authority
	i.mu.Unlock()
	if a == nil {
		return nil, false, false, nil
	}
	out, changed, err = a.Client(gateway, data, now)
	return out, changed, true, err
}

// onRenewal has f called whenever certificates may be due. f must not block.
func (i *Identities) onRenewal(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changed = append(i.changed, f)
}

func (i *Identities) set(a *configsync.Authority) {
	i.mu.Lock()
	i.authority = a
	all := i.changed
	i.mu.Unlock()
	for _, f := range all {
		f()
	}
}

// SyncOptions say how the configuration stream is offered.
type SyncOptions struct {
	Server     *configsync.Server
	Identities *Identities
	// Namespace of the authority's Secret.
	Namespace string
	// Listen is the address of the stream.
	Listen string
	// Clients are Secrets with the identity of gateways that no Gateway object provisions, by the gateway's name.
	Clients map[string]model.Name
}

// ConfigSync is the Part that offers the configuration stream: it keeps the authority and listens while it leads.
type ConfigSync struct {
	opts   SyncOptions
	client kubernetes.Interface
	log    *slog.Logger

	mu   sync.Mutex
	conf *tls.Config
}

// NewConfigSync returns the Part's Role. It comes before the Parts that publish: what
// was published in an earlier term is forgotten with its construction.
func NewConfigSync(api *rest.Config, opts SyncOptions, log *slog.Logger) *Role {
	return &Role{Begin: func(reg prometheus.Registerer) (Part, error) {
		client, err := kubernetes.NewForConfig(api)
		if err != nil {
			return nil, fmt.Errorf("API client: %w", err)
		}
		opts.Server.Reset()
		opts.Identities.mu.Lock()
		opts.Identities.authority, opts.Identities.changed = nil, nil
		opts.Identities.mu.Unlock()
		return &ConfigSync{opts: opts, client: client, log: log}, nil
	}}
}

// Name implements Part.
func (*ConfigSync) Name() string { return "config-sync" }

// Update implements Part.
func (*ConfigSync) Update(*model.Delta) {}

// Run implements Part.
func (p *ConfigSync) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	serving := false
	for wait := retryMin; ctx.Err() == nil; {
		next := renewEvery
		if err := p.renew(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("certificates of the configuration stream; trying again", "err", err)
			wait = min(2*wait, retryMax)
			next = wait
		} else if err == nil {
			wait = retryMin
			if !serving {
				serving = true
				running.Go(func() { p.serve(ctx) })
			}
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
		}
	}
}

// serve listens until ctx is done.
func (p *ConfigSync) serve(ctx context.Context) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.conf, nil
	}}
	for ctx.Err() == nil {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.opts.Listen)
		if err == nil {
			err = p.opts.Server.Serve(ctx, l, conf)
		}
		if ctx.Err() != nil {
			return
		}
		p.log.Error("can't offer the configuration stream; trying again", "address", p.opts.Listen, "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// renew makes or renews whatever certificate is due.
func (p *ConfigSync) renew(ctx context.Context) error {
	now := time.Now()
	var authority *configsync.Authority
	err := p.keep(ctx, model.Name{Namespace: p.opts.Namespace, Name: authoritySecret}, corev1.SecretTypeOpaque, func(data map[string][]byte) (out map[string][]byte, changed bool, err error) {
		authority, out, changed, err = configsync.LoadAuthority(data, now)
		return out, changed, err
	})
	if err != nil {
		return err
	}
	conf, err := authority.ServerConfig(now)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.conf = conf
	p.mu.Unlock()
	p.opts.Identities.set(authority)
	for gateway, secret := range p.opts.Clients {
		err := p.keep(ctx, secret, corev1.SecretTypeTLS, func(data map[string][]byte) (map[string][]byte, bool, error) {
			return authority.Client(gateway, data, now)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keep brings a Secret's data to what do makes of it.
func (p *ConfigSync) keep(ctx context.Context, name model.Name, kind corev1.SecretType, do func(map[string][]byte) (map[string][]byte, bool, error)) error {
	client := p.client.CoreV1().Secrets(name.Namespace)
	old, err := client.Get(ctx, name.Name, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return fmt.Errorf("read Secret %s: %w", name, err)
	}
	data, changed, err := do(old.Data)
	if err != nil {
		return fmt.Errorf("secret %s: %w", name, err)
	}
	switch {
	case missing:
		_, err = client.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: map[string]string{"app.kubernetes.io/name": "weft", kube.OwnedBy: kube.ManagedBy}},
			Type:       kind, Data: data,
		}, metav1.CreateOptions{FieldManager: fieldManager})
	case changed:
		next := old.DeepCopy()
		next.Data = data
		_, err = client.Update(ctx, next, metav1.UpdateOptions{FieldManager: fieldManager}) // by its resourceVersion
	}
	if err != nil {
		return fmt.Errorf("write Secret %s: %w", name, err)
	}
	return nil
}
