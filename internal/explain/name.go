// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/dnszone"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
	"github.com/weft-net/weft/internal/service"
)

// name resolves the destination's name from the source's point of view.
func (q *question) name() error {
	ns := ""
	if p := q.sourcePod(); p != nil {
		ns = p.Namespace
		if !p.HostNetwork {
			q.resolver(p, Blocked)
		}
	}
	r, ok := q.w.resolve(q.to.DNSName, ns)
	// What the cluster has no address for, the outside's DNS is asked for too: it is not taken to have a Service's name.
	if !ok || r.outside == r.name && len(q.w.Known[policy.NormalName(r.name)]) == 0 {
		if why := q.w.addressless(r.trail); why != "" {
			q.add(Step{Station: "name", Mark: Blocked, Text: fmt.Sprintf("%s does not resolve: %s", q.to.DNSName, why), Details: trail(r.trail)})
			return nil
		}
	}
	if !ok {
		step := Step{Station: "name", Mark: Blocked, Text: fmt.Sprintf("%s does not exist: there is no such name in the cluster", q.to.DNSName), Details: trail(r.trail)}
		if hint := q.w.meant(q.to.DNSName, ns); hint != "" {
			step.Text += "; " + hint
		}
		q.add(step)
		return nil
	}
	s := q.w.serviceOf(r.name)
	step := Step{Station: "name", Mark: OK, Details: trail(r.trail)}
	if s != nil {
		step.Object = "Service " + s.Name.String()
	}
	if r.outside != "" {
		q.names = []string{policy.NormalName(r.name)}
		if r.outside != r.name {
			q.names = append(q.names, policy.NormalName(r.outside))
		}
		q.to.Service = nil
	}
	switch {
	case r.outside == r.name:
		step.Mark, step.Text = Note, fmt.Sprintf("%s is no name of the cluster: its address is %s", r.name, q.w.addressText(r.name))
		if hint := q.w.meantNamespace(r.name); hint != "" {
			step.Mark, step.Text = Warn, step.Text+"; "+hint
		}
	case r.outside != "":
		step.Text = fmt.Sprintf("%s is an alias (ExternalName) of %s, outside the cluster, whose address is %s", r.name, r.outside, q.w.addressText(r.outside))
	default:
		step.Text = fmt.Sprintf("%s is %s", r.name, joinAddrs(r.addrs))
		switch {
		case s != nil && !s.Headless:
			q.to.Service = s
		case s != nil && strings.HasPrefix(r.name, s.Name.Name+"."+s.Namespace+".svc."):
			q.to.Service = s
			step.Text += " (headless: the endpoints themselves)"
		default: // one endpoint of a headless Service, or a pod's name
			q.to.Service, q.to.Pods, q.addrs = nil, q.podsAt(r.addrs), r.addrs
			if len(q.to.Pods) == 0 {
				q.to.Addr = r.addrs[0]
			}
		}
	}
	q.add(step)
	return nil
}

// addressless says why the Service that one of some names is about gives it no address; "" if they are about none. Only
// headless Services have names below their own.
func (w *World) addressless(names []string) string {
	for _, n := range names {
		if s := w.serviceOf(n); s != nil && (s.Headless || strings.HasPrefix(n, s.Name.Name+"."+s.Namespace+".svc.")) {
			var q dnszone.Question
			if q.SetName(n) != nil {
				continue
			}
			q.Type = dns.TypeA
			return w.zone.Explain(&q).Reason
		}
	}
	return ""
}

// addressText says where a name beyond the cluster leads to.
func (w *World) addressText(name string) string {
	if addrs := w.Known[policy.NormalName(name)]; len(addrs) > 0 {
		return joinAddrs(addrs) + w.KnownBy
	}
	return "whatever the outside's DNS says"
}

// meant proposes which name of the cluster was meant by one that does not exist, as it is written in a namespace.
func (w *World) meant(name, namespace string) string {
	first, rest, dotted := strings.Cut(strings.TrimSuffix(name, "."), ".")
	space, _, _ := strings.Cut(rest, ".")
	if !dotted {
		space = namespace
	}
	var found, elsewhere []string
	for _, n := range sortedNames(w.all.Services) {
		switch {
		case n.Namespace == space && near(n.Name, first):
			if n.Namespace == namespace {
				found = append(found, "svc/"+n.Name)
			} else {
				found = append(found, "svc/"+n.String())
			}
		case n.Name == first:
			elsewhere = append(elsewhere, n.Name+"."+n.Namespace)
		}
	}
	if found = append(found, elsewhere...); len(found) == 0 {
		return ""
	}
	return "did you mean " + strings.Join(found[:min(3, len(found))], ", ") + "?"
}

