// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// tlsPolicy is a BackendTLSPolicy with what was made of it.
type tlsPolicy struct {
	name      model.Name
	obj       *gwv1.BackendTLSPolicy
	targets   []policyTarget
	misplaced string            // why a targetRef is none of them
	tls       *route.BackendTLS // also of a policy that is not valid: plain text is never spoken in its place
	accepted  verdict           // by itself, apart from conflicts and its targets
	resolved  verdict
	excluded  set[model.Name] // Gateways where it can't be in force, since its status has no room for them
	told      []gwv1.PolicyAncestorStatus
	stale     bool // the object's status is not what was told
}

type policyTarget struct {
	service model.Name
	section string // a port's name; "" is all
}

// invalid is why connections can't be made as the policy wants; "" when they can.
func (p *tlsPolicy) invalid() string {
	if p.accepted.ok {
		return ""
	}
	return p.accepted.message
}

// older orders by the age of objects, then their names: of two that conflict the first one wins.
func older(a, b *tlsPolicy) int {
	return cmp.Or(a.obj.CreationTimestamp.Time.Compare(b.obj.CreationTimestamp.Time), strings.Compare(a.name.String(), b.name.String()))
}

// policyFor gives the policy that is in force for a Service's port, or nil.
func (s *State) policyFor(obj *model.Service, port *model.ServicePort) *tlsPolicy {
	var named, all *tlsPolicy
	for name := range s.policiesByService.of(obj.Name) {
		p := s.tlsPolicies[name]
		for _, t := range p.targets {
			switch {
			case t.service != obj.Name:
			case t.section == "" && (all == nil || older(p, all) < 0):
				all = p
			case t.section != "" && t.section == port.Name && (named == nil || older(p, named) < 0):
				named = p
			}
		}
	}
	if named != nil {
		return named
	}
	return all
}

// compilePolicy makes of a BackendTLSPolicy what does not depend on routes.
func (s *State) compilePolicy(w *work, name model.Name) {
	p := s.tlsPolicies[name]
	touch := func() {
		if p == nil {
			return
		}
		for _, t := range p.targets {
			w.services.add(t.service)
			w.usersOf(s, t.service)
			w.policiesOf(s, t.service)
			if len(p.excluded) > 0 { // what their statuses say of it is not in their rules
				for id := range s.routesByService.of(t.service) {
					w.attach.add(id)
				}
			}
		}
	}
	touch()
	obj := s.policyObjects[name]
	if obj == nil {
		if p != nil {
			s.policiesByService.set(name, nil)
			s.policiesByRef.set(name, nil)
			delete(s.tlsPolicies, name)
			touch()
		}
		return
	}
	if p == nil {
		p = &tlsPolicy{name: name}
		s.tlsPolicies[name] = p
		// What an earlier process said of the policy is to be taken back where it no longer holds.
		p.stale = slices.ContainsFunc(obj.Status.Ancestors, func(a gwv1.PolicyAncestorStatus) bool { return a.ControllerName == ControllerName })
	}
	p.obj, p.targets, p.misplaced = obj, nil, ""
	var services []model.Name
	for i, t := range obj.Spec.TargetRefs {
		if t.Group != "" || t.Kind != "Service" {
			p.misplaced = fmt.Sprintf("targetRefs[%d]: kind %s of group %q is not supported: target a Service", i, t.Kind, t.Group)
			continue
		}
		target := policyTarget{service: model.Name{Namespace: name.Namespace, Name: string(t.Name)}}
		if t.SectionName != nil {
			target.section = string(*t.SectionName)
		}
		p.targets = append(p.targets, target)
		services = append(services, target.service)
	}
	s.policiesByService.set(name, services)
	s.compileValidation(p)
	touch()
	w.policyStatus.add(name)
}

