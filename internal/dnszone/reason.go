// SPDX-License-Identifier: Apache-2.0

package dnszone

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
)

// reason says why a name has no records of the type asked for; hints go to e.Notes.
func (z *Zone) reason(q *Question, f *finding, e *Explanation) string {
	switch f.what {
	case outside:
		return ""
	case apexName, versionName, serverName:
		return fmt.Sprintf("%s has no records of this type", q)
	case emptyName:
		return fmt.Sprintf("%s has names below it, but no records of its own", q)
	case serviceName:
		return z.noType(q, f)
	case endpointName:
		return fmt.Sprintf("that endpoint has no address of the family that %s asks for", typeNames[q.Type])
	case portName:
		return "the name of a port has SRV records only"
	case podName:
		return fmt.Sprintf("%s is of the other family", f.addr)
	case addressName:
		return "a reverse name has PTR records only"
	case reverseApex:
		return fmt.Sprintf("%s is a zone of reverse names (reverseZones) and has no records of this type", q)
	}
	n, in := q.under(z.apex, z.apexLabels)
	if r, reverse := q.reverse(); reverse && !in && !r.whole() {
		return fmt.Sprintf("%s is the reverse name of no address", q)
	}
	if !in {
		return fmt.Sprintf("nothing in the cluster has the address %s, which is in a range of its own (reverseZones)", f.addr)
	}
	switch string(q.label(n - 1)) {
	case "svc":
		return z.noService(q, n, f, e)
	case "pod":
		return z.noPod(q, n)
	}
	return fmt.Sprintf("under %s there are only svc, pod, dns-version and ns.dns: did the name miss its namespace, as in <service>.<namespace>.svc.%s?", z.o.Domain, z.o.Domain)
}

// noType explains an answer without records for a Service that is there.
func (z *Zone) noType(q *Question, f *finding) string {
	name := serviceOf(q, f)
	or := z.origins[name]
	if or == nil || or.svc == nil {
		return ""
	}
	switch q.Type {
	case typeA, typeAAAA:
		want, has := model.IPv4, model.IPv6
		if q.Type == typeAAAA {
			want, has = has, want
		}
		if len(f.svc.a)+len(f.svc.aaaa) == 0 {
			return fmt.Sprintf("Service %s has no ClusterIP yet", name)
		}
		where := "its spec.ipFamilies"
		if f.svc.kind == headless {
			where = "its ready endpoints"
		}
		return fmt.Sprintf("Service %s has addresses of %s only, none of %s: see %s", name, has, want, where)
	case typeSRV:
		return fmt.Sprintf("Service %s has no named port", name)
	}
	return fmt.Sprintf("Service %s has no records of this type", name)
}

// noService explains NXDOMAIN below svc.
func (z *Zone) noService(q *Question, n int, f *finding, e *Explanation) string {
	ns := string(q.label(n - 2))
	if z.spaces[ns] == nil {
		if n >= 3 {
			z.elsewhere(string(q.label(n-3)), "", e)
			if other := string(q.label(n - 3)); z.origins[model.Name{Namespace: other, Name: ns}] != nil {
				e.Notes = append(e.Notes, fmt.Sprintf("the other way round it exists: %s.%s.svc.%s", ns, other, z.o.Domain))
			}
		}
		return fmt.Sprintf("namespace %q does not exist%s", ns, z.similarSpace(ns))
	}
	if !z.exposed(ns) {
		return fmt.Sprintf("namespace %q is not among those that are served (namespaces in the configuration)", ns)
	}
	svc := string(q.label(n - 3))
	name := model.Name{Namespace: ns, Name: svc}
	or := z.origins[name]
	if or == nil || or.svc == nil {
		z.elsewhere(svc, ns, e)
		return fmt.Sprintf("no Service %q in namespace %q%s", svc, ns, z.similarService(name))
	}
	if f.svc == nil {
		switch {
		case or.svc.Type == model.ExternalName:
			return fmt.Sprintf("Service %s: spec.externalName %q is no name that a CNAME can point to: use a Service without selector for an address", name, or.svc.ExternalName)
		case or.svc.Headless:
			return fmt.Sprintf("Service %s is headless and has no address to give: %s", name, z.whyNoEndpoint(or))
		}
		return fmt.Sprintf("Service %s does not count without a ready endpoint (ignoreEmptyServices): %s", name, z.whyNoEndpoint(or))
	}
	if f.svc.kind == external {
		return fmt.Sprintf("Service %s is an ExternalName: there is nothing below it", name)
	}
	if label := q.label(n - 4); label[0] == '_' {
		return z.noPort(q, n, name, or, f)
	}
	if n > 4 {
		return fmt.Sprintf("a name below Service %s is <endpoint> or _<port>._<protocol>", name)
	}
	return z.noEndpoint(string(q.label(0)), name, or, f)
}

