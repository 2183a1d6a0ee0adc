// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// IngressGateway is the name by which the gateway of all Ingresses asks for its configuration.
const IngressGateway = "ingress"

// IngressOptions say how Ingresses are served.
type IngressOptions struct {
	ingress.Options
	Server *configsync.Server
	// Service in front of the gateway's pods: its addresses are what Ingresses show. Without any (NodePort, host network)
	// it is those of the nodes that its pods run on.
	Service model.Name
	// Addresses are shown in place of the Service's.
	Addresses []string
}

// Ingresses is the Part that serves Ingresses: package ingress decides, this publishes the gateway's tables, and writes
// Ingresses' addresses and Events.
type Ingresses struct {
	opts    IngressOptions
	client  kubernetes.Interface
	record  func(model.Event)
	log     *slog.Logger
	queue   *outbox[model.Name]
	metrics *ingressMetrics
	state   *ingress.State // Update's

	// Where the gateway is.
	service *model.Service
	slices  map[model.Name]*model.EndpointSlice // of the Service
	nodes   map[string]*model.Node
	shown   []model.IngressAddress

	mu   sync.Mutex
	want map[model.Name]ingress.Status
}

// NewIngresses returns the Part's Role.
func NewIngresses(api *rest.Config, opts IngressOptions, record func(model.Event), log *slog.Logger) *Role {
	kinds := kube.Ingresses | kube.IngressClasses | kube.Services | kube.EndpointSlices | kube.Secrets | kube.ConfigMaps | kube.Nodes
	return &Role{Kinds: kinds, Begin: func(reg prometheus.Registerer) (Part, error) {
		client, err := kubernetes.NewForConfig(api)
		if err != nil {
			return nil, fmt.Errorf("API client: %w", err)
		}
		if opts.Fallback == nil {
			if opts.Fallback, err = fallbackCertificate(); err != nil {
				return nil, err
			}
		}
		p := &Ingresses{
			opts: opts, client: client, record: record, log: log, metrics: newIngressMetrics(),
			state:  ingress.New(opts.Options),
			slices: make(map[model.Name]*model.EndpointSlice),
			nodes:  make(map[string]*model.Node),
			want:   make(map[model.Name]ingress.Status),
		}
		p.queue = newOutbox(p.writeStatus, func(_ model.Name, err error) bool { return apierrors.IsNotFound(err) }, p.failed)
		return p, reg.Register(p.metrics)
	}}
}

// Name implements Part.
func (*Ingresses) Name() string { return "ingresses" }

// Update implements Part.
func (p *Ingresses) Update(d *model.Delta) {
	moved := p.moved(d)
	out := p.state.Apply(&ingress.Changes{
		Ingresses: d.Ingresses, Classes: d.IngressClasses, Services: d.Services, EndpointSlices: d.EndpointSlices,
		Secrets: d.Secrets, ConfigMaps: d.ConfigMaps, Addresses: moved, Unreachable: new(p.unreachable()),
	})
	if out.Update != nil {
		p.opts.Server.Publish(IngressGateway, out.Update)
	}
	p.mu.Lock()
	for name := range d.Ingresses {
		delete(p.want, name) // as it is now, or said below
	}
	for _, s := range out.Statuses {
		p.want[s.Name] = s
	}
	p.mu.Unlock()
	for _, s := range out.Statuses {
		p.queue.Add(s.Name)
	}
	for _, e := range out.Events {
		p.record(e)
		if e.Warning {
			p.metrics.problems.WithLabelValues(e.Reason).Inc()
		}
	}
	p.metrics.observe(p.state)
}

// moved tells where the gateway can be reached when that is not what it was; nil else. Until it is known for the first
// time, Ingresses show what they did.
func (p *Ingresses) moved(d *model.Delta) *[]model.IngressAddress {
	if s, ok := d.Services[p.opts.Service]; ok {
		p.service = s
	}
	for name, s := range d.EndpointSlices {
		if old := p.slices[name]; old != nil {
			delete(p.slices, name)
		}
		if s != nil && name.Namespace == p.opts.Service.Namespace && s.Service == p.opts.Service.Name {
			p.slices[name] = s
		}
	}
	for name, n := range d.Nodes {
		if n == nil {
			delete(p.nodes, name)
		} else {
			p.nodes[name] = n
		}
	}
	now := p.addresses()
	if slices.Equal(now, p.shown) {
		return nil
	}
	p.shown = now
	return &now
}

// unreachable is why the gateway has no address: what weft says of its Service, if that is to have one from weft.
func (p *Ingresses) unreachable() string {
	s := p.service
	if len(p.shown) > 0 || s == nil || s.Type != model.LoadBalancer || s.AddressCondition == nil || s.AddressCondition.Status {
		return ""
	}
	return fmt.Sprintf("Ingresses are reached at Service %s, which has no address: %s", p.opts.Service, s.AddressCondition.Message)
}

// addresses are where clients reach the gateway, sorted.
func (p *Ingresses) addresses() (out []model.IngressAddress) {
	for _, a := range p.opts.Addresses {
		if _, err := netip.ParseAddr(a); err == nil {
			out = append(out, model.IngressAddress{IP: a})
		} else {
			out = append(out, model.IngressAddress{Hostname: a})
		}
	}
	s := p.service
	switch {
	case len(out) > 0 || s == nil:
		return out
	case s.Type == model.LoadBalancer:
		for _, a := range s.Ingress {
			if a.IP.IsValid() {
				out = append(out, model.IngressAddress{IP: a.IP.String()})
			} else if a.Hostname != "" {
				out = append(out, model.IngressAddress{Hostname: a.Hostname})
			}
		}
	default:
		for _, slice := range p.slices {
			for i := range slice.Endpoints {
				if e := &slice.Endpoints[i]; e.Ready && p.nodes[e.Node] != nil {
					for _, a := range nodeAddresses(p.nodes[e.Node]) {
						out = append(out, model.IngressAddress{IP: a})
					}
				}
			}
		}
	}
	for _, a := range s.ExternalIPs {
		out = append(out, model.IngressAddress{IP: a.String()})
	}
	slices.SortFunc(out, func(a, b model.IngressAddress) int {
		return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.Hostname, b.Hostname))
	})
	return slices.Compact(out)
}

// Run implements Part.
func (p *Ingresses) Run(ctx context.Context) {
	end := p.queue.start(ctx)
	<-ctx.Done()
	end()
}

func (p *Ingresses) failed(name model.Name, failures int, err error) {
	p.metrics.failed.Inc()
	p.log.Error("can't write; trying again", "kind", "Ingress", "name", name, "failures", failures, "err", err)
}

// writeStatus sets an Ingress's addresses. The patch names its uid, so that it can't hit one made anew under the name.
func (p *Ingresses) writeStatus(ctx context.Context, name model.Name) error {
	p.mu.Lock()
	s, ok := p.want[name]
	p.mu.Unlock()
	if !ok {
		return nil
	}
	list := []networkingv1.IngressLoadBalancerIngress{}
	for _, a := range s.Addresses {
		list = append(list, networkingv1.IngressLoadBalancerIngress{IP: a.IP, Hostname: a.Hostname})
	}
	data := encode(map[string]any{
		"metadata": map[string]any{"uid": s.UID},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": list}},
	})
	_, err := p.client.NetworkingV1().Ingresses(name.Namespace).Patch(ctx, name.Name, types.MergePatchType, data,
		metav1.PatchOptions{FieldManager: fieldManager}, "status")
	if err == nil {
		p.metrics.written.Inc()
	}
	return err
}
