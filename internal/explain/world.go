// SPDX-License-Identifier: Apache-2.0

// Package explain answers "where does this packet go, and why": it walks a connection from its source to its
// destination through name, Service, policies and route, with the same functions that the node's agent runs, and says
// at each step what decides. It is pure: model in, values out. It imports model, policy, service, route and dnszone,
// and the DNS library to read what a zone answers.
package explain

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/service"
)

// Workload names a Deployment or another object that makes pods. Kind is in lower case, as "deployment".
type Workload struct {
	Kind string
	model.Name
}

// World is a cluster as explanations see it. It is not safe for concurrent use.
type World struct {
	Policy    *policy.Cluster
	Workloads map[Workload][]model.Name // the pods of each
	Fronts    []Front                   // gateways; URLs lead to them

	// Known are the addresses of names beyond the cluster, by the names as policy.NormalName spells them; KnownBy says,
	// behind them, who told.
	Known   map[string][]netip.Addr
	KnownBy string

	all      *model.Delta
	zone     *dnszone.Zone
	tables   map[string]*service.Table // by the node that they decide for
	podCIDRs []netip.Prefix
}

// Options are what a Delta does not tell of a cluster.
type Options struct {
	ClusterDomain string // "" is cluster.local
}

// NewWorld makes a World of a Delta that holds everything.
func NewWorld(all *model.Delta, o Options) (*World, error) {
	z, err := dnszone.New(dnszone.Options{Domain: o.ClusterDomain})
	if err != nil {
		return nil, fmt.Errorf("make the cluster's zone: %w", err)
	}
	complete := *all
	complete.Complete = true
	z.Update(&complete)
	w := &World{Policy: policy.NewCluster(), Workloads: map[Workload][]model.Name{}, all: all, zone: z, tables: map[string]*service.Table{}}
	w.Policy.Apply(all)
	for _, n := range all.Nodes {
		w.podCIDRs = append(w.podCIDRs, n.PodCIDRs...)
	}
	return w, nil
}

// table is the Services as one node forwards them.
func (w *World) table(node string) *service.Table {
	t := w.tables[node]
	if t == nil {
		t = service.NewTable(node)
		t.Update(w.all)
		w.tables[node] = t
	}
	return t
}

// lookup asks the cluster's zone for a name's records of a type; ok is false for a name that is not the cluster's.
func (w *World) lookup(name string, qtype uint16) (m *dns.Msg, ok bool) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	wire, err := q.Pack()
	if err != nil {
		return nil, false
	}
	var question dnszone.Question
	if err := question.SetName(name); err != nil {
		return nil, false
	}
	question.Type = qtype
	wire, res := w.zone.Append(wire, &question, 1<<16-1, 0)
	if res.Verdict == dnszone.NotMine {
		return nil, false
	}
	for i, n := range []uint16{res.Answer, res.Authority, res.Additional} {
		wire[6+2*i], wire[7+2*i] = byte(n>>8), byte(n)
	}
	wire[3] |= res.Rcode & 15
	m = new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return nil, false
	}
	return m, true
}

// resolved is what a name came to.
type resolved struct {
	name    string // the name that had an answer, with the search suffix that made it
	addrs   []netip.Addr
	outside string // a name beyond the cluster that it leads to
	trail   []string
}

// resolve looks a name up the way a pod of a namespace does: with the search suffixes that kubelet writes to its
// resolv.conf (ndots:5), in order, and then as it is.
func (w *World) resolve(name, namespace string) (resolved, bool) {
	candidates := []string{}
	absolute := strings.HasSuffix(name, ".")
	name = strings.TrimSuffix(name, ".")
	if !absolute && strings.Count(name, ".") < 5 && namespace != "" {
		for _, suffix := range []string{namespace + ".svc." + w.zone.Domain(), "svc." + w.zone.Domain(), w.zone.Domain()} {
			candidates = append(candidates, name+"."+suffix)
		}
	}
	candidates = append(candidates, name)
	var out resolved
	for _, c := range candidates {
		mine := false
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m, ok := w.lookup(c, qtype)
			mine = mine || ok
			if !ok || m.Rcode != dns.RcodeSuccess {
				continue
			}
			for _, rr := range m.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					if a, ok := netip.AddrFromSlice(rr.A.To4()); ok {
						out.addrs = append(out.addrs, a)
					}
				case *dns.AAAA:
					if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
						out.addrs = append(out.addrs, a)
					}
				case *dns.CNAME:
					out.outside = strings.TrimSuffix(rr.Target, ".")
				}
			}
		}
		switch {
		case len(out.addrs) > 0:
			out.name, out.outside = c, ""
			return out, true
		case out.outside != "":
			out.name = c
			return out, true
		case !mine && beyond(c):
			out.name, out.outside = c, c
			return out, true
		}
		out.trail = append(out.trail, c)
	}
	return out, false
}

