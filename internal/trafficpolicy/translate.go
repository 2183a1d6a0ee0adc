// SPDX-License-Identifier: Apache-2.0

package trafficpolicy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// defaults of what a spec may leave open.
const (
	defaultSecretKey     = "auth"
	defaultLimitStatus   = 429
	defaultHSTSSeconds   = 365 * 24 * 3600
	defaultRetryAttempts = 1
)

// references looks up what a policy may name; what it is asked for is remembered by the caller.
type references interface {
	secret(model.Name) *model.Secret
	service(model.Name) *model.Service
}

// translation is a policy being translated.
type translation struct {
	namespace string
	refs      references
	out       gatewayapi.Policy
	invalid   []error // of fields
	missing   []error // of references
}

// translate gives what a policy comes to; invalid and missing say what keeps it from being enforced.
func translate(p *v1alpha1.TrafficPolicy, refs references) (out *gatewayapi.Policy, invalid, missing error) {
	t := &translation{namespace: p.Namespace, refs: refs}
	t.access(&p.Spec)
	t.amounts(&p.Spec)
	t.answers(&p.Spec)
	t.backends(&p.Spec)
	if err := t.out.Check(); err != nil {
		t.invalid = append(t.invalid, err)
	}
	invalid, missing = errors.Join(t.invalid...), errors.Join(t.missing...)
	if err := errors.Join(invalid, missing); err != nil {
		t.out.Invalid = oneLine(err)
	}
	return &t.out, invalid, missing
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (t *translation) wrong(field string, err error) {
	t.invalid = append(t.invalid, fmt.Errorf("spec.%s: %w", field, err))
}

// access translates who may.
func (t *translation) access(s *v1alpha1.TrafficPolicySpec) {
	if c := s.Sources; c != nil {
		t.out.Sources = &route.Sources{Allow: t.prefixes("sources.allow", c.Allow), Deny: t.prefixes("sources.deny", c.Deny)}
	}
	if c := s.BasicAuth; c != nil {
		t.out.BasicAuth = &route.BasicAuth{Realm: c.Realm, Users: t.users(&c.SecretRef)}
	}
	if c := s.ExternalAuth; c != nil {
		t.externalAuth(c)
	}
	switch s.Satisfy {
	case "":
	case "Any", "All":
		anyone := s.Satisfy == "Any"
		t.out.SatisfyAny = &anyone
	default:
		t.wrong("satisfy", fmt.Errorf("%q is not one of All, Any", s.Satisfy))
	}
}

// users reads a Secret's htpasswd lines.
func (t *translation) users(c *v1alpha1.SecretKey) string {
	name := model.Name{Namespace: t.namespace, Name: c.Name}
	key := c.Key
	if key == "" {
		key = defaultSecretKey
	}
	secret := t.refs.secret(name)
	if secret == nil {
		t.missing = append(t.missing, fmt.Errorf("spec.basicAuth.secretRef: there is no Secret %s", name))
		return ""
	}
	text, ok := secret.Data[key]
	if !ok {
		t.missing = append(t.missing, fmt.Errorf("spec.basicAuth.secretRef: Secret %s has no key %s", name, key))
		return ""
	}
	if _, err := route.ParseHtpasswd(string(text)); err != nil {
		t.missing = append(t.missing, fmt.Errorf("spec.basicAuth.secretRef: Secret %s, key %s: %w", name, key, err))
	}
	return string(text)
}

func (t *translation) externalAuth(c *v1alpha1.ExternalAuth) {
	a := &route.ExternalAuth{
		AuthRequest: !c.Disabled,
		Disabled:    c.Disabled, Host: c.Host, Path: route.Template(c.Path), Method: c.Method, Signin: route.Template(c.SignInURL),
		SigninParam: c.SignInParameter, ResponseHeaders: c.ResponseHeaders, Timeout: t.duration("externalAuth.timeout", c.Timeout),
	}
	if a.Method == "" {
		a.Method = "GET"
	}
	if a.Path == "" {
		a.Path = "/"
	}
	if c.BackendRef != nil {
		a.Backend = t.backend("externalAuth.backendRef", c.BackendRef)
	} else if a.Host == "" {
		a.Host = "$http_host"
	}
	for _, h := range c.RequestHeaders {
		a.RequestHeaders = append(a.RequestHeaders, route.Header{Name: h.Name, Value: h.Value})
	}
	if c.Cache != nil {
		a.CacheKey = route.Template(c.Cache.Key)
		for _, f := range c.Cache.For {
			a.CacheFor = append(a.CacheFor, route.CacheEntry{Statuses: ints(f.Statuses), For: t.duration("externalAuth.cache.for.duration", f.Duration)})
		}
	}
	t.out.ExternalAuth = a
}

// amounts translates how much.
func (t *translation) amounts(s *v1alpha1.TrafficPolicySpec) {
	for i, l := range s.RateLimits {
		at := fmt.Sprintf("rateLimits[%d]", i)
		r := route.RateLimit{
			Name: l.Name, Requests: count(l.Requests), Per: t.duration(at+".per", l.Per), Burst: count(l.Burst), Status: int(l.Status),
			Key: route.Template(l.Key), Exempt: t.prefixes(at+".exempt", l.Exempt),
		}
		if r.Status == 0 {
			r.Status = defaultLimitStatus
		}
		t.out.RateLimits = append(t.out.RateLimits, r)
	}
	if c := s.ConnectionLimit; c != nil {
		t.out.Connections = &route.Connections{Max: count(c.Max), Status: int(c.Status), Exempt: t.prefixes("connectionLimit.exempt", c.Exempt)}
	}
	if c := s.RequestBody; c != nil {
		t.out.BufferRequest = c.Buffer
		if c.MaxSize != nil {
			n := c.MaxSize.Value()
			t.out.MaxRequestBody = &n
		}
	}
	if c := s.ResponseBody; c != nil {
		t.out.BufferResponse = c.Buffer
		if c.BytesPerSecond != nil {
			t.out.ResponseRate = &route.ResponseRate{BytesPerSecond: c.BytesPerSecond.Value()}
			if c.FullSpeedBytes != nil {
				t.out.ResponseRate.After = c.FullSpeedBytes.Value()
			}
		}
	}
}

// answers translates what else answers are.
func (t *translation) answers(s *v1alpha1.TrafficPolicySpec) {
	if c := s.Rewrite; c != nil {
		t.out.Rewrite = &route.Rewrite{Hostname: c.Hostname}
		if c.Path != "" {
			path := route.Template(c.Path)
			t.out.Rewrite.Path = &route.PathRewrite{Template: &path}
		}
	}
	if c := s.Redirect; c != nil {
		t.out.Redirect = &route.Redirect{Location: route.Template(c.Location), Status: int(c.Status)}
	}
	if c := s.ErrorPages; c != nil {
		t.out.ErrorPages = &route.ErrorPages{Statuses: ints(c.Statuses), Backend: t.backend("errorPages.backendRef", &c.BackendRef), Headers: []route.Header{
			{Name: "X-Namespace", Value: t.namespace}, {Name: "X-Service-Name", Value: c.BackendRef.Name}, {Name: "X-Service-Port", Value: fmt.Sprint(c.BackendRef.Port)},
		}}
	}
	if c := s.StrictTransportSecurity; c != nil {
		t.out.HSTS = &route.HSTS{Disabled: c.Disabled, MaxAge: defaultHSTSSeconds, IncludeSubdomains: c.IncludeSubdomains, Preload: c.Preload}
		if c.MaxAgeSeconds != nil {
			t.out.HSTS.MaxAge = *c.MaxAgeSeconds
		}
	}
	t.out.HideHeaders = s.HideHeaders
	if c := s.Cookies; c != nil {
		t.out.Cookies = &route.Cookies{Domains: replacements(c.Domains), Paths: replacements(c.Paths)}
	}
	if len(s.Locations) > 0 {
		t.out.Locations = &route.Locations{Replace: replacements(s.Locations)}
	}
}

// backends translates how backends are asked.
func (t *translation) backends(s *v1alpha1.TrafficPolicySpec) {
	if c := s.LoadBalancing; c != nil {
		t.out.Balance = &route.Balance{Kind: route.BalanceKind(c.Type), SubsetSize: int(c.SubsetSize)}
		if t.out.Balance.Kind == route.Hash {
			t.out.Balance.Key = "$remote_addr"
			if c.HashKey != "" {
				t.out.Balance.Key = route.Template(c.HashKey)
			}
		}
	}
	if c := s.SessionCookie; c != nil {
		t.out.Session = &route.Session{
			Kind: route.SessionCookie, Name: c.Name, AbsoluteTimeout: t.duration("sessionCookie.lifetime", c.Lifetime), Permanent: c.Lifetime != "",
			Path: c.Path, Domain: c.Domain, SameSite: c.SameSite, ChangeOnFailure: c.ChangeOnFailure == nil || *c.ChangeOnFailure,
		}
	}
	if c := s.Timeouts; c != nil {
		request, backend := t.duration("timeouts.request", c.Request), t.duration("timeouts.backendRequest", c.BackendRequest)
		if request != 0 || backend != 0 {
			t.out.Timeouts = &route.Timeouts{Request: request, BackendRequest: backend}
		}
		t.out.ConnectTimeout = t.duration("timeouts.connect", c.Connect)
		t.out.ReadTimeout = t.duration("timeouts.read", c.Read)
		t.out.SendTimeout = t.duration("timeouts.send", c.Send)
	}
	if c := s.Retry; c != nil {
		t.out.Retry = &route.Retry{
			Codes: ints(c.Statuses), Attempts: defaultRetryAttempts, Backoff: t.duration("retry.backoff", c.Backoff),
			Idempotent: c.IdempotentOnly == nil || *c.IdempotentOnly, Unsafe: c.IdempotentOnly != nil && !*c.IdempotentOnly,
		}
		if c.Attempts != nil {
			t.out.Retry.Attempts = int(*c.Attempts)
		}
	}
	t.out.AccessLog = s.AccessLog
	if c := s.Firewall; c != nil {
		w := &route.WAF{CoreRules: c.CoreRules == nil || *c.CoreRules, Rules: c.Rules}
		switch c.Mode {
		case "Enforce":
		case "Detect":
			w.DetectOnly = true
		case "Off":
			w.Disabled = true
		default:
			t.wrong("firewall.mode", fmt.Errorf("%q is not one of Enforce, Detect, Off", c.Mode))
		}
		t.out.WAF = w
	}
}

// backend gives the key of a Service's port, which the tables then hold as well.
func (t *translation) backend(field string, c *v1alpha1.ServicePort) string {
	port := gatewayapi.ServicePort{Service: model.Name{Namespace: t.namespace, Name: c.Name}, Port: uint16(c.Port)}
	svc := t.refs.service(port.Service)
	switch {
	case svc == nil:
		t.missing = append(t.missing, fmt.Errorf("spec.%s: there is no Service %s", field, port.Service))
	case !hasPort(svc, port.Port):
		t.missing = append(t.missing, fmt.Errorf("spec.%s: Service %s has no TCP port %d", field, port.Service, port.Port))
	default:
		t.out.Backends = append(t.out.Backends, port)
	}
	return gatewayapi.BackendKey(port)
}

func hasPort(svc *model.Service, number uint16) bool {
	if svc.Type == model.ExternalName && len(svc.Ports) == 0 {
		return true // a name elsewhere has whatever port
	}
	for i := range svc.Ports {
		if svc.Ports[i].Port == number && svc.Ports[i].Protocol == model.TCP {
			return true
		}
	}
	return false
}

func (t *translation) duration(field, s string) route.Duration {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		t.wrong(field, fmt.Errorf("%q is not a duration such as 10s or 500ms", s))
	}
	return route.Duration(d)
}

// prefixes reads CIDRs and single addresses. An empty result stays apart from none: nobody is in a list of nonsense.
func (t *translation) prefixes(field string, list []string) (out []netip.Prefix) {
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if a, err2 := netip.ParseAddr(s); err2 == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			t.wrong(fmt.Sprintf("%s[%d]", field, i), fmt.Errorf("%q is not a CIDR such as 192.0.2.0/24", s))
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

func replacements(list []v1alpha1.Replacement) (out []route.Replacement) {
	for _, r := range list {
		out = append(out, route.Replacement{From: r.From, Regex: r.Regex, To: route.Template(r.To)})
	}
	return out
}

func ints(list []int64) (out []int) {
	for _, n := range list {
		out = append(out, int(n))
	}
	return out
}

// count makes a number of requests; what is out of range becomes one that Check refuses.
func count(n int64) uint32 {
	if n < 0 || n > 1<<31 {
		return 0
	}
	return uint32(n)
}
