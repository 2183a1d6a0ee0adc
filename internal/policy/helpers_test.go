// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// labels reads "a=1,b=2".
func labels(s string) map[string]string {
	out := map[string]string{}
	for _, kv := range strings.Split(s, ",") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return out
}

func sel(s string) *model.Selector {
	m := model.MatchLabels(labels(s))
	return &m
}

// named reads "ns/name".
func named(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

// pod is a pod of node n1 with a container port http, TCP 80, unless it is changed afterwards.
func pod(name, podLabels string, addrs ...string) *model.Pod {
	p := &model.Pod{
		Meta: model.Meta{Name: named(name), UID: "uid-" + name, Labels: labels(podLabels)},
		Node: "n1", Ports: []model.ContainerPort{{Name: "http", Protocol: model.TCP, Port: 80}},
	}
	for _, a := range addrs {
		p.IPs = append(p.IPs, netip.MustParseAddr(a))
	}
	return p
}

func namespace(name, nsLabels string) *model.Namespace {
	return &model.Namespace{Meta: model.Meta{Name: model.Name{Name: name}, Labels: labels(nsLabels)}}
}

// delta gathers objects of any kind.
func delta(objects ...any) *model.Delta {
	d := &model.Delta{
		Complete: true, Pods: map[model.Name]*model.Pod{}, Nodes: map[string]*model.Node{},
		Namespaces: map[string]*model.Namespace{}, NetworkPolicies: map[model.Name]*model.NetworkPolicy{},
		ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{},
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *model.Pod:
			d.Pods[o.Name] = o
		case *model.Node:
			d.Nodes[o.Name.Name] = o
		case *model.Namespace:
			d.Namespaces[o.Name.Name] = o
		case *model.NetworkPolicy:
			d.NetworkPolicies[o.Name] = o
		case *model.ClusterNetworkPolicy:
			d.ClusterNetworkPolicies[o.Name.Name] = o
		default:
			panic(fmt.Sprintf("delta: %T", o))
		}
	}
	return d
}

// pass runs a packet through a Program the way a kernel has to.
func (p *Program) pass(src, dst netip.Addr, proto model.Protocol, port uint16) bool {
	if src == dst {
		return true // never leaves the pod, or is exempt by its own rule
	}
	k := packet{p, src, dst, proto, port}
	if c := p.Pods[src].Egress; c != "" && k.run(c) != Admit {
		return false
	}
	if c := p.Pods[dst].Ingress; c != "" && k.run(c) != Admit {
		return false
	}
	return true
}

type packet struct {
	p        *Program
	src, dst netip.Addr
	proto    model.Protocol
	port     uint16
}

// run gives Admit, Drop, or Return when the chain had nothing to say.
func (k *packet) run(name string) Op {
	c := k.p.Chains[name]
	peer := k.src
	if c.Direction == Egress {
		peer = k.dst
	}
	for _, r := range c.Rules {
		if r.Peer != "" && !k.p.Sets[r.Peer].holdsAddr(peer) {
			continue
		}
		if r.Ports != "" && k.p.Sets[r.Ports].port(k.proto, k.port) == nil {
			continue
		}
		if r.Named != "" {
			if _, ok := k.p.Sets[r.Named].Members[Member{k.dst, k.proto, k.port}]; !ok {
				continue
			}
		}
		switch r.Op {
		case Admit, Drop, Return:
			return r.Op
		case Goto:
			return k.run(r.Target)
		case Jump:
			if op := k.run(r.Target); op != Return {
				return op
			}
		case Lookup:
			if e := k.p.Sets[r.Target].port(k.proto, k.port); e != nil {
				if e.Target == "" {
					return Admit
				}
				if op := k.run(e.Target); op != Return {
					return op
				}
			}
		}
	}
	return Return
}

func (s *Set) holdsAddr(a netip.Addr) bool {
	if s.Kind == Nets {
		return slices.ContainsFunc(s.Ranges, func(r Range) bool { return r.Contains(a) })
	}
	_, ok := s.Members[Member{Addr: a}]
	return ok
}

func (s *Set) port(proto model.Protocol, port uint16) *PortRange {
	var hit *PortRange
	for i, r := range s.Ports {
		if r.Protocol == proto && r.From <= port && port <= r.To {
			if hit != nil {
				panic("overlapping ports in " + s.Name)
			}
			hit = &s.Ports[i]
		}
	}
	return hit
}
