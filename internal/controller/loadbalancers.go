// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// LoadBalancers is the Part that gives Services of type LoadBalancer their addresses: package addresses decides, this
// writes Service statuses, finalizers and annotations, and AddressPool statuses.
type LoadBalancers struct {
	opts     addresses.Options
	services kubernetes.Interface
	pools    dynamic.Interface
	record   func(model.Event)
	log      *slog.Logger
	alloc    *addresses.Allocator // Update's
	queue    *outbox[item]
	metrics  *lbMetrics

	mu    sync.Mutex
	seen  map[model.Name]*model.Service     // the Services of want, as the API last showed them
	want  map[model.Name]addresses.Decision // Services that weft has a say in
	state map[string]addresses.PoolStatus
}

// item is an object whose writing is due.
type item struct {
	pool bool
	name model.Name
}

func (i item) kind() string {
	if i.pool {
		return "AddressPool"
	}
	return "Service"
}

// NewLoadBalancers returns the Part's Role.
func NewLoadBalancers(api *rest.Config, opts addresses.Options, record func(model.Event), log *slog.Logger) *Role {
	kinds := kube.Services | kube.Nodes | kube.Namespaces | kube.AddressPools | kube.ServiceCIDRs
	// Who has which address is in the Services: what the last leader gave away must have been seen before any is given.
	return &Role{Kinds: kinds, Current: "Service", Begin: func(reg prometheus.Registerer) (Part, error) {
		client, err := kubernetes.NewForConfig(api)
		if err != nil {
			return nil, fmt.Errorf("API client: %w", err)
		}
		dyn, err := dynamic.NewForConfig(api)
		if err != nil {
			return nil, fmt.Errorf("API client: %w", err)
		}
		p := &LoadBalancers{
			opts: opts, services: client, pools: dyn, record: record, log: log,
			alloc: addresses.New(opts),
			seen:  make(map[model.Name]*model.Service),
			want:  make(map[model.Name]addresses.Decision),
			state: make(map[string]addresses.PoolStatus),
		}
		p.queue = newOutbox(p.write, func(_ item, err error) bool { return apierrors.IsNotFound(err) }, p.failed)
		p.metrics = newLBMetrics(p)
		return p, reg.Register(p.metrics)
	}}
}

// Name implements Part.
func (*LoadBalancers) Name() string { return "load-balancers" }

// Update implements Part.
func (p *LoadBalancers) Update(d *model.Delta) {
	r := p.alloc.Apply(d)
	p.mu.Lock()
	for name, s := range d.Services {
		decision, decided := r.Services[name]
		switch {
		case s == nil:
			delete(p.seen, name)
			delete(p.want, name)
		case decided:
			p.seen[name], p.want[name] = s, decision
		default: // none of weft's business (any more)
			delete(p.seen, name)
			delete(p.want, name)
		}
	}
	for name, decision := range r.Services {
		p.want[name] = decision
	}
	for name, pool := range d.AddressPools {
		if pool == nil {
			delete(p.state, name)
		}
	}
	for name, s := range r.Pools {
		p.state[name] = s
	}
	p.mu.Unlock()
	for name := range r.Services {
		p.queue.Add(item{name: name})
	}
	for name := range r.Pools {
		p.queue.Add(item{pool: true, name: model.Name{Name: name}})
	}
	for _, e := range r.Events {
		p.record(e)
	}
}

// Run implements Part.
func (p *LoadBalancers) Run(ctx context.Context) {
	end := p.queue.start(ctx)
	<-ctx.Done()
	end()
}

func (p *LoadBalancers) write(ctx context.Context, it item) error {
	if it.pool {
		return p.writePool(ctx, it.name)
	}
	return p.writeService(ctx, it.name)
}

func (p *LoadBalancers) failed(it item, failures int, err error) {
	p.metrics.failed.WithLabelValues(it.kind()).Inc()
	p.log.Error("can't write; trying again", "kind", it.kind(), "name", it.name, "failures", failures, "err", err)
}

// writeService brings a Service to what was decided, if it is not there.
func (p *LoadBalancers) writeService(ctx context.Context, name model.Name) error {
	p.mu.Lock()
	s, d := p.seen[name], p.want[name]
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	due := patches(s, d, p.opts, time.Now())
	err := send(ctx, p.services, name, due)
	if err == nil && len(due) > 0 {
		p.metrics.written.WithLabelValues("Service").Inc()
	}
	return err
}
