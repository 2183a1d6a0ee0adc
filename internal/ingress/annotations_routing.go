// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"strings"

	"github.com/weft-net/weft/internal/route"
)

var canaryAnnotations = []Annotation{
	{
		Name: "canary", Group: "Canary", Verdict: Honoured, Values: "true, false", ofCanaries: true,
		Note: "the Ingress's Services get a part of the requests of the Ingress with the same host, path and path type; it takes all else from that one",
		set:  boolean(func(s *settings) *bool { return &s.canary }),
	},
	{
		Name: "canary-by-header", Group: "Canary", Verdict: Honoured, Values: "header", ofCanaries: true,
		Note: `requests whose header is "always" go to the canary, those with "never" do not; first of the three rules`,
		set:  text(func(s *settings) *string { return &s.canaryHeader }, checkHeader),
	},
	{
		Name: "canary-by-header-value", Group: "Canary", Verdict: Honoured, Values: "text", ofCanaries: true,
		Note: `the value that sends requests to the canary, in place of "always" and "never"`,
		set:  text(func(s *settings) *string { return &s.canaryHeaderValue }, nil),
	},
	{
		Name: "canary-by-header-pattern", Group: "Canary", Verdict: Honoured, Values: "regular expression (RE2)", ofCanaries: true,
		Note: "as canary-by-header-value, matched anywhere in the header; of no effect beside it",
		set:  text(func(s *settings) *string { return &s.canaryHeaderPattern }, expression),
	},
	{
		Name: "canary-by-cookie", Group: "Canary", Verdict: Honoured, Values: "cookie", ofCanaries: true,
		Note: `requests whose cookie is "always" go to the canary, those with "never" do not; after the header`,
		set:  text(func(s *settings) *string { return &s.canaryCookie }, checkCookie),
	},
	{
		Name: "canary-weight", Group: "Canary", Verdict: Honoured, Values: "0 to canary-weight-total", ofCanaries: true,
		Note: "share of the other requests that go to the canary",
		set:  number(func(s *settings) *int { return &s.canaryWeight }, 0),
	},
	{
		Name: "canary-weight-total", Group: "Canary", Verdict: Honoured, Values: "number (100)", ofCanaries: true,
		Note: "what canary-weight is a share of; less than 100 is 100, as in ingress-nginx",
		set:  number(func(s *settings) *int { return &s.canaryWeightTotal }, 1),
	},
}

var rewriteAnnotations = []Annotation{
	{
		Name: "rewrite-target", Group: "Rewrite", Verdict: Honoured, Values: "path with $1 to $9",
		Note: `replaces the whole path; $1 is what the first group of the path's regular expression matched. Every path of the host is then a regular
expression, as with use-regex. One exception: "/" on a pathType Prefix path without regular expression takes the path's prefix off (/app/a becomes
/a), and turns no other path into a regular expression; set rewrite-root: replace in the ConfigMap to have every request go to "/" as in ingress-nginx`,
		set: text(func(s *settings) *string { return &s.rewriteTarget }, template),
	},
	{
		Name: "use-regex", Group: "Rewrite", Verdict: Honoured, Values: "true, false",
		Note: "every path of the host, of whichever Ingress, is a regular expression (RE2), compared without case from the path's beginning, the longest first",
		set:  boolean(func(s *settings) *bool { return &s.useRegex }),
	},
	{
		Name: "app-root", Group: "Rewrite", Verdict: Honoured, Values: "path", Note: `"/" is redirected there (302)`,
		set: text(func(s *settings) *string { return &s.appRoot }, path),
	},
	{
		Name: "x-forwarded-prefix", Group: "Rewrite", Verdict: Honoured, Values: "path with $1 to $9", Note: "the backend gets it in X-Forwarded-Prefix",
		set: text(func(s *settings) *string { return &s.forwardedPrefix }, template),
	},
	{
		Name: "enable-rewrite-log", Group: "Rewrite", Verdict: Accepted, Values: "true, false",
		Note: "weft has no rewrite log: `weft gateway routes` tells which rule a request takes and why",
		set:  unused(boolean(ignoredBool)),
	},
	{
		Name: "upstream-vhost", Group: "Rewrite", Verdict: Honoured, Values: "host", Note: "the Host header that the backend gets; $service_name, $namespace and $service_port are known",
		set: text(func(s *settings) *string { return &s.upstreamHost }, func(v string) error {
			if !hostPortPattern.MatchString(v) {
				return errors.New("it should be a host name")
			}
			rest := strings.NewReplacer("$service_name", "", "${service_name}", "", "$namespace", "", "${namespace}", "", "$service_port", "",
				"${service_port}", "", "$ingress_name", "").Replace(v)
			if strings.Contains(rest, "$") {
				return errors.New("of nginx's variables only $service_name, $namespace, $service_port and $ingress_name are known here")
			}
			return nil
		}),
	},
	{
		Name: "preserve-host", Group: "Rewrite", Verdict: Accepted, Values: "true, false", Note: "the backend gets the request's own Host header, unless upstream-vhost says otherwise; other controllers have this annotation",
		set: unused(boolean(ignoredBool)),
	},
	{
		Name: "server-alias", Group: "Rewrite", Verdict: Honoured, Values: "hosts", Note: "more names of the host; a name that an Ingress has a rule for is not taken from it. Regular expressions are refused",
		set: func(s *settings, v string) error {
			v = strings.ToLower(v)
			return list(func(s *settings) *[]string { return &s.aliases }, checkHost)(s, v)
		},
	},
}

