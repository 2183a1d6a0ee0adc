// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// policiesOf makes an Ingress's policies: one for all its rules, and one, nil when nothing asks for it, for those that
// need authentication.
func (s *State) policiesOf(i *ingress, used map[string]backend) (main route.Policy, auth *route.Policy) {
	set := i.set // a copy: what is given out must not change with the Ingress
	main = route.Policy{
		Key: "Ingress/" + i.obj.Name.String(), MaxRequestBody: &set.bodySize,
		ConnectTimeout: route.Duration(set.connectTimeout), ReadTimeout: route.Duration(set.readTimeout), SendTimeout: route.Duration(set.sendTimeout), Connection: set.connection,
		HideHeaders: set.hideHeaders, BufferRequest: set.bufferRequest, Balance: set.balancing(), WAF: set.firewall(),
		RateLimits: set.rateLimits(), HSTS: &route.HSTS{Disabled: true},
	}
	if set.hsts {
		main.HSTS = &route.HSTS{MaxAge: set.hstsMaxAge, IncludeSubdomains: set.hstsSubdomains, Preload: set.hstsPreload}
	}
	if deny := slices.Concat(set.deny, set.blocked); len(set.allow)+len(deny) > 0 {
		main.Sources = &route.Sources{Allow: set.allow, Deny: deny}
	}
	if set.limitConnections > 0 {
		main.Connections = &route.Connections{Max: uint32(set.limitConnections), Status: set.limitConnStatus, Exempt: set.limitExempt}
	}
	if set.limitRate > 0 {
		main.ResponseRate = &route.ResponseRate{BytesPerSecond: set.limitRate << 10, After: set.limitRateAfter << 10}
	}
	if len(set.cookieDomains)+len(set.cookiePaths) > 0 {
		main.Cookies = &route.Cookies{Domains: set.cookieDomains, Paths: set.cookiePaths}
	}
	if f := set.redirectFrom; f != "" && f != "off" && f != "default" {
		if set.redirectTo == "" || set.redirectTo == "off" {
			i.problem("InvalidAnnotation", "%sproxy-redirect-from has no effect without %sproxy-redirect-to", Prefix, Prefix)
		} else {
			main.Locations = &route.Locations{Replace: []route.Replacement{{From: f, To: route.Template(set.redirectTo)}}}
		}
	}
	if set.bufferResponse {
		main.BufferResponse = &set.bufferResponse
	}
	if !set.accessLog {
		main.AccessLog = &set.accessLog
	}
	a := route.Policy{Key: main.Key + "/auth", BasicAuth: s.passwords(i), ExternalAuth: s.external(i, used)}
	if a.BasicAuth == nil && a.ExternalAuth == nil {
		return main, nil
	}
	if any := set.satisfy == "any"; any {
		a.SatisfyAny = &any
	}
	return main, &a
}

