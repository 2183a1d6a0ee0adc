// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"

	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// optionPrefix is what the names of weft's own options begin with; others' options are not weft's business.
const optionPrefix = "weft.dev/"

// listener is one listener of a Gateway or of a ListenerSet that is attached to it.
type listener struct {
	attachSpec
	spec     *gwv1.Listener
	protocol route.Protocol // "" when it is not supported

	conflict   verdict // ok: there is none
	accepted   verdict
	resolved   verdict
	overlaps   bool
	certs      []string // keys
	notes      []string // of what is passed over, and serves all the same
	client     *route.ClientValidation
	options    *route.ListenerTLS // from spec.tls.options
	refusal    *verdict           // why it can't be served as written; nil is nothing
	unservable string             // it is there so that its hostname is nobody else's, and refuses connections
	filters    []route.Filter     // before routing
	asked      []backendID        // by filters
	failing    string             // why all its requests fail, for a reference of filters; "" is that they don't
}

// unservableKey is the key of the policy that refuses the requests of a listener that can't be served.
func (l *listener) unservableKey() string { return "unservable/" + l.key }

// attachSpec is what of a listener decides about the routes that it gets. A change of it concerns routes.
type attachSpec struct {
	key         string
	parent      parentID
	name        string
	port        uint16
	hostname    string
	kinds       []route.RouteKind
	from        gwv1.FromNamespaces
	selector    *model.Selector
	passthrough bool
	served      bool // it is in the tables
}

// valid tells whether connections to the listener can be served.
func (l *listener) valid() bool { return l.accepted.ok && l.unservable == "" && l.failing == "" }

// newListener reads what can be read of a listener by itself.
func (s *State) newListener(g *gateway, parent parentID, spec *gwv1.Listener) *listener {
	l := &listener{spec: spec}
	l.attachSpec = attachSpec{parent: parent, name: string(spec.Name), port: uint16(spec.Port), from: gwv1.NamespacesFromSame}
	l.key = g.name.String() + "/" + l.name
	if parent.kind == "ListenerSet" {
		l.key = "ListenerSet/" + parent.Name.String() + "/" + l.name
	}
	if a := spec.AllowedRoutes; a != nil && a.Namespaces != nil && a.Namespaces.From != nil {
		l.from = *a.Namespaces.From
		if l.from == gwv1.NamespacesFromSelector {
			var problem string
			if l.selector, problem = selector("allowedRoutes.namespaces.selector", a.Namespaces.Selector); problem != "" {
				l.refuse(gwv1.ListenerReasonUnsupportedValue, problem)
			}
		}
	}
	l.accepted = yes(gwv1.ListenerReasonAccepted, "the listener is accepted")
	l.resolved = yes(gwv1.ListenerReasonResolvedRefs, "all references are resolved")
	l.conflict = verdict{ok: true}
	var can []route.RouteKind
	switch spec.Protocol {
	case gwv1.HTTPProtocolType, gwv1.HTTPSProtocolType:
		can = []route.RouteKind{route.HTTPRoute, route.GRPCRoute}
	case gwv1.TLSProtocolType:
		can = []route.RouteKind{route.TLSRoute}
		if t := spec.TLS; t != nil && (t.Mode == nil || *t.Mode == gwv1.TLSModeTerminate) {
			can = append(can, route.TCPRoute) // what is left once TLS has ended
		}
	case gwv1.TCPProtocolType:
		can = []route.RouteKind{route.TCPRoute}
	case gwv1.UDPProtocolType:
		can = []route.RouteKind{route.UDPRoute}
	default:
		l.accepted = no(gwv1.ListenerReasonUnsupportedProtocol, fmt.Sprintf("protocol %s is not supported: HTTP, HTTPS, TLS, TCP and UDP are", spec.Protocol))
		return l
	}
	l.protocol = route.Protocol(spec.Protocol)
	if spec.Hostname != nil && l.protocol != route.TCP && l.protocol != route.UDP {
		l.hostname = strings.ToLower(string(*spec.Hostname))
	}
	l.allowKinds(can)
	l.readTLS()
	if l.accepted.ok && slices.Contains(s.opts.ReservedPorts, BindPort(l.port)) {
		l.accepted = no(gwv1.ListenerReasonPortUnavailable, fmt.Sprintf("port %d is one that the gateway's pods need for themselves: use another", l.port))
	}
	return l
}