// beyond tells whether the outside's DNS may have a name: not one of a single label, nor one that ends as names within
// a cluster do, of which there is no top-level domain.
func beyond(name string) bool {
	return strings.Contains(name, ".") && !strings.HasSuffix(name, ".svc")
}

// Beyond gives the names beyond the cluster that a name, as a pod of a namespace looks it up, leads to; none if it is
// the cluster's own, or does not exist.
func (w *World) Beyond(t *Target, namespace string) []string {
	var out []string
	if s := t.Service; s != nil && s.Type == model.ExternalName {
		return append(out, policy.NormalName(s.ExternalName))
	}
	if t.DNSName == "" || t.Service != nil {
		return nil
	}
	if r, ok := w.resolve(t.DNSName, namespace); ok && r.outside != "" {
		return append(out, policy.NormalName(r.outside))
	}
	return nil
}

// serviceOf finds the Service that a cluster name is about.
func (w *World) serviceOf(name string) *model.Service {
	rest, ok := strings.CutSuffix(name, ".svc."+w.zone.Domain())
	if !ok {
		return nil
	}
	labels := strings.Split(rest, ".")
	if len(labels) < 2 {
		return nil
	}
	return w.all.Services[model.Name{Namespace: labels[len(labels)-1], Name: labels[len(labels)-2]}]
}

// serviceAt finds the Service that has an address as a frontend of its own.
func (w *World) serviceAt(a netip.Addr) *model.Service {
	for _, n := range sortedNames(w.all.Services) {
		s := w.all.Services[n]
		if slices.Contains(s.ClusterIPs, a) || slices.Contains(s.ExternalIPs, a) ||
			slices.ContainsFunc(s.Ingress, func(i model.LoadBalancerIngress) bool { return i.IP == a && !i.Proxy }) {
			return s
		}
	}
	return nil
}

// inCluster tells whether an address is a pod's or a node's, which traffic reaches under the pod's own address.
func (w *World) inCluster(e policy.Endpoint) bool {
	return e.Pod != nil || e.Node != "" || slices.ContainsFunc(w.podCIDRs, func(p netip.Prefix) bool { return p.Contains(e.Addr) })
}

// nobody says why nobody is at an address of the cluster's own ranges; "" where somebody is, or of any other address.
func (w *World) nobody(e policy.Endpoint) string {
	if e.Pod != nil || e.Node != "" || e.Block.IsValid() || !e.Addr.IsValid() {
		return ""
	}
	for _, n := range slices.Sorted(maps.Keys(w.all.ServiceCIDRs)) {
		if holds(w.all.ServiceCIDRs[n].CIDRs, e.Addr) {
			return fmt.Sprintf("no Service has cluster IP %s (of ServiceCIDR %s): what is sent to it is dropped", e.Addr, n)
		}
	}
	for _, p := range w.all.Pods {
		if !p.Finished && slices.Contains(p.IPs, e.Addr) {
			return "" // several claim it
		}
	}
	for _, n := range w.Policy.Nodes() {
		for _, c := range n.PodCIDRs {
			if c.Contains(e.Addr) {
				return fmt.Sprintf("no pod has %s, an address of node %s's podCIDR %s: nobody is there", e.Addr, n.Name.Name, c)
			}
		}
	}
	return ""
}

func sortedNames[T any](m map[model.Name]*T) []model.Name {
	out := make([]model.Name, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	slices.SortFunc(out, model.Name.Compare)
	return out
}