func (z *Zone) noPort(q *Question, n int, name model.Name, or *origin, f *finding) string {
	var have []string
	for _, p := range f.svc.ports {
		have = append(have, "_"+p.name+"._"+p.proto)
	}
	unnamed := slices.ContainsFunc(or.svc.Ports, func(p model.ServicePort) bool { return p.Name == "" })
	asked := FormatName(append(slices.Clone(q.name[q.off[0]:q.off[n-3]]), 0))
	switch {
	case len(have) > 0:
		return fmt.Sprintf("Service %s has no %s: it has %s", name, strings.TrimSuffix(asked, "."), list(have))
	case unnamed:
		return fmt.Sprintf("Service %s has no named port: a port without a name has no SRV record", name)
	}
	return fmt.Sprintf("Service %s has no port", name)
}

func (z *Zone) noEndpoint(label string, name model.Name, or *origin, f *finding) string {
	for _, es := range or.slices {
		for i := range es.Endpoints {
			ep := &es.Endpoints[i]
			of := endpointLabel(ep, &z.o)
			for _, a := range ep.Addresses {
				own := string(appendDashed(nil, a))
				switch {
				case of == label || (of == "" && own == label):
					return fmt.Sprintf("endpoint %q of Service %s is not ready", label, name)
				case own == label:
					return fmt.Sprintf("the endpoint at %s of Service %s has a hostname and goes by %q", a, name, of)
				}
			}
		}
	}
	var have []string
	for i := range f.svc.names() {
		if l, _, _, ok := f.svc.endpoint(i, nil); ok {
			have = append(have, string(l))
		}
	}
	if len(have) == 0 {
		return fmt.Sprintf("Service %s has no endpoint %q: %s", name, label, z.whyNoEndpoint(or))
	}
	return fmt.Sprintf("Service %s has no endpoint %q: it has %s", name, label, list(have))
}

func (z *Zone) noPod(q *Question, n int) string {
	ns := string(q.label(n - 2))
	switch {
	case z.spaces[ns] == nil:
		return fmt.Sprintf("namespace %q does not exist%s", ns, z.similarSpace(ns))
	case n > 3:
		return "a pod's name is <address, with dashes>.<namespace>.pod." + z.o.Domain
	}
	if _, ok := parseDashed(q.label(0)); !ok {
		return fmt.Sprintf("%q is no address with dashes for dots or colons, as in 10-1-2-3", q.label(0))
	}
	if z.o.Pods == PodsDisabled {
		return "pod names are off (pods: disabled)"
	}
	return fmt.Sprintf("no pod of namespace %q has that address", ns)
}

// elsewhere notes the namespaces, other than one, that have a Service of that name.
func (z *Zone) elsewhere(svc, not string, e *Explanation) {
	var in []string
	for name, or := range z.origins {
		if name.Name == svc && name.Namespace != not && or.svc != nil {
			in = append(in, name.Namespace)
		}
	}
	if len(in) > 0 {
		e.Notes = append(e.Notes, fmt.Sprintf("Service %q exists, but in namespace %s: ask for %s.%s", svc, list(in), svc, slices.Min(in)))
	}
}

func (z *Zone) similarSpace(ns string) string {
	return didYouMean(ns, maps.Keys(z.spaces))
}

func (z *Zone) similarService(name model.Name) string {
	return didYouMean(name.Name, func(yield func(string) bool) {
		for n, or := range z.origins {
			if n.Namespace == name.Namespace && or.svc != nil && !yield(n.Name) {
				return
			}
		}
	})
}

// didYouMean is a hint at the nearest name, if one is near.
func didYouMean(name string, all func(yield func(string) bool)) string {
	best, at := "", 3
	for s := range all {
		if d := distance(name, s, at+1); d < at || (d == at && best != "" && s < best) {
			best, at = s, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is how many letters have to be put in, left out or changed (Levenshtein), or limit if not fewer.
func distance(a, b string, limit int) int {
	if abs := len(a) - len(b); abs >= limit || -abs >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diag
			if a[i] != b[j] {
				d = min(diag, row[j], row[j+1]) + 1
			}
			diag, row[j+1] = row[j+1], d
		}
	}
	return min(row[len(b)], limit)
}