// unknown says why a listener of a Gateway or ListenerSet can't be served for fields that are not known: its own, which x
// has, and those beside the listeners, which may concern them all.
func (s *State) unknown(g *gateway, parent parentID, x extra) string {
	beside := func(p parentID) string {
		return notKnown(s.extraOf(p.kind, p.Name).without("spec.listeners[", "spec.addresses", "spec.infrastructure"))
	}
	if parent.kind == "ListenerSet" {
		if why := beside(parentID{"Gateway", g.name}); why != "" {
			return "Gateway's " + why
		}
	}
	if why := beside(parent); why != "" {
		return why
	}
	return notKnown(x.without())
}

// allowKinds keeps those of the protocol's kinds that allowedRoutes names.
func (l *listener) allowKinds(can []route.RouteKind) {
	l.kinds = can
	a := l.spec.AllowedRoutes
	if a == nil || len(a.Kinds) == 0 {
		return
	}
	l.kinds = nil
	for _, k := range a.Kinds {
		kind := route.RouteKind(k.Kind)
		if k.Group != nil && *k.Group != GroupName || !slices.Contains(can, kind) {
			group := GroupName
			if k.Group != nil {
				group = string(*k.Group)
			}
			l.unresolved(no(gwv1.ListenerReasonInvalidRouteKinds, fmt.Sprintf("allowedRoutes.kinds: a listener of protocol %s can't have kind %s of group %q", l.protocol, k.Kind, group)))
			continue
		}
		if !slices.Contains(l.kinds, kind) {
			l.kinds = append(l.kinds, kind)
		}
	}
}

// unresolved notes a reference that can't be followed; the first one gives the reason.
func (l *listener) unresolved(v verdict) {
	if l.resolved.ok {
		l.resolved = v
		return
	}
	l.resolved.message += "; " + v.message
}

// readTLS reads the mode and weft's own options. What can't be done as written refuses the listener.
func (l *listener) readTLS() {
	refuse := func(format string, args ...any) {
		l.refuse(gwv1.ListenerReasonUnsupportedValue, fmt.Sprintf(format, args...))
	}
	t := l.spec.TLS
	if t == nil {
		if l.protocol == route.TLS {
			refuse("tls is missing: a listener of protocol TLS needs tls.mode")
		}
		return
	}
	if t.Mode != nil && *t.Mode == gwv1.TLSModePassthrough {
		l.passthrough = l.protocol == route.TLS
		if !l.passthrough {
			refuse("tls.mode Passthrough does not go with protocol %s: use protocol TLS", l.protocol)
		}
		return
	}
	l.options = &route.ListenerTLS{}
	for _, k := range slices.Sorted(maps.Keys(t.Options)) {
		name, ours := strings.CutPrefix(string(k), optionPrefix)
		if !ours {
			continue
		}
		if why := l.option(name, string(t.Options[k])); why != "" {
			refuse("tls.options: %s: %s", k, why)
		}
	}
	if o := l.options; o.MaxVersion != "" && o.MinVersion > o.MaxVersion { // "1.2" and "1.3": texts in their order
		refuse("tls.options: %smin-version %s is above %smax-version %s: no handshake could succeed",
			optionPrefix, o.MinVersion, optionPrefix, o.MaxVersion)
	}
}

// option reads one of weft's TLS options: min-version, max-version ("1.2", "1.3"), cipher-suites and alpn (lists with
// commas).
func (l *listener) option(name, value string) (problem string) {
	list := func() (out []string) {
		for v := range strings.SplitSeq(value, ",") {
			if v = strings.TrimSpace(v); v != "" {
				out = append(out, v)
			}
		}
		return out
	}
	switch name {
	case "min-version", "max-version":
		if value != "1.2" && value != "1.3" {
			return fmt.Sprintf("%q is not supported: 1.2 and 1.3 are", value)
		}
		if name == "min-version" {
			l.options.MinVersion = value
		} else {
			l.options.MaxVersion = value
		}
	case "cipher-suites":
		l.options.CipherSuites = list()
		for _, c := range l.options.CipherSuites {
			if !slices.ContainsFunc(tls.CipherSuites(), func(k *tls.CipherSuite) bool { return k.Name == c }) {
				return fmt.Sprintf("%s is not a cipher suite of TLS 1.2 without known weaknesses, by its IANA name", c)
			}
		}
	case "alpn":
		l.options.ALPN = list()
	default:
		return "there is no such option"
	}
	return ""
}