// meantNamespace warns of a name that looks like SERVICE.NAMESPACE of a namespace that there is.
func (w *World) meantNamespace(name string) string {
	parts := strings.Split(strings.TrimSuffix(name, "."), ".")
	if len(parts) != 2 || w.all.Namespaces[parts[1]] == nil {
		return ""
	}
	hint := fmt.Sprintf("namespace %s has no Service %s", parts[1], parts[0])
	if m := w.meant(name, ""); m != "" {
		hint += "; " + m
	}
	return hint
}

// near tells whether names differ by a slip: one or two letters, or one is how the other begins.
func near(a, b string) bool {
	if min(len(a), len(b)) >= 2 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
		return true
	}
	return distance(a, b) <= min(2, (max(len(a), len(b))-1)/2)
}

// distance is how many letters have to be added, taken out, changed or swapped with the next to make one word of another.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		for j := range d[i] {
			if i == 0 || j == 0 {
				d[i][j] = i + j
				continue
			}
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

func (q *question) podsAt(addrs []netip.Addr) []*model.Pod {
	var out []*model.Pod
	for _, a := range addrs {
		if p := q.w.Policy.EndpointOf(a).Pod; p != nil && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func trail(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, n+" does not exist")
	}
	return out
}

// resolver checks that the source may ask the cluster's DNS at all, at each of the endpoints that its queries may go
// to. mark is how bad it is if it may not.
func (q *question) resolver(p *model.Pod, mark Mark) {
	dns := q.w.ClusterDNS()
	if dns == nil {
		return
	}
	for _, proto := range []model.Protocol{model.UDP, model.TCP} {
		for _, e := range q.w.resolvers(dns, p, proto) {
			src, ok := endOf(q.w.podEndpoints(p), e.Addr())
			if !ok {
				continue
			}
			f := &policy.Flow{Src: src, Dst: q.w.Policy.EndpointOf(e.Addr()), Protocol: proto, Port: e.Port()}
			v := q.w.Policy.Evaluate(f)
			if v.Allowed {
				continue
			}
			s := Step{Station: "dns", Mark: mark}
			if proto == model.TCP { // queries go over UDP first
				s.Mark = Warn
			}
			var whys, by []string
			for _, side := range []*policy.Side{&v.Egress, &v.Ingress} {
				if side.Allowed {
					continue
				}
				by, whys = append(by, deciders(side)), append(whys, side.Why)
				if r := q.w.Policy.Remedy(side, f); r != nil {
					s.Details = append(s.Details, fixText(r))
					if s.Mark == Blocked {
						q.fix(r)
					}
				}
			}
			s.Object = strings.Join(by, ", ")
			s.Text = fmt.Sprintf("it can't ask the cluster's DNS (%s, %s %d): %s", dns.Name, proto, e.Port(), strings.Join(whys, "; "))
			if mark == Warn {
				s.Text += "; whoever uses the Service's name does not get there"
			}
			q.a.Steps = append(q.a.Steps, s)
			q.nowhere = q.nowhere || s.Mark == Blocked
			return
		}
	}
}

// resolvers are the endpoints that a pod's queries to the cluster's DNS go to.
func (w *World) resolvers(dns *model.Service, p *model.Pod, proto model.Protocol) []netip.AddrPort {
	var out []netip.AddrPort
	for _, sp := range dns.Ports {
		if sp.Protocol != proto || sp.Port != 53 {
			continue
		}
		for _, a := range dns.ClusterIPs {
			if r := w.table(p.Node).Rule(service.Frontend{Addr: a.Unmap(), Protocol: proto, Port: sp.Port}); r != nil {
				out = append(out, r.Main.Endpoints...)
			}
		}
	}
	return out
}

// endOf is the end of a family.
func endOf(ends []policy.Endpoint, like netip.Addr) (policy.Endpoint, bool) {
	i := slices.IndexFunc(ends, func(e policy.Endpoint) bool { return !e.Addr.IsValid() || family(e.Addr) == family(like) })
	if i < 0 {
		return policy.Endpoint{}, false
	}
	return ends[i], true
}

// ClusterDNS is the Service that pods' resolv.conf leads to; nil if it is not known. Anybody may put its label on a
// Service: one of kube-system comes before all others.
func (w *World) ClusterDNS() *model.Service {
	var found *model.Service
	for _, n := range sortedNames(w.all.Services) {
		s, home := w.all.Services[n], n.Namespace == "kube-system"
		ours := s.Labels["app.kubernetes.io/name"] == "weft" && s.Labels["app.kubernetes.io/component"] == "dns"
		if !ours && s.Labels["k8s-app"] != "kube-dns" && !(home && n.Name == "kube-dns") {
			continue
		}
		if home {
			return s
		}
		if found == nil {
			found = s
		}
	}
	return found
}