// compileValidation finds the CAs and makes the policy's BackendTLS.
func (s *State) compileValidation(p *tlsPolicy) {
	v := &p.obj.Spec.Validation
	p.accepted = yes(gwv1.PolicyReasonAccepted, "the policy is in force")
	p.resolved = yes(gwv1.BackendTLSPolicyReasonResolvedRefs, "all references are resolved")
	p.tls = &route.BackendTLS{ServerName: strings.ToLower(string(v.Hostname))}
	for _, san := range v.SubjectAltNames {
		switch san.Type {
		case gwv1.HostnameSubjectAltNameType:
			p.tls.SubjectAltNames = append(p.tls.SubjectAltNames, route.SubjectAltName{Hostname: strings.ToLower(string(san.Hostname))})
		case gwv1.URISubjectAltNameType:
			p.tls.SubjectAltNames = append(p.tls.SubjectAltNames, route.SubjectAltName{URI: string(san.URI)})
		default:
			p.accepted = no(gwv1.PolicyReasonInvalid, fmt.Sprintf("validation.subjectAltNames: type %q is not supported: Hostname and URI are", san.Type))
		}
	}
	if why := notKnown(s.extraOf("BackendTLSPolicy", p.name).without()); why != "" {
		p.accepted = no(gwv1.PolicyReasonInvalid, why)
	}
	for _, o := range slices.Sorted(maps.Keys(p.obj.Spec.Options)) {
		if strings.HasPrefix(string(o), optionPrefix) {
			p.accepted = no(gwv1.PolicyReasonInvalid, fmt.Sprintf("options: %s is not known", o))
		}
	}
	var refs []ref
	var cas []string
	var problems []verdict
	for i, r := range v.CACertificateRefs {
		to, why := authorityRef(r.Group, r.Kind, p.name.Namespace, r.Name)
		if why != "" {
			problems = append(problems, no(gwv1.BackendTLSPolicyReasonInvalidKind, fmt.Sprintf("validation.caCertificateRefs[%d]: %s", i, why)))
			continue
		}
		refs = append(refs, to)
		ca, why := s.authorities(to)
		if why != "" {
			problems = append(problems, no(gwv1.BackendTLSPolicyReasonInvalidCACertificateRef, fmt.Sprintf("validation.caCertificateRefs[%d]: %s", i, why)))
			continue
		}
		cas = append(cas, ca)
	}
	s.policiesByRef.set(p.name, refs)
	p.tls.CAs = strings.Join(cas, "\n")
	if len(problems) > 0 {
		p.resolved = problems[0]
		p.resolved.message = joinMessages(problems)
	}
	wellKnown := ""
	if v.WellKnownCACertificates != nil {
		wellKnown = string(*v.WellKnownCACertificates)
	}
	switch {
	case !p.accepted.ok:
	case len(v.CACertificateRefs) > 0 && len(cas) == 0:
		p.accepted = no(gwv1.BackendTLSPolicyReasonNoValidCACertificate, "no CA certificate can be used: "+p.resolved.message)
	case len(v.CACertificateRefs) > 0:
	case wellKnown != string(gwv1.WellKnownCACertificatesSystem):
		p.accepted = no(gwv1.PolicyReasonInvalid, fmt.Sprintf("validation.wellKnownCACertificates: %q is not supported: say System, or name CAs in caCertificateRefs", wellKnown))
	}
}

// trustBundleKind is the kind of references to ClusterTrustBundles, which are in no namespace: release 1.7's.
const trustBundleKind = "ClusterTrustBundle"

// authorityRef is what a reference to CA certificates names, or why it can't be that.
func authorityRef(group gwv1.Group, kind gwv1.Kind, namespace string, name gwv1.ObjectName) (to ref, problem string) {
	switch {
	case group == "" && (kind == "ConfigMap" || kind == "Secret"):
		return ref{string(kind), model.Name{Namespace: namespace, Name: string(name)}}, ""
	case group == "certificates.k8s.io" && kind == trustBundleKind:
		return ref{trustBundleKind, model.Name{Name: string(name)}}, ""
	}
	return ref{}, fmt.Sprintf("kind %s of group %q is not supported: refer to a ConfigMap with a key ca.crt, or to a ClusterTrustBundle of group certificates.k8s.io", kind, group)
}

