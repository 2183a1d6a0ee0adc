// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
)

// class is a GatewayClass of ours.
type class struct {
	obj        *gwv1.GatewayClass
	accepted   verdict
	parameters *model.Name
	told       *gwv1.GatewayClassStatus
	toldInUse  *bool
	stale      bool
}

// The kind of object that parametersRef may name.
const (
	parametersGroup = "weft.dev"
	parametersKind  = "GatewayConfig"
)

// compileClass decides whether a class is ours and accepted. Its Gateways are looked at again when that changed.
func (s *State) compileClass(w *work, name string) {
	obj, c := s.classObjects[name], s.classes[name]
	if obj == nil || obj.Spec.ControllerName != ControllerName {
		if c != nil {
			delete(s.classes, name)
			s.classesByParameters.set(name, nil)
			s.dirtyClass(w, name)
		}
		return
	}
	if c == nil {
		c = &class{}
		s.classes[name] = c
		s.dirtyClass(w, name)
	}
	before, had := c.accepted, c.parameters
	c.obj, c.parameters = obj, nil
	c.accepted = yes(gwv1.GatewayClassReasonAccepted, "weft serves Gateways of this class")
	if why := notKnown(s.extraOf("GatewayClass", model.Name{Name: name}).without()); why != "" {
		c.accepted = no(gwv1.GatewayClassReasonUnsupported, why)
	}
	if r := obj.Spec.ParametersRef; r != nil {
		invalid := func(format string, args ...any) {
			c.accepted = no(gwv1.GatewayClassReasonInvalidParameters, "parametersRef: "+fmt.Sprintf(format, args...))
		}
		switch {
		case r.Group != parametersGroup || r.Kind != parametersKind:
			invalid("kind %s of group %q is not supported: refer to a %s of group %s", r.Kind, r.Group, parametersKind, parametersGroup)
		case r.Namespace == nil || *r.Namespace == "":
			invalid("namespace is missing: %ss are in namespaces", parametersKind)
		default:
			n := model.Name{Namespace: string(*r.Namespace), Name: r.Name}
			c.parameters = &n
			if p := s.parameters[n]; p == nil {
				invalid("there is no %s %s", parametersKind, n)
			} else if p.Invalid != "" {
				invalid("%s %s: %s", parametersKind, n, p.Invalid)
			}
		}
	}
	var params []model.Name
	if c.parameters != nil {
		params = append(params, *c.parameters)
	}
	s.classesByParameters.set(name, params)
	if c.accepted != before || had == nil != (c.parameters == nil) || had != nil && *had != *c.parameters {
		s.dirtyClass(w, name)
	}
	w.classStatus.add(name)
}

func (s *State) dirtyClass(w *work, name string) {
	for g := range s.gatewaysByClass.of(name) {
		w.gateways.add(g)
	}
}

// parametersRef finds the GatewayConfig that a Gateway names itself, or says what is wrong with it.
func (s *State) parametersRef(g *gateway) (*model.Name, string) {
	i := g.obj.Spec.Infrastructure
	if i == nil || i.ParametersRef == nil {
		return nil, ""
	}
	r := i.ParametersRef
	if r.Group != parametersGroup || r.Kind != parametersKind {
		return nil, fmt.Sprintf("infrastructure.parametersRef: kind %s of group %q is not supported: refer to a %s of group %s", r.Kind, r.Group, parametersKind, parametersGroup)
	}
	n := model.Name{Namespace: g.name.Namespace, Name: r.Name}
	g.refs.add(ref{parametersKind, n})
	switch p := s.parameters[n]; {
	case p == nil:
		return nil, fmt.Sprintf("infrastructure.parametersRef: there is no %s %s", parametersKind, n)
	case p.Invalid != "":
		return nil, fmt.Sprintf("infrastructure.parametersRef: %s %s: %s", parametersKind, n, p.Invalid)
	}
	return &n, ""
}