// passwords reads the Secret of basic authentication.
func (s *State) passwords(i *ingress) *route.BasicAuth {
	set := &i.set
	switch {
	case set.authType == "" && set.authSecret != "":
		i.deny("%sauth-secret has no effect without %sauth-type: basic", Prefix, Prefix)
		return nil
	case set.authType == "":
		return nil
	case set.authSecret == "":
		i.deny("%sauth-type needs %sauth-secret", Prefix, Prefix)
		return nil
	}
	i.basic = true
	out := &route.BasicAuth{Realm: set.authRealm}
	n, err := i.object("Secret", "auth-secret", set.authSecret)
	if err != nil {
		i.deny("%v", err)
		return out
	}
	secret := s.secrets[n]
	switch {
	case secret == nil:
		i.deny("%sauth-secret: there is no Secret %s", Prefix, n)
	case set.authSecretType == "auth-map":
		var b strings.Builder
		for _, user := range slices.Sorted(maps.Keys(secret.Data)) {
			b.WriteString(user + ":" + strings.TrimSpace(string(secret.Data[user])) + "\n")
		}
		out.Users = b.String()
	case len(secret.Data["auth"]) == 0:
		i.deny("%sauth-secret: Secret %s has no key \"auth\": make it with htpasswd, or set %sauth-secret-type: auth-map", Prefix, n, Prefix)
	default:
		out.Users = string(secret.Data["auth"])
	}
	if _, err := route.ParseHtpasswd(out.Users); err != nil {
		i.problem("InvalidPasswords", "%sauth-secret: Secret %s: %s", Prefix, n, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return out
}

// external makes the question to another server that auth-url, or the ConfigMap's global-auth-url, asks for.
func (s *State) external(i *ingress, used map[string]backend) *route.ExternalAuth {
	from := i.set.auth
	if from.url == "" {
		if !i.set.useGlobalAuth || i.set.globalAuth.url == "" {
			return nil
		}
		from = i.set.globalAuth
	}
	scheme, rest, _ := strings.Cut(from.url, "://")
	authority, path := rest, "/"
	if k := strings.IndexAny(rest, "/?"); k >= 0 {
		authority, path = rest[:k], rest[k:]
		if path[0] == '?' {
			path = "/" + path
		}
	}
	out := &route.ExternalAuth{
		AuthRequest: true,
		Host:        authority, Path: route.Template(path), Method: from.method, Signin: route.Template(from.signin), SigninParam: from.signinParam,
		ResponseHeaders: from.responseHeaders, AlwaysSetCookie: from.alwaysSetCookie, CacheKey: route.Template(from.cacheKey),
	}
	if out.Method == "" {
		out.Method = "GET"
	}
	if from.cacheKey != "" {
		out.CacheFor = from.cacheFor
	}
	if from.signin == "" || regexp.MustCompile(`[?&]`+regexp.QuoteMeta(from.signinParam)+`=`).MatchString(from.signin) {
		out.SigninParam = "" // as written, it tells already
	}
	redirect := from.requestRedirect
	if redirect == "" {
		redirect = "$request_uri"
	}
	out.RequestHeaders = append(out.RequestHeaders, route.Header{Name: "X-Auth-Request-Redirect", Value: redirect})
	if from.setHeaders != "" {
		n, err := i.object("ConfigMap", "auth-proxy-set-headers", from.setHeaders)
		if err == nil && s.configMaps[n] == nil {
			i.deny("%sauth-proxy-set-headers: there is no ConfigMap %s", Prefix, n)
		} else if err != nil {
			i.deny("%v", err)
		} else {
			for _, k := range slices.Sorted(maps.Keys(s.configMaps[n].Data)) {
				v := s.configMaps[n].Data[k]
				if err := checkHeader(k); err != nil {
					i.deny("%sauth-proxy-set-headers: ConfigMap %s: %v", Prefix, n, err)
				} else if err := template(v); err != nil {
					i.deny("%sauth-proxy-set-headers: ConfigMap %s: %s: %v", Prefix, n, k, err)
				} else {
					out.RequestHeaders = append(out.RequestHeaders, route.Header{Name: k, Value: v})
				}
			}
		}
	}
	if strings.Contains(authority, "$") {
		return out // the gateway's own route for the host answers
	}
	host, port, err := hostPort(authority, scheme)
	if err != nil {
		i.deny("%sauth-url: %v", Prefix, err)
		return out
	}
	conf := route.Backend{Protocol: route.HTTP1}
	if scheme == "https" {
		conf.TLS = &route.BackendTLS{ServerName: host, Insecure: true} // as in ingress-nginx
	}
	b := addressBackend(scheme, host, port, conf)
	used[b.conf.Key] = b
	out.Backend, out.Host = b.conf.Key, host
	return out
}

// rateLimits makes the leaky buckets: those of a minute before those of a second.
func (s *settings) rateLimits() (out []route.RateLimit) {
	add := func(name string, n int, per time.Duration) {
		if n > 0 {
			out = append(out, route.RateLimit{
				Name: name, Requests: uint32(n), Per: route.Duration(per), Burst: uint32(n * s.limitBurst), Status: s.limitStatus, Exempt: s.limitExempt,
			})
		}
	}
	add("rpm", s.limitRPM, time.Minute)
	add("rps", s.limitRPS, time.Second)
	return out
}

// balancing is nil where nothing says how endpoints are chosen.
func (s *settings) balancing() *route.Balance {
	switch {
	case s.hashBy != "":
		b := &route.Balance{Kind: route.Hash, Key: route.Template(s.hashBy)}
		if s.hashSubset {
			b.SubsetSize = s.hashSubsetSize
		}
		return b
	case s.balance == "round_robin":
		return &route.Balance{Kind: route.RoundRobin}
	case s.balance == "ewma":
		return &route.Balance{Kind: route.EWMA}
	case s.balance == "ip_hash":
		return &route.Balance{Kind: route.Hash, Key: "$remote_addr"}
	}
	return nil
}

var engineOn = regexp.MustCompile(`(?im)^\s*SecRuleEngine\s+On\b`)

// firewall is nil where nothing was said about it. One without rules has nothing to look for and keeps nobody out, as in
// ingress-nginx, whose own rules only look at how bodies are encoded, and only detect.
func (s *settings) firewall() *route.WAF {
	switch {
	case s.waf && (s.wafCoreRules || s.wafRules != ""):
		return &route.WAF{DetectOnly: !engineOn.MatchString(s.wafRules), CoreRules: s.wafCoreRules, Rules: s.wafRules}
	case s.wafSet:
		return &route.WAF{Disabled: true}
	}
	return nil
}

// retry makes of proxy-next-upstream what the proxy knows: statuses, and whether methods matter.
func (s *settings) retry() *route.Retry {
	r := &route.Retry{Idempotent: !s.retryAll, Within: route.Duration(s.nextTimeout), Attempts: s.nextTries - 1}
	if s.nextTries == 0 {
		r.Attempts = 10
	}
	for _, w := range s.nextUpstream {
		switch w {
		case "off":
			return &route.Retry{Never: true}
		case "non_idempotent":
			r.Idempotent = false
		case "http_403", "http_404", "http_429", "http_500", "http_502", "http_503", "http_504":
			r.Codes = append(r.Codes, map[string]int{"403": 403, "404": 404, "429": 429, "500": 500, "502": 502, "503": 503, "504": 504}[w[5:]])
		}
	}
	r.Unsafe = !r.Idempotent
	r.NotOnError, r.NotOnTimeout = !slices.Contains(s.nextUpstream, "error"), !slices.Contains(s.nextUpstream, "timeout")
	if r.Attempts <= 0 || r.NotOnError && r.NotOnTimeout && len(r.Codes) == 0 {
		return &route.Retry{Never: true}
	}
	return r
}

// backendTLSOf reads the Secret of proxy-ssl-secret, and what goes with it.
func (s *State) backendTLSOf(i *ingress) {
	set := &i.set
	serves := map[string]bool{}
	t := route.BackendTLS{Insecure: !set.tlsVerify, ServerName: set.tlsName}
	if set.tlsSecret != "" {
		n, err := i.object("Secret", "proxy-ssl-secret", set.tlsSecret)
		secret := s.secrets[n]
		switch {
		case err != nil:
			i.deny("%v", err)
		case secret == nil:
			i.deny("%sproxy-ssl-secret: there is no Secret %s", Prefix, n)
		default:
			if len(secret.Data["tls.crt"]) > 0 {
				if c := s.check(n); c.err != nil {
					i.deny("%sproxy-ssl-secret: %v", Prefix, c.err)
				} else {
					t.ClientCertificate = n.String()
					serves[n.String()] = true
				}
			}
			if set.tlsVerify {
				if t.CAs, err = s.authorities(n); err != nil {
					i.deny("%sproxy-ssl-verify: %v", Prefix, err)
				}
			}
		}
	}
	if set.tlsSecret != "" || set.tlsVerify || set.tlsName != "" {
		i.backendCert = i.obj.Name.String()
	}
	i.backendTLS = t
	s.serveCertificates(i.unit(), &i.certs, serves)
}

// speak is how the Ingress's endpoints are spoken to; variant tells apart what is spoken to the same Service differently.
func (i *ingress) speak(b *model.IngressBackend, namespace string, secure bool) (conf route.Backend, variant string) {
	protocol := i.set.protocol
	if protocol == "AUTO_HTTP" {
		protocol = map[bool]string{true: "HTTPS", false: "HTTP"}[secure]
	}
	conf.Protocol = route.HTTP1
	if protocol == "GRPC" || protocol == "GRPCS" {
		conf.Protocol, variant = route.HTTP2, "h2c"
	}
	if protocol != "HTTPS" && protocol != "GRPCS" {
		return conf, variant
	}
	variant = map[string]string{"HTTPS": "https", "GRPCS": "h2"}[protocol]
	t := i.backendTLS
	if t.ServerName == "" {
		t.ServerName = b.Service + "." + namespace + ".svc"
	}
	conf.TLS = &t
	if i.backendCert != "" {
		variant += "/" + i.backendCert
	}
	return conf, variant
}

// mirrorOf makes the backend that copies of requests go to.
func (s *State) mirrorOf(i *ingress) {
	if i.set.mirrorTarget == "" {
		return
	}
	scheme, host, port, err := readMirror(i.set.mirrorTarget)
	if err != nil {
		return // told already
	}
	conf := route.Backend{Protocol: route.HTTP1}
	if scheme == "https" {
		conf.TLS = &route.BackendTLS{ServerName: host, Insecure: true} // as in ingress-nginx; nobody waits for the answer
	}
	b := addressBackend(scheme, host, port, conf)
	i.mirror, i.mirrorHost = &b, i.set.mirrorHost
	if i.mirrorHost == "" {
		i.mirrorHost = host
	}
}

// blockedMatches are the requests that block-user-agents and block-referers of the ConfigMap shut out.
func blockedMatches(base route.Match, set *settings) (out []route.Match) {
	add := func(header string, patterns []string) {
		if len(patterns) == 0 {
			return
		}
		m := base
		m.Headers = append(slices.Clone(base.Headers), route.ValueMatch{Name: header, Regex: true, Value: strings.Join(patterns, "|")})
		out = append(out, m)
	}
	add("user-agent", set.blockedAgents)
	add("referer", set.blockedReferer)
	return out
}
