// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// ServiceEvents is the Part that tells the owners of Services, EndpointSlices and policies what can't be used of them.
// Every node finds the same; one speaks for all. It decides nothing: it asks package service what nodes ask it, for a
// node that has no endpoints. What can't even be read of an object, its Watcher reports, for the kinds that it follows.
type ServiceEvents struct {
	table  *service.Table
	record func(model.Event)
}

// NewServiceEvents returns the Part's Role.
func NewServiceEvents(record func(model.Event)) *Role {
	kinds := kube.Services | kube.EndpointSlices | kube.NetworkPolicies | kube.ClusterNetworkPolicies | kube.ServiceCIDRs
	return &Role{Kinds: kinds, Begin: func(prometheus.Registerer) (Part, error) {
		return &ServiceEvents{table: service.NewTable(""), record: record}, nil
	}}
}

// Name implements Part.
func (*ServiceEvents) Name() string { return "service-events" }

// Update implements Part.
func (p *ServiceEvents) Update(d *model.Delta) {
	for _, e := range p.table.Update(d) {
		p.record(e)
	}
	p.table.Done()
}

// Run implements Part.
func (*ServiceEvents) Run(ctx context.Context) { <-ctx.Done() }
