// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

var basicAuthAnnotations = []Annotation{
	{
		Name: "auth-type", Group: "Basic authentication", Verdict: Honoured, Values: "basic", closed: true,
		Note: "requests need a name and password. digest is refused: browsers still know it, but its hashes are MD5",
		set: func(s *settings, v string) error {
			if strings.EqualFold(strings.TrimSpace(v), "digest") {
				return errors.New(`digest authentication is refused: use "basic" over TLS`)
			}
			return choice(func(s *settings) *string { return &s.authType }, "basic")(s, v)
		},
	},
	{
		Name: "auth-secret", Group: "Basic authentication", Verdict: Honoured, Values: "Secret", closed: true,
		Note: "who may: hashes of htpasswd(5), which may be bcrypt, MD5 (apr1), SHA or crypt",
		set:  text(func(s *settings) *string { return &s.authSecret }, nil),
	},
	{
		Name: "auth-secret-type", Group: "Basic authentication", Verdict: Honoured, Values: "auth-file (default), auth-map", closed: true,
		Note: "auth-file: the Secret's key \"auth\" is a file of htpasswd; auth-map: its keys are names, its values hashes",
		set:  choice(func(s *settings) *string { return &s.authSecretType }, "auth-file", "auth-map"),
	},
	{
		Name: "auth-realm", Group: "Basic authentication", Verdict: Honoured, Values: "text", Note: "what browsers show",
		set: text(func(s *settings) *string { return &s.authRealm }, func(v string) error {
			if strings.ContainsAny(v, `"\`) {
				return errors.New("quotes and backslashes can't be in it")
			}
			return nil
		}),
	},
}

// authURL checks a URL in which variables may be.
func authURL(value string) error {
	if err := template(value); err != nil {
		return err
	}
	scheme, rest, ok := strings.Cut(value, "://")
	if !ok || scheme != "http" && scheme != "https" && scheme != "$scheme" {
		return errors.New("it should be a URL that begins with http:// or https://")
	}
	host, _, _ := strings.Cut(rest, "/")
	if host == "" || !hostPortPattern.MatchString(host) {
		return fmt.Errorf("%q is not a host", host)
	}
	return nil
}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}

var externalAuthAnnotations = []Annotation{
	{
		Name: "auth-url", Group: "External authentication", Verdict: Honoured, Values: "URL", closed: true,
		Note: "each request is asked about there: 2xx lets it pass, 401 and 403 are the answer, all else is 500",
		set:  text(func(s *settings) *string { return &s.auth.url }, authURL),
	},
	{
		Name: "auth-method", Group: "External authentication", Verdict: Honoured, Values: "method", closed: true, Note: "the question's; GET where it is not set",
		set: choice(func(s *settings) *string { return &s.auth.method }, methods...),
	},
	{
		Name: "auth-signin", Group: "External authentication", Verdict: Honoured, Values: "URL", Note: "where a 401 sends browsers (302)",
		set: text(func(s *settings) *string { return &s.auth.signin }, func(v string) error {
			if strings.HasPrefix(v, "/") {
				return template(v)
			}
			return authURL(v)
		}),
	},
	{
		Name: "auth-signin-redirect-param", Group: "External authentication", Verdict: Honoured, Values: "name (rd)", Note: "the query parameter that tells it where they came from",
		set: text(func(s *settings) *string { return &s.auth.signinParam }, func(v string) error {
			if url.QueryEscape(v) != v {
				return errors.New("it should be the name of a query parameter")
			}
			return nil
		}),
	},
	{
		Name: "auth-response-headers", Group: "External authentication", Verdict: Honoured, Values: "headers", Note: "of the answer, given to the backend",
		set: list(func(s *settings) *[]string { return &s.auth.responseHeaders }, checkHeader),
	},
	{
		Name: "auth-proxy-set-headers", Group: "External authentication", Verdict: Honoured, Values: "ConfigMap", closed: true, Note: "headers of the question",
		set: text(func(s *settings) *string { return &s.auth.setHeaders }, nil),
	},
	{
		Name: "auth-request-redirect", Group: "External authentication", Verdict: Honoured, Values: "text", Note: "X-Auth-Request-Redirect of the question; $request_uri where it is not set",
		set: text(func(s *settings) *string { return &s.auth.requestRedirect }, template),
	},
	{
		Name: "auth-cache-key", Group: "External authentication", Verdict: Honoured, Values: "text with variables", closed: true,
		Note: "answers are remembered by it, for each Ingress by itself",
		set:  text(func(s *settings) *string { return &s.auth.cacheKey }, template),
	},
	{
		Name: "auth-cache-duration", Group: "External authentication", Verdict: Honoured, Values: "statuses and time (200 202 401 5m)", closed: true,
		Note: "for how long",
		set:  cacheDuration(func(s *settings) *[]route.CacheEntry { return &s.auth.cacheFor }),
	},
	{
		Name: "auth-always-set-cookie", Group: "External authentication", Verdict: Honoured, Values: "true, false",
		Note: "the answer's cookies reach the client whatever the backend's status",
		set:  boolean(func(s *settings) *bool { return &s.auth.alwaysSetCookie }),
	},
	{
		Name: "auth-keepalive", Group: "External authentication", Verdict: Accepted, Values: "number", Note: "connections to the authentication server are always kept",
		set: unused(number(ignoredInt, 0)),
	},
	{
		Name: "auth-keepalive-share-vars", Group: "External authentication", Verdict: Accepted, Values: "true, false", Note: "the question always has the request's X-Request-ID",
		set: unused(boolean(ignoredBool)),
	},
	{
		Name: "auth-keepalive-requests", Group: "External authentication", Verdict: Accepted, Values: "number", Note: "connections are kept for as long as both sides want",
		set: unused(number(ignoredInt, 0)),
	},
	{
		Name: "auth-keepalive-timeout", Group: "External authentication", Verdict: Accepted, Values: "seconds", Note: "connections are kept for as long as both sides want",
		set: unused(number(ignoredInt, 0)),
	},
	{
		Name: "enable-global-auth", Group: "External authentication", Verdict: Honoured, Values: "true, false (true)", closed: true,
		Note: "false: global-auth-url of the ConfigMap does not apply",
		set:  boolean(func(s *settings) *bool { return &s.useGlobalAuth }),
	},
}

// cacheDuration reads nginx's proxy_cache_valid: "200 202 30m, 401 5m".
func cacheDuration(field func(*settings) *[]route.CacheEntry) func(*settings, string) error {
	return func(s *settings, value string) error {
		var out []route.CacheEntry
		for part := range strings.SplitSeq(value, ",") {
			words := strings.Fields(part)
			if len(words) == 0 {
				continue
			}
			d, err := nginxTime(words[len(words)-1])
			if err != nil {
				return err
			}
			e := route.CacheEntry{For: route.Duration(d)}
			for _, w := range words[:len(words)-1] {
				if w == "any" {
					e.Statuses = nil
					break
				}
				code, err := strconv.Atoi(w)
				if err != nil || code < 100 || code > 599 {
					return fmt.Errorf("%q is not a status", w)
				}
				e.Statuses = append(e.Statuses, code)
			}
			if len(words) == 1 { // nginx: 200, 301 and 302
				e.Statuses = []int{200, 301, 302}
			}
			out = append(out, e)
		}
		if len(out) == 0 {
			return errors.New(`it should be like "200 202 30m, 401 5m"`)
		}
		*field(s) = out
		return nil
	}
}

// nginxTime reads nginx's notation of one time: 30, 500ms, 10s, 5m, 2h, 1d, 1w, 1M, 1y.
func nginxTime(text string) (time.Duration, error) {
	units := []struct {
		suffix string
		unit   time.Duration
	}{
		{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour},
		{"w", 7 * 24 * time.Hour}, {"M", 30 * 24 * time.Hour}, {"y", 365 * 24 * time.Hour}, {"", time.Second},
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 32)
		if err != nil || n < 0 || n > int64(100*365*24*time.Hour)/int64(u.unit) {
			break
		}
		return time.Duration(n) * u.unit, nil
	}
	return 0, fmt.Errorf("%q is not a time such as 10s or 5m", text)
}

var clientCertificateAnnotations = []Annotation{
	{
		Name: "auth-tls-secret", Group: "Client certificates", Verdict: Honoured, Values: "Secret", closed: true,
		Note: "clients need a certificate that the Secret's ca.crt vouches for; it counts for the whole host, and plain requests are redirected to TLS in any case",
		set:  text(func(s *settings) *string { return &s.clientSecret }, nil),
	},
	{
		Name: "auth-tls-verify-client", Group: "Client certificates", Verdict: Honoured, Values: "on (default), off, optional, optional_no_ca", closed: true,
		Note: "optional: one need not be shown; optional_no_ca: and need not be valid, backends are told",
		set:  choice(func(s *settings) *string { return &s.clientVerify }, "on", "off", "optional", "optional_no_ca"),
	},
	{
		Name: "auth-tls-verify-depth", Group: "Client certificates", Verdict: Honoured, Values: "number (1)", closed: true, Note: "how many certificates may lie between the client's and a CA's",
		set: func(s *settings, v string) error {
			if err := number(func(s *settings) *int { return &s.clientDepth }, 0)(s, v); err != nil {
				return err
			}
			if s.clientDepth == 0 { // as in ingress-nginx
				s.clientDepth = 1
			}
			return nil
		},
	},
	{
		Name: "auth-tls-error-page", Group: "Client certificates", Verdict: Honoured, Values: "URL", Note: "where clients without a valid one are sent, in place of 400",
		set: text(func(s *settings) *string { return &s.clientError }, func(v string) error {
			if !strings.HasPrefix(v, "/") {
				return authURL(v)
			}
			return template(v)
		}),
	},
	{
		Name: "auth-tls-pass-certificate-to-upstream", Group: "Client certificates", Verdict: Honoured, Values: "true, false", Note: "the backend gets it in ssl-client-cert",
		set: boolean(func(s *settings) *bool { return &s.clientPass }),
	},
	{
		Name: "auth-tls-match-cn", Group: "Client certificates", Verdict: Honoured, Values: "CN=regular expression (RE2)", closed: true, Note: "subjects that do not match get 403",
		set: text(func(s *settings) *string { return &s.clientMatchCN }, func(v string) error {
			if !strings.HasPrefix(v, "CN=") {
				return errors.New(`it should begin with "CN="`)
			}
			return expression(v)
		}),
	},
}

var accessAnnotations = []Annotation{
	{
		Name: "whitelist-source-range", Group: "Source addresses", Verdict: Honoured, Values: "addresses and CIDRs", closed: true,
		Note: "only these may: 403. allowlist-source-range goes first",
		set:  prefixes(func(s *settings) *[]netip.Prefix { return &s.allow }),
	},
	{
		Name: "allowlist-source-range", Group: "Source addresses", Verdict: Honoured, Values: "addresses and CIDRs", closed: true, Note: "the same by its newer name",
		set: prefixes(func(s *settings) *[]netip.Prefix { return &s.allow }),
	},
	{
		Name: "denylist-source-range", Group: "Source addresses", Verdict: Honoured, Values: "addresses and CIDRs", closed: true, Note: "these may not: 403",
		set: prefixes(func(s *settings) *[]netip.Prefix { return &s.deny }),
	},
	{
		Name: "satisfy", Group: "Source addresses", Verdict: Honoured, Values: "all (default), any", closed: true,
		Note: "any: a permitted address, a password or the external server's consent suffices",
		set:  choice(func(s *settings) *string { return &s.satisfy }, "all", "any"),
	},
}

var limitAnnotations = []Annotation{
	{
		Name: "limit-rps", Group: "Rate limits", Verdict: Honoured, Values: "number", closed: true,
		Note: "requests of one address each second, in each gateway pod; more are 503, or limit-req-status-code of the ConfigMap",
		set:  number(func(s *settings) *int { return &s.limitRPS }, 0),
	},
	{
		Name: "limit-rpm", Group: "Rate limits", Verdict: Honoured, Values: "number", closed: true, Note: "each minute",
		set: number(func(s *settings) *int { return &s.limitRPM }, 0),
	},
	{
		Name: "limit-connections", Group: "Rate limits", Verdict: Honoured, Values: "number", closed: true, Note: "requests of one address at a time",
		set: number(func(s *settings) *int { return &s.limitConnections }, 0),
	},
	{
		Name: "limit-burst-multiplier", Group: "Rate limits", Verdict: Honoured, Values: "number (5)", Note: "how many times the rate may come at once",
		set: number(func(s *settings) *int { return &s.limitBurst }, 1),
	},
	{
		Name: "limit-whitelist", Group: "Rate limits", Verdict: Honoured, Values: "addresses and CIDRs", Note: "addresses without limits. limit-allowlist goes first",
		set: prefixes(func(s *settings) *[]netip.Prefix { return &s.limitExempt }),
	},
	{
		Name: "limit-allowlist", Group: "Rate limits", Verdict: Honoured, Values: "addresses and CIDRs", Note: "the same by its newer name",
		set: prefixes(func(s *settings) *[]netip.Prefix { return &s.limitExempt }),
	},
	{
		Name: "limit-rate", Group: "Rate limits", Verdict: Honoured, Values: "KiB/s (0: no limit)", Note: "how fast one answer is sent",
		set: number(func(s *settings) *int64 { return &s.limitRate }, 0),
	},
	{
		Name: "limit-rate-after", Group: "Rate limits", Verdict: Honoured, Values: "KiB", Note: "how much of it is sent at full speed first",
		set: number(func(s *settings) *int64 { return &s.limitRateAfter }, 0),
	},
	{
		Name: "proxy-body-size", Group: "Rate limits", Verdict: Honoured, Values: "size (1m; 0: no limit)", Note: "larger request bodies are 413",
		set: size(func(s *settings) *int64 { return &s.bodySize }),
	},
}