// redirectTarget checks what permanent-redirect and temporal-redirect take.
func redirectTarget(value string) error {
	if !strings.HasPrefix(value, "http://") && !strings.HasPrefix(value, "https://") && !strings.HasPrefix(value, "$scheme://") {
		return errors.New("it should be a URL that begins with http:// or https://")
	}
	return template(value)
}

func redirectCode(field func(*settings) *int, last int) func(*settings, string) error {
	return func(s *settings, text string) error {
		before := *field(s)
		if err := number(field, 300)(s, text); err != nil || *field(s) > last {
			*field(s) = before
			return fmt.Errorf("it should be a status of redirects, 300 to %d", last)
		}
		return nil
	}
}

var redirectAnnotations = []Annotation{
	{
		Name: "permanent-redirect", Group: "Redirect", Verdict: Honoured, Values: "URL", Note: "all requests are redirected there; nginx's variables, such as $request_uri, are known",
		set: text(func(s *settings) *string { return &s.permanentRedirect }, redirectTarget),
	},
	{
		Name: "permanent-redirect-code", Group: "Redirect", Verdict: Honoured, Values: "300 to 308 (301)", Note: "its status",
		set: redirectCode(func(s *settings) *int { return &s.permanentCode }, 308),
	},
	{
		Name: "temporal-redirect", Group: "Redirect", Verdict: Honoured, Values: "URL", Note: "as permanent-redirect, before it",
		set: text(func(s *settings) *string { return &s.temporalRedirect }, redirectTarget),
	},
	{
		Name: "temporal-redirect-code", Group: "Redirect", Verdict: Honoured, Values: "300 to 307 (302)", Note: "its status",
		set: redirectCode(func(s *settings) *int { return &s.temporalCode }, 307),
	},
	{
		Name: "from-to-www-redirect", Group: "Redirect", Verdict: Honoured, Values: "true, false",
		Note: "www.example.com is redirected to the host example.com, and the other way round, unless some Ingress has a rule for the name",
		set:  boolean(func(s *settings) *bool { return &s.fromToWWW }),
	},
	{
		Name: "relative-redirects", Group: "Redirect", Verdict: Accepted, Values: "true, false",
		Note: "weft's own redirects name scheme and host, which every client understands",
		set:  unused(boolean(ignoredBool)),
	},
	{
		Name: "use-port-in-redirects", Group: "Redirect", Verdict: Honoured, Values: "true, false", Note: "redirects to TLS name the port",
		set: boolean(func(s *settings) *bool { return &s.portInRedirects }),
	},
}

// redirect gives the target and status of an Ingress that redirects all; "" is one that does not.
func (s *settings) redirect() (string, int) {
	if s.temporalRedirect != "" {
		return s.temporalRedirect, s.temporalCode
	}
	return s.permanentRedirect, s.permanentCode
}