// resolveCertificates finds the listener's certificates. Those that can't be used are left out; with none left, the
// listener refuses its handshakes.
func (s *State) resolveCertificates(g *gateway, l *listener) {
	if l.protocol != route.HTTPS && l.protocol != route.TLS || l.passthrough || l.options == nil && l.protocol == route.TLS {
		return
	}
	var refs []gwv1.SecretObjectReference
	if l.spec.TLS != nil {
		refs = l.spec.TLS.CertificateRefs
	}
	if len(refs) == 0 {
		l.unresolved(no(gwv1.ListenerReasonInvalidCertificateRef, "tls.certificateRefs is empty: name a Secret of type kubernetes.io/tls"))
	}
	for i, r := range refs {
		c, v := s.certificate(g, from{l.parent.kind, l.parent.Name}, r, string(gwv1.ListenerReasonInvalidCertificateRef))
		if v != nil {
			v.message = fmt.Sprintf("tls.certificateRefs[%d]: %s", i, v.message)
			l.unresolved(*v)
			continue
		}
		l.certs = append(l.certs, c.Key)
		if _, why := route.StapleOf(s.secrets[keyName(c.Key)].Data); why != "" {
			l.notes = append(l.notes, fmt.Sprintf("tls.certificateRefs[%d]: Secret %s: %s", i, c.Key, why))
		}
		if l.accepted.ok {
			g.wantCerts[c.Key] = c
		}
	}
	if len(l.certs) == 0 {
		l.unservable = "it has no certificate"
	}
	if len(l.notes) > 0 {
		l.resolved.message += "; note: " + strings.Join(l.notes, "; ")
	}
}

// keyName is the Secret of a certificate's key.
func keyName(key string) model.Name {
	ns, name, _ := strings.Cut(key, "/")
	return model.Name{Namespace: ns, Name: name}
}

// certificate finds a certificate and its private key. invalid is the reason when there is none that can be used.
func (s *State) certificate(g *gateway, f from, r gwv1.SecretObjectReference, invalid string) (*route.Certificate, *verdict) {
	group, kind := "", "Secret"
	if r.Group != nil {
		group = string(*r.Group)
	}
	if r.Kind != nil {
		kind = string(*r.Kind)
	}
	if group != "" || kind != "Secret" {
		v := no(invalid, fmt.Sprintf("kind %s of group %q is not supported: refer to a Secret", kind, group))
		return nil, &v
	}
	name := model.Name{Namespace: f.Namespace, Name: string(r.Name)}
	if r.Namespace != nil && *r.Namespace != "" {
		name.Namespace = string(*r.Namespace)
	}
	g.refs.add(ref{"Secret", name})
	if name.Namespace != f.Namespace {
		g.foreign.add(name.Namespace)
	}
	if !s.permitted(f, "Secret", name) {
		v := no(gwv1.ListenerReasonRefNotPermitted, grantMissing(f, "Secret", name))
		return nil, &v
	}
	secret := s.secrets[name]
	if secret == nil {
		v := no(invalid, fmt.Sprintf("there is no Secret %s", name))
		return nil, &v
	}
	if problem := s.keyPair(secret); problem != "" {
		v := no(invalid, problem)
		return nil, &v
	}
	c := &route.Certificate{Key: name.String(), Chain: string(secret.Data["tls.crt"]), PrivateKey: string(secret.Data["tls.key"])}
	c.OCSP, _ = route.StapleOf(secret.Data)
	return c, nil
}

// keyPair checks a Secret's certificate and key, once for each value of the Secret; "" is good.
func (s *State) keyPair(secret *model.Secret) string {
	if known, ok := s.keyPairs[secret]; ok {
		return known
	}
	problem := ""
	switch crt, key := secret.Data["tls.crt"], secret.Data["tls.key"]; {
	case len(crt) == 0:
		problem = fmt.Sprintf("Secret %s has no key tls.crt with a certificate in PEM", secret.Name)
	case len(key) == 0:
		problem = fmt.Sprintf("Secret %s has no key tls.key with a private key in PEM", secret.Name)
	default:
		if _, err := tls.X509KeyPair(crt, key); err != nil {
			problem = fmt.Sprintf("Secret %s: %v", secret.Name, err)
		}
	}
	s.keyPairs[secret] = problem
	return problem
}