// authorities reads the CA certificates of a ConfigMap, Secret or ClusterTrustBundle, or says why they can't be used.
func (s *State) authorities(r ref) (pemText, problem string) {
	where := fmt.Sprintf("key ca.crt of %s %s", r.kind, r.Name)
	switch r.kind {
	case trustBundleKind:
		b := s.trustBundles[r.Name.Name]
		if b == nil {
			return "", fmt.Sprintf("there is no ClusterTrustBundle %s; does the API server serve them?", r.Name.Name)
		}
		pemText, where = b.PEM, "spec.trustBundle of ClusterTrustBundle "+r.Name.Name
	case "ConfigMap":
		m := s.configMaps[r.Name]
		if m == nil {
			return "", fmt.Sprintf("there is no ConfigMap %s", r.Name)
		}
		pemText = m.Data["ca.crt"]
	case "Secret":
		m := s.secrets[r.Name]
		if m == nil {
			return "", fmt.Sprintf("there is no Secret %s", r.Name)
		}
		pemText = string(m.Data["ca.crt"])
	}
	if r.kind != trustBundleKind && strings.TrimSpace(pemText) == "" {
		return "", fmt.Sprintf("%s %s has no key ca.crt with CA certificates in PEM", r.kind, r.Name)
	}
	n := 0
	for rest := []byte(pemText); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", fmt.Sprintf("%s: %v", where, err)
		}
		n++
	}
	if n == 0 {
		return "", where + " has no certificate in PEM"
	}
	return pemText, ""
}

// policyVerdict is the policy's Accepted condition: what it is by itself, unless its targets say otherwise.
func (s *State) policyVerdict(p *tlsPolicy) verdict {
	out := p.accepted
	for _, t := range p.targets {
		first := p
		for name := range s.policiesByService.of(t.service) {
			if o := s.tlsPolicies[name]; slices.Contains(o.targets, t) && older(o, first) < 0 {
				first = o
			}
		}
		if first != p {
			return no(gwv1.PolicyReasonConflicted, fmt.Sprintf("BackendTLSPolicy %s targets Service %s as well and goes first, by age or name", first.name, t.service))
		}
		svc := s.services[t.service]
		if svc == nil {
			return no(gwv1.PolicyReasonTargetNotFound, fmt.Sprintf("targetRefs: there is no Service %s", t.service))
		}
		if t.section != "" && !slices.ContainsFunc(svc.Ports, func(p model.ServicePort) bool { return p.Name == t.section }) {
			return no(gwv1.PolicyReasonTargetNotFound, fmt.Sprintf("targetRefs: Service %s has no port named %s", t.service, t.section))
		}
		switch others, all := t.withoutTCP(svc); {
		case all:
			return no(gwv1.PolicyReasonInvalid, fmt.Sprintf("targetRefs: TLS needs TCP, and the policy is for %s of Service %s: target other ports", others, t.service))
		case others != "" && out.ok:
			out.message += fmt.Sprintf("; note: not for %s of Service %s, as TLS needs TCP", others, t.service)
		}
	}
	if p.misplaced != "" {
		return no(gwv1.PolicyReasonTargetNotFound, p.misplaced)
	}
	return out
}

// withoutTCP lists those ports of the target that have another protocol than TCP, to which no policy applies (GEP-1897);
// all tells that it has no others.
func (t policyTarget) withoutTCP(svc *model.Service) (list string, all bool) {
	only := &model.Service{}
	n := 0
	for _, p := range svc.Ports {
		if t.section != "" && p.Name != t.section {
			continue
		}
		n++
		if p.Protocol != model.TCP {
			only.Ports = append(only.Ports, p)
		}
	}
	if len(only.Ports) == 0 {
		return "", false
	}
	return portList(only), len(only.Ports) == n
}

// MaxAncestors is how many entries a policy's status may have, those of others included.
const MaxAncestors = 16

// noRoom is why a policy is not in force at a Gateway. The API wants a policy whose status is full to be taken for one that
// can't be implemented, wherever the next entry would belong: what nobody is told of must not be relied on.
const noRoom = "its status has no room for this Gateway: it may have 16 entries; have fewer Gateways refer to its Services, or targets in policies of their own"