var tlsAnnotations = []Annotation{
	{
		Name: "ssl-redirect", Group: "TLS", Verdict: Honoured, Values: "true, false (true)", Note: "plain requests for a host with a certificate are redirected to https (308)",
		set: boolean(func(s *settings) *bool { return &s.sslRedirect }),
	},
	{
		Name: "force-ssl-redirect", Group: "TLS", Verdict: Honoured, Values: "true, false", Note: "the same without a certificate: TLS ends before the gateway",
		set: boolean(func(s *settings) *bool { return &s.forceSSLRedirect }),
	},
	{
		Name: "preserve-trailing-slash", Group: "TLS", Verdict: Honoured, Values: "true, false", Note: `the redirect keeps a "/" at the URL's end, which it drops otherwise, as ingress-nginx does`,
		set: boolean(func(s *settings) *bool { return &s.preserveTrailingSlash }),
	},
	{
		Name: "ssl-passthrough", Group: "TLS", Verdict: Honoured, Values: "true, false",
		Note: `TLS connections for the host go to the Service of path "/" as they are; no other annotation has an effect on them. No flag is needed`,
		set:  boolean(func(s *settings) *bool { return &s.sslPassthrough }),
	},
	{
		Name: "ssl-ciphers", Group: "TLS", Verdict: Honoured, Values: "OpenSSL's names, joined by \":\"",
		Note: "the host's cipher suites for TLS 1.2, of those that weft has; a list that leaves none is not usable. TLS 1.3's are not configurable",
		set: func(s *settings, v string) error {
			c, err := readCiphers(v)
			if err == nil {
				s.ciphers = c
			}
			return err
		},
	},
	{
		Name: "ssl-prefer-server-ciphers", Group: "TLS", Verdict: Accepted, Values: "true, false",
		Note: "weft chooses the suite by what the hardware of both sides is fast at; all that it has are strong",
		set:  unused(boolean(ignoredBool)),
	},
	{
		Name: "http2-push-preload", Group: "TLS", Verdict: Accepted, Values: "true, false", Note: "browsers have given up HTTP/2 push; the Link header reaches them as it is",
		set: unused(boolean(ignoredBool)),
	},
	{
		Name: "hsts", Group: "TLS", Verdict: Honoured, Values: "true, false (true)", Note: "Strict-Transport-Security on answers over TLS; beyond ingress-nginx, which has it in the ConfigMap only",
		set: boolean(func(s *settings) *bool { return &s.hsts }),
	},
	{
		Name: "hsts-max-age", Group: "TLS", Verdict: Honoured, Values: "seconds (31536000)", Note: "its max-age",
		set: number(func(s *settings) *int64 { return &s.hstsMaxAge }, 0),
	},
	{
		Name: "hsts-include-subdomains", Group: "TLS", Verdict: Honoured, Values: "true, false (true)", Note: "its includeSubDomains",
		set: boolean(func(s *settings) *bool { return &s.hstsSubdomains }),
	},
	{
		Name: "hsts-preload", Group: "TLS", Verdict: Honoured, Values: "true, false", Note: "its preload",
		set: boolean(func(s *settings) *bool { return &s.hstsPreload }),
	},
}

// opensslCiphers are OpenSSL's names of the TLS 1.2 cipher suites that weft has.
var opensslCiphers = map[string]string{
	"ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
	"ECDHE-RSA-AES128-GCM-SHA256":   "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
	"ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
	"ECDHE-RSA-AES256-GCM-SHA384":   "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
	"ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
	"ECDHE-RSA-CHACHA20-POLY1305":   "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	"ECDHE-ECDSA-AES128-SHA":        "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
	"ECDHE-RSA-AES128-SHA":          "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
	"ECDHE-ECDSA-AES256-SHA":        "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
	"ECDHE-RSA-AES256-SHA":          "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
}

// cipherGroups are OpenSSL's words for all strong suites: weft's own choice.
var cipherGroups = []string{"ALL", "HIGH", "DEFAULT", "ECDHE", "EECDH", "ECDHE+AESGCM", "EECDH+AESGCM", "ECDHE+CHACHA20"}

// readCiphers reads OpenSSL's notation. Names of suites that weft does not have are left out: they are weak.
func readCiphers(value string) (out []string, err error) {
	group := false
	for c := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ':' || r == ',' || r == ' ' }) {
		for _, g := range cipherGroups {
			group = group || c == g
		}
		if name, ok := opensslCiphers[c]; ok {
			out = append(out, name)
		} else if strings.HasPrefix(c, "TLS_ECDHE_") {
			out = append(out, c)
		}
	}
	if group {
		return nil, nil
	}
	if len(out) == 0 {
		return nil, errors.New("weft has none of these cipher suites for TLS 1.2")
	}
	return out, nil
}