// resolveValidation finds the CAs that clients' certificates are checked with (GEP-91), of HTTPS listeners.
func (s *State) resolveValidation(g *gateway, l *listener) {
	if l.protocol != route.HTTPS || g.obj.Spec.TLS == nil || g.obj.Spec.TLS.Frontend == nil {
		return
	}
	front := g.obj.Spec.TLS.Frontend
	field, conf := "default", front.Default.Validation
	for i := range front.PerPort {
		if uint16(front.PerPort[i].Port) == l.port {
			field, conf = fmt.Sprintf("perPort[%d].tls", i), front.PerPort[i].TLS.Validation
		}
	}
	if conf == nil {
		return
	}
	out := &route.ClientValidation{AllowInsecureFallback: conf.Mode == gwv1.AllowInsecureFallback}
	var cas []string
	for i, r := range conf.CACertificateRefs {
		ca, v := s.clientAuthority(g, r)
		if v != nil {
			v.message = fmt.Sprintf("Gateway's tls.frontend.%s.validation.caCertificateRefs[%d]: %s", field, i, v.message)
			l.unresolved(*v)
			continue
		}
		cas = append(cas, ca)
	}
	out.CAs = strings.Join(cas, "\n")
	l.client = out
	if len(cas) == 0 {
		l.unservable = "it has no CA certificate to check clients with"
		l.accepted = no(gwv1.ListenerReasonNoValidCACertificate, fmt.Sprintf("no CA certificate of the Gateway's tls.frontend.%s.validation can be used: %s", field, l.resolved.message))
	}
}

func (s *State) clientAuthority(g *gateway, r gwv1.ObjectReference) (string, *verdict) {
	namespace, elsewhere := g.name.Namespace, r.Namespace != nil && *r.Namespace != ""
	if elsewhere {
		namespace = string(*r.Namespace)
	}
	to, problem := authorityRef(r.Group, r.Kind, namespace, r.Name)
	if problem != "" {
		v := no(gwv1.ListenerReasonInvalidCACertificateKind, problem)
		return "", &v
	}
	if to.kind == trustBundleKind && elsewhere {
		v := no(gwv1.ListenerReasonInvalidCACertificateRef, "a ClusterTrustBundle is in no namespace: remove namespace")
		return "", &v
	}
	g.refs.add(to)
	if to.kind != trustBundleKind {
		f := from{"Gateway", g.name}
		if to.Namespace != g.name.Namespace {
			g.foreign.add(to.Namespace)
		}
		if !s.permitted(f, to.kind, to.Name) {
			v := no(gwv1.ListenerReasonRefNotPermitted, grantMissing(f, to.kind, to.Name))
			return "", &v
		}
	}
	ca, problem := s.authorities(to)
	if problem != "" {
		v := no(gwv1.ListenerReasonInvalidCACertificateRef, problem)
		return "", &v
	}
	return ca, nil
}

// table makes the listener's resource.
func (l *listener) table(p *Parameters) *route.Listener {
	out := &route.Listener{Key: l.key, Protocol: l.protocol, Port: BindPort(l.port), Hostname: l.hostname}
	if out.Port != l.port {
		out.PublicPort = l.port
	}
	if p.ProxyProtocol != nil && l.protocol != route.UDP {
		out.ProxyProtocol, out.ProxySources = *p.ProxyProtocol, p.ProxySources
	}
	if l.refusal == nil {
		out.Filters = l.filters
	}
	if l.protocol == route.HTTP || l.protocol == route.HTTPS {
		out.TrustedProxies, out.Forwarded = p.TrustedProxies, p.Forwarded != nil && *p.Forwarded
	}
	if l.protocol == route.HTTPS || l.protocol == route.TLS {
		out.TLS = &route.ListenerTLS{}
		if l.options != nil && l.refusal == nil {
			*out.TLS = *l.options
		}
		out.TLS.Passthrough, out.TLS.Certificates, out.TLS.Client = l.passthrough, l.certs, l.client
		if l.unservable != "" {
			out.TLS.Certificates, out.TLS.Passthrough = nil, false // every handshake fails
		}
	}
	return out
}