// parametersOf merges the parameters of a Gateway's class with its own.
func (s *State) parametersOf(g *gateway) *Parameters {
	out := &Parameters{}
	merge := func(n *model.Name) {
		if n == nil || s.parameters[*n] == nil || s.parameters[*n].Invalid != "" {
			return
		}
		p := s.parameters[*n]
		if p.ProxyProtocol != nil {
			out.ProxyProtocol = p.ProxyProtocol
		}
		if p.ProxySources != nil {
			out.ProxySources = p.ProxySources
		}
		if p.TrustedProxies != nil {
			out.TrustedProxies = p.TrustedProxies
		}
		if p.Forwarded != nil {
			out.Forwarded = p.Forwarded
		}
	}
	if n := s.classes[string(g.obj.Spec.GatewayClassName)].parameters; n != nil {
		g.refs.add(ref{parametersKind, *n})
		merge(n)
	}
	own, _ := s.parametersRef(g)
	merge(own)
	return out
}

// The minor versions of Gateway API v1 that are known to work.
const oldestMinor, newestMinor = 0, 7

// minorVersion reads a version "v1.6.3" of Gateway API; ok is false for what is not of v1.
func minorVersion(v string) (minor int, ok bool) {
	rest, ok := strings.CutPrefix(v, "v1.")
	minor, err := strconv.Atoi(strings.SplitN(rest, ".", 2)[0])
	return minor, ok && err == nil
}

// classResource is the resource whose CRD tells what release of Gateway API there is.
const classResource = "gatewayclasses"

// supportedVersion judges the versions of the CRDs that are installed: any of them may be a leftover of another release.
func supportedVersion(crds map[string]*CRD) verdict {
	supported := fmt.Sprintf("v1.%d to v1.%d are supported: install the CRDs of one release", oldestMinor, newestMinor)
	for _, resource := range slices.Sorted(maps.Keys(crds)) {
		name, v := resource+"."+GroupName, crds[resource].Version
		if v == "" {
			return no(gwv1.GatewayClassReasonUnsupportedVersion, fmt.Sprintf("CustomResourceDefinition %s does not say its version (annotation gateway.networking.k8s.io/bundle-version); %s", name, supported))
		}
		if minor, ok := minorVersion(v); !ok || minor < oldestMinor || minor > newestMinor {
			return no(gwv1.GatewayClassReasonUnsupportedVersion, fmt.Sprintf("CustomResourceDefinition %s is of version %s; %s", name, v, supported))
		}
	}
	return yes(gwv1.GatewayClassReasonSupportedVersion, fmt.Sprintf("the CRDs of Gateway API are of version %s", crds[classResource].Version))
}

// tellClass makes the class's status.
func (s *State) tellClass(w *work, name string) {
	c := s.classes[name]
	if c == nil {
		return
	}
	out := &gwv1.GatewayClassStatus{
		Conditions: []metav1.Condition{condition(gwv1.GatewayClassConditionStatusAccepted, c.accepted, c.obj.Generation)},
	}
	if crd := s.crds[classResource]; crd == nil {
		out.SupportedFeatures = supportedFeatures("", "")
	} else {
		out.SupportedFeatures = supportedFeatures(crd.Version, crd.Channel)
		out.Conditions = append(out.Conditions, condition(gwv1.GatewayClassConditionStatusSupportedVersion, supportedVersion(s.crds), c.obj.Generation))
	}
	if c.stale || c.told == nil || !sameStatus(c.told.Conditions, out.Conditions) ||
		!sameStatus(c.told.SupportedFeatures, out.SupportedFeatures) {
		c.told, c.stale = out, false
		w.out.ClassStatuses[name] = out
	}
	inUse := len(s.gatewaysByClass.of(name)) > 0
	if c.toldInUse == nil || *c.toldInUse != inUse {
		c.toldInUse = &inUse
		w.out.ClassesInUse[name] = inUse
	}
}

// classStated tells whether a class's own status says what was told.
func classStated(have, told *gwv1.GatewayClassStatus) bool {
	return told != nil && says(have.Conditions, told.Conditions, OwnedConditions.GatewayClass) &&
		sameStatus(have.SupportedFeatures, told.SupportedFeatures)
}