// ancestors gives the Gateways with a route to a Service that the policy targets: those that its status has room for, and
// the others. Those whose entry is there already come first, then it goes by name. A route without TLS counts where the
// policy is for nothing else, so that somebody is told.
func (s *State) ancestors(p *tlsPolicy) (in, out []model.Name) {
	there := set[model.Name]{}
	for _, t := range p.targets {
		inVain := false
		if svc := s.services[t.service]; svc != nil {
			_, inVain = t.withoutTCP(svc)
		}
		for g, ids := range s.users[t.service] {
			for id := range ids {
				if id.As != spokenTCP && (id.As != spokenUDP || inVain) {
					there.add(g)
				}
			}
		}
	}
	in = slices.SortedFunc(maps.Keys(there), model.Name.Compare)
	room := MaxAncestors
	listed := map[model.Name]bool{}
	for _, a := range p.obj.Status.Ancestors {
		if a.ControllerName != ControllerName {
			room--
		} else if a.AncestorRef.Namespace != nil {
			listed[model.Name{Namespace: string(*a.AncestorRef.Namespace), Name: string(a.AncestorRef.Name)}] = true
		}
	}
	if len(in) <= room {
		return in, nil
	}
	slices.SortStableFunc(in, func(a, b model.Name) int {
		switch {
		case listed[a] && !listed[b]:
			return -1
		case listed[b] && !listed[a]:
			return 1
		}
		return 0
	})
	return in[:room], in[room:]
}

// admit finds out at which Gateways policies are in force, and has the others' backends and routes made again where that
// has changed.
func (s *State) admit(w *work) {
	again := set[RouteID]{}
	for name := range w.policyStatus {
		p := s.tlsPolicies[name]
		if p == nil {
			continue
		}
		_, out := s.ancestors(p)
		excluded := set[model.Name]{}
		for _, g := range out {
			excluded.add(g)
		}
		if maps.Equal(p.excluded, excluded) {
			continue
		}
		p.excluded = excluded
		for _, t := range p.targets {
			w.services.add(t.service)
			for id := range s.routesByService.of(t.service) {
				again.add(id)
			}
			for name := range s.gatewaysByService.of(t.service) {
				w.gatewayStatus.add(name)
			}
		}
	}
	for id := range again {
		if r := s.routes[id]; r != nil {
			s.attach(w, r)
		}
	}
}

// excludes is why a Backend's policy is not in force at a Gateway; nil when it is, or there is none.
func (s *State) excludes(g model.Name, id backendID) *verdict {
	if id.As == spokenTCP || id.As == spokenUDP {
		return nil
	}
	for name := range s.policiesByService.of(id.Service) {
		if len(s.tlsPolicies[name].excluded) == 0 {
			continue
		}
		obj := s.services[id.Service]
		port, _ := findPort(obj, id.Port, false)
		if p := s.policyFor(obj, port); p != nil && p.excluded.has(g) {
			v := no("InvalidBackendTLSPolicy", fmt.Sprintf("backendRef %s port %d: BackendTLSPolicy %s can't be met: %s", obj.Name, id.Port, p.name, noRoom))
			return &v
		}
	}
	return nil
}

// tellPolicy makes the policy's status: one entry for each Gateway with a route to a Service that it targets.
func (s *State) tellPolicy(w *work, name model.Name) {
	p := s.tlsPolicies[name]
	if p == nil {
		return
	}
	accepted := s.policyVerdict(p)
	out := []gwv1.PolicyAncestorStatus{}
	tell := func(g model.Name, accepted verdict) {
		group, kind, ns := gwv1.Group(GroupName), gwv1.Kind("Gateway"), gwv1.Namespace(g.Namespace)
		out = append(out, gwv1.PolicyAncestorStatus{
			AncestorRef:    gwv1.ParentReference{Group: &group, Kind: &kind, Namespace: &ns, Name: gwv1.ObjectName(g.Name)},
			ControllerName: ControllerName,
			Conditions: []metav1.Condition{
				condition(gwv1.PolicyConditionAccepted, accepted, p.obj.Generation),
				condition(gwv1.BackendTLSPolicyConditionResolvedRefs, p.resolved, p.obj.Generation),
			},
		})
	}
	in, excluded := s.ancestors(p)
	for _, g := range in {
		tell(g, accepted)
	}
	for _, g := range excluded { // should there be room by the time that it is written
		tell(g, no(gwv1.PolicyReasonInvalid, noRoom))
	}
	if p.stale || !sameStatus(p.told, out) {
		p.told, p.stale = out, false
		w.out.PolicyStatuses[name] = out
	}
}

func joinMessages(vs []verdict) string {
	var out []string
	for _, v := range vs {
		if !slices.Contains(out, v.message) {
			out = append(out, v.message)
		}
	}
	return strings.Join(out, "; ")
}