var sessionAnnotations = []Annotation{
	{
		Name: "affinity", Group: "Session affinity", Verdict: Honoured, Values: "cookie", Note: "a cookie keeps clients with one endpoint", ofCanaries: true,
		set: choice(func(s *settings) *string { return &s.affinity }, "cookie"),
	},
	{
		Name: "affinity-mode", Group: "Session affinity", Verdict: Honoured, Values: "balanced (default), persistent", ofCanaries: true,
		Note: "both keep clients where they are for as long as the endpoint is there; balanced moves no session when a Deployment grows",
		set:  choice(func(s *settings) *string { return &s.affinityMode }, "balanced", "persistent"),
	},
	{
		Name: "affinity-canary-behavior", Group: "Session affinity", Verdict: Honoured, Values: "sticky (default), legacy", ofCanaries: true,
		Note: "sticky: who was served by the canary goes on to be; legacy: each request is shared out by weight anew",
		set:  choice(func(s *settings) *string { return &s.affinityCanary }, "sticky", "legacy"),
	},
	{
		Name: "session-cookie-name", Group: "Session affinity", Verdict: Honoured, Values: "cookie (INGRESSCOOKIE)", Note: "the cookie's name", ofCanaries: true,
		set: text(func(s *settings) *string { return &s.cookieName }, checkCookie),
	},
	{
		Name: "session-cookie-path", Group: "Session affinity", Verdict: Honoured, Values: "path", Note: "the cookie's Path; the rule's path where it is not set, and none where that is a regular expression", ofCanaries: true,
		set: text(func(s *settings) *string { return &s.cookiePath }, cookieAttribute),
	},
	{
		Name: "session-cookie-domain", Group: "Session affinity", Verdict: Honoured, Values: "domain", Note: "the cookie's Domain", ofCanaries: true,
		set: text(func(s *settings) *string { return &s.cookieDomain }, cookieAttribute),
	},
	{
		Name: "session-cookie-samesite", Group: "Session affinity", Verdict: Honoured, Values: "None, Lax, Strict", Note: "the cookie's SameSite", ofCanaries: true,
		set: choice(func(s *settings) *string { return &s.cookieSameSite }, "None", "Lax", "Strict"),
	},
	{
		Name: "session-cookie-conditional-samesite-none", Group: "Session affinity", Verdict: Accepted, Values: "true, false", ofCanaries: true,
		Note: "it was for browsers of before 2020",
		set:  unused(boolean(ignoredBool)),
	},
	{
		Name: "session-cookie-secure", Group: "Session affinity", Verdict: Honoured, Values: "true, false", Note: "the cookie's Secure, also on plain connections; over TLS it is always set", ofCanaries: true,
		set: boolean(func(s *settings) *bool { return &s.cookieSecure }),
	},
	{
		Name: "session-cookie-max-age", Group: "Session affinity", Verdict: Honoured, Values: "seconds", Note: "how long the session lasts, in the cookie's Max-Age as well", ofCanaries: true,
		set: number(func(s *settings) *int64 { return &s.cookieMaxAge }, 0),
	},
	{
		Name: "session-cookie-expires", Group: "Session affinity", Verdict: Honoured, Values: "seconds", Note: "the same for browsers that know Expires only; session-cookie-max-age goes first", ofCanaries: true,
		set: number(func(s *settings) *int64 { return &s.cookieExpires }, 0),
	},
	{
		Name: "session-cookie-change-on-failure", Group: "Session affinity", Verdict: Honoured, Values: "true, false", Note: "a session moves to another endpoint when its own can't be reached", ofCanaries: true,
		set: boolean(func(s *settings) *bool { return &s.cookieChangeOnFailure }),
	},
}

func cookieAttribute(v string) error {
	if strings.ContainsAny(v, "; ,") {
		return errors.New("it holds a character that a cookie's attribute can't have")
	}
	return nil
}

// cors makes the filter that enable-cors asks for, or nil.
func (s *settings) cors() *route.CORS {
	if !s.corsEnabled {
		return nil
	}
	return &route.CORS{
		AllowOrigins: s.corsOrigins, AllowMethods: s.corsMethods, AllowHeaders: s.corsHeaders, ExposeHeaders: s.corsExpose,
		AllowCredentials: s.corsCredentials, OneLabel: true, MaxAge: int32(s.corsMaxAge),
	}
}
