// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// ConfigKey is one row of the table of the ConfigMap's keys.
type ConfigKey struct {
	Name    string
	Verdict Verdict
	Values  string
	Note    string

	set func(*config, string) error
}

// ConfigKeys lists the table. Keys that are annotations as well have the annotation's meaning, as the default of all
// Ingresses.
func ConfigKeys() []ConfigKey {
	out := slices.Clone(configKeys)
	slices.SortFunc(out, func(a, b ConfigKey) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// asAnnotation are the keys that are the default of the annotation of the same name.
var asAnnotation = []string{
	"affinity-mode", "cors-allow-credentials", "custom-http-errors", "denylist-source-range", "enable-modsecurity", "force-ssl-redirect", "hsts",
	"hsts-include-subdomains", "hsts-max-age", "hsts-preload", "limit-rate", "limit-rate-after", "load-balance", "modsecurity-snippet",
	"preserve-trailing-slash", "proxy-body-size", "proxy-buffer-size", "proxy-buffering", "proxy-buffers-number", "proxy-busy-buffers-size",
	"proxy-connect-timeout", "proxy-cookie-domain", "proxy-cookie-path", "proxy-http-version", "proxy-max-temp-file-size", "proxy-next-upstream",
	"proxy-next-upstream-timeout", "proxy-next-upstream-tries", "proxy-read-timeout", "proxy-redirect-from", "proxy-redirect-to",
	"proxy-request-buffering", "proxy-send-timeout", "relative-redirects", "service-upstream", "ssl-redirect", "upstream-hash-by",
	"use-port-in-redirects", "whitelist-source-range", "client-body-buffer-size", "enable-opentelemetry", "opentelemetry-operation-name",
	"opentelemetry-trust-incoming-span",
}

var configKeys = func() (out []ConfigKey) {
	for _, name := range asAnnotation {
		a := annotationByName[name]
		out = append(out, ConfigKey{Name: name, Verdict: a.Verdict, Values: a.Values, Note: a.Note, set: ofSettings(a.set)})
	}
	return append(out, ownConfigKeys...)
}()

func ofSettings(set func(*settings, string) error) func(*config, string) error {
	return func(c *config, v string) error { return set(&c.set, v) }
}

func configBool(field func(*config) *bool) func(*config, string) error {
	return func(c *config, v string) error {
		b, err := strconv.ParseBool(strings.TrimSpace(v))
		if err != nil {
			return errors.New(`it should be "true" or "false"`)
		}
		*field(c) = b
		return nil
	}
}

func objectKey(field func(*config) *string) func(*config, string) error {
	return func(c *config, v string) error {
		ns, name, ok := strings.Cut(strings.TrimSpace(v), "/")
		if !ok || ns == "" || name == "" {
			return errors.New("it should be namespace/name")
		}
		*field(c) = ns + "/" + name
		return nil
	}
}

// mapPatterns reads nginx's map patterns between commas: text in any case, or "~" and "~*" with a regular expression.
func mapPatterns(field func(*settings) *[]string) func(*config, string) error {
	return func(c *config, v string) error {
		words, err := elements(v, nil)
		if err != nil {
			return err
		}
		var out []string
		for _, w := range words {
			switch {
			case strings.HasPrefix(w, "~*"):
				w = "(?is:.*(?:" + w[2:] + ").*)"
			case strings.HasPrefix(w, "~"):
				w = "(?s:.*(?:" + w[1:] + ").*)"
			default:
				w = "(?i:" + regexp.QuoteMeta(w) + ")"
			}
			if err := expression(w); err != nil {
				return err
			}
			out = append(out, w)
		}
		*field(&c.set) = out
		return nil
	}
}

func status(field func(*settings) *int, least int) func(*config, string) error {
	return func(c *config, v string) error {
		n, err := strconv.Atoi(strings.TrimSpace(v))
		if err != nil || n < least || n > 599 {
			return fmt.Errorf("it should be a status from %d to 599", least)
		}
		*field(&c.set) = n
		return nil
	}
}

// accepted makes rows of keys that have no effect, for one reason.
func accepted(note string, names ...string) (out []ConfigKey) {
	for _, n := range names {
		out = append(out, ConfigKey{Name: n, Verdict: Accepted, Note: note, set: func(*config, string) error { return nil }})
	}
	return out
}

func refused(note string, names ...string) (out []ConfigKey) {
	for _, n := range names {
		out = append(out, ConfigKey{Name: n, Verdict: Refused, Note: note})
	}
	return out
}

var ownConfigKeys = slices.Concat([]ConfigKey{
	{Name: "add-headers", Verdict: Honoured, Values: "namespace/ConfigMap", Note: "its keys and values are headers of every answer",
		set: objectKey(func(c *config) *string { return &c.set.addHeaders })},
	{Name: "proxy-set-headers", Verdict: Honoured, Values: "namespace/ConfigMap", Note: "its keys and values, which may have variables, are headers of every request",
		set: objectKey(func(c *config) *string { return &c.set.proxySetHeaders })},
	{Name: "hide-headers", Verdict: Honoured, Values: "headers", Note: "of backends, that clients do not get",
		set: ofSettings(list(func(s *settings) *[]string { return &s.hideHeaders }, checkHeader))},
	{Name: "global-allowed-response-headers", Verdict: Honoured, Values: "headers", Note: "those that custom-headers may set",
		set: ofSettings(list(func(s *settings) *[]string { return &s.allowedHeaders }, checkHeader))},
	{Name: "allow-cross-namespace-resources", Verdict: Honoured, Values: "true, false", Note: "annotations may name Secrets and ConfigMaps of other namespaces",
		set: configBool(func(c *config) *bool { return &c.crossNamespace })},
	{Name: "allow-backend-server-header", Verdict: Accepted, Note: "backends' Server header always passes; weft adds none of its own", set: configBool(func(*config) *bool { return new(bool) })},
	{Name: "default-backend-service", Verdict: Honoured, Values: "namespace/Service[:port]", Note: "what no rule matches; ingress-nginx has it as the flag --default-backend-service",
		set: func(c *config, v string) error {
			if _, _, ok := splitService(strings.TrimSpace(v)); !ok {
				return errors.New("it should be namespace/service or namespace/service:port")
			}
			c.defaultBackend = strings.TrimSpace(v)
			return nil
		}},
	{Name: "default-ssl-certificate", Verdict: Honoured, Values: "namespace/Secret", Note: "of hosts without one; of the controller's own ConfigMap alone. ingress-nginx has it as the flag --default-ssl-certificate",
		set: objectKey(func(c *config) *string { return &c.defaultCert })},
	{Name: "rewrite-root", Verdict: Honoured, Values: "strip (default), replace", Note: `weft's own: whether rewrite-target "/" takes a Prefix path off or replaces all of the path`,
		set: ofSettings(choice(func(s *settings) *string { return &s.rewriteRoot }, "strip", "replace"))},
	{Name: "http-redirect-code", Verdict: Honoured, Values: "301, 302, 307, 308 (default)", Note: "the status of redirects to TLS and between www and without",
		set: func(c *config, v string) error {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || !slices.Contains([]int{301, 302, 307, 308}, n) {
				return errors.New("it should be 301, 302, 307 or 308")
			}
			c.set.redirectCode = n
			return nil
		}},
	{Name: "no-tls-redirect-locations", Verdict: Honoured, Values: "paths (" + acmeChallenge + ")", Note: "rules whose path begins so are not redirected to TLS",
		set: ofSettings(list(func(s *settings) *[]string { return &s.noTLSRedirect }, nil))},
	{Name: "no-auth-locations", Verdict: Honoured, Values: "paths (" + acmeChallenge + ")", Note: "rules whose path begins so need no authentication",
		set: ofSettings(list(func(s *settings) *[]string { return &s.noAuth }, nil))},
	{Name: "limit-req-status-code", Verdict: Honoured, Values: "400 to 599 (503)", Note: "the answer to those above limit-rps and limit-rpm", set: status(func(s *settings) *int { return &s.limitStatus }, 400)},
	{Name: "limit-conn-status-code", Verdict: Honoured, Values: "400 to 599 (503)", Note: "the answer to those above limit-connections", set: status(func(s *settings) *int { return &s.limitConnStatus }, 400)},
	{Name: "retry-non-idempotent", Verdict: Honoured, Values: "true, false", Note: "non_idempotent of proxy-next-upstream for all", set: ofSettings(boolean(func(s *settings) *bool { return &s.retryAll }))},
	{Name: "enable-owasp-modsecurity-crs", Verdict: Honoured, Values: "true, false", Note: "enable-owasp-core-rules for all", set: ofSettings(boolean(func(s *settings) *bool { return &s.wafCoreRules }))},
	{Name: "disable-access-log", Verdict: Honoured, Values: "true, false", Note: "requests are not logged", set: notSettings(func(s *settings, v bool) { s.accessLog = v })},
	{Name: "disable-proxy-intercept-errors", Verdict: Honoured, Values: "true, false", Note: "custom-http-errors has no effect", set: notSettings(func(s *settings, v bool) { s.interceptErrors = v })},
	{Name: "block-cidrs", Verdict: Honoured, Values: "addresses and CIDRs", Note: "get 403 everywhere", set: ofSettings(prefixes(func(s *settings) *[]netip.Prefix { return &s.blocked }))},
	{Name: "block-user-agents", Verdict: Honoured, Values: "texts and regular expressions (~, ~*)", Note: "get 403 everywhere", set: mapPatterns(func(s *settings) *[]string { return &s.blockedAgents })},
	{Name: "block-referers", Verdict: Honoured, Values: "texts and regular expressions (~, ~*)", Note: "get 403 everywhere", set: mapPatterns(func(s *settings) *[]string { return &s.blockedReferer })},
	{Name: "use-forwarded-headers", Verdict: Honoured, Values: "true, false", Note: "X-Forwarded-* of the proxies in proxy-real-ip-cidr are believed, and what they say came over TLS is not redirected to it",
		set: configBool(func(c *config) *bool { return &c.forwardedHeaders })},
	{Name: "enable-real-ip", Verdict: Honoured, Values: "true, false", Note: "the same, for the address alone in ingress-nginx", set: configBool(func(c *config) *bool { return &c.forwardedHeaders })},
	{Name: "compute-full-forwarded-for", Verdict: Accepted, Values: "true, false", Note: "backends always get the whole chain of a trusted proxy's X-Forwarded-For", set: configBool(func(*config) *bool { return new(bool) })},
	{Name: "proxy-real-ip-cidr", Verdict: Honoured, Values: "CIDRs (all)", Note: "the proxies whose X-Forwarded-* headers are believed",
		set: func(c *config, v string) error {
			p, err := readPrefixes(v)
			if err == nil {
				c.trusted = p
			}
			return err
		}},
	{Name: "forwarded-for-header", Verdict: Honoured, Values: "X-Forwarded-For", Note: "no other header is believed",
		set: func(_ *config, v string) error {
			if !strings.EqualFold(strings.TrimSpace(v), "X-Forwarded-For") {
				return errors.New("weft knows X-Forwarded-For alone")
			}
			return nil
		}},
	{Name: "use-proxy-protocol", Verdict: Honoured, Values: "true, false", Note: "every connection begins with a PROXY header (version 1 or 2), which is believed of the proxies in proxy-real-ip-cidr", set: configBool(func(c *config) *bool { return &c.proxyProtocol })},
	{Name: "ssl-protocols", Verdict: Honoured, Values: "TLSv1.2 TLSv1.3 (both)", Note: "those of clients; older ones are left out",
		set: func(c *config, v string) error {
			least, most, err := readProtocols(v)
			if err == nil {
				c.minTLS, c.maxTLS = least, most
			}
			return err
		}},
	{Name: "ssl-ciphers", Verdict: Honoured, Values: "OpenSSL's names, joined by \":\"", Note: "for TLS 1.2, of those that weft has",
		set: func(c *config, v string) error {
			list, err := readCiphers(v)
			if err == nil {
				c.ciphers = list
			}
			return err
		}},
	{Name: "use-http2", Verdict: Honoured, Values: "true, false (true)", Note: "whether HTTP/2 is offered over TLS", set: configBool(func(c *config) *bool { return &c.http2 })},
	{Name: "ssl-reject-handshake", Verdict: Honoured, Values: "true, false", Note: "names that no Ingress has get no certificate", set: configBool(func(c *config) *bool { return &c.rejectHandshake })},
	{Name: "global-auth-url", Verdict: Honoured, Values: "URL", Note: "auth-url of all Ingresses without their own, unless enable-global-auth is false",
		set: ofSettings(text(func(s *settings) *string { return &s.globalAuth.url }, authURL))},
	{Name: "global-auth-method", Verdict: Honoured, Values: "method", Note: "its auth-method", set: ofSettings(choice(func(s *settings) *string { return &s.globalAuth.method }, methods...))},
	{Name: "global-auth-signin", Verdict: Honoured, Values: "URL", Note: "its auth-signin", set: ofSettings(text(func(s *settings) *string { return &s.globalAuth.signin }, template))},
	{Name: "global-auth-signin-redirect-param", Verdict: Honoured, Values: "name (rd)", Note: "its auth-signin-redirect-param", set: ofSettings(text(func(s *settings) *string { return &s.globalAuth.signinParam }, nil))},
	{Name: "global-auth-response-headers", Verdict: Honoured, Values: "headers", Note: "its auth-response-headers", set: ofSettings(list(func(s *settings) *[]string { return &s.globalAuth.responseHeaders }, checkHeader))},
	{Name: "global-auth-request-redirect", Verdict: Honoured, Values: "text", Note: "its auth-request-redirect", set: ofSettings(text(func(s *settings) *string { return &s.globalAuth.requestRedirect }, template))},
	{Name: "global-auth-cache-key", Verdict: Honoured, Values: "text with variables", Note: "its auth-cache-key", set: ofSettings(text(func(s *settings) *string { return &s.globalAuth.cacheKey }, template))},
	{Name: "global-auth-cache-duration", Verdict: Honoured, Values: "statuses and time (200 202 401 5m)", Note: "its auth-cache-duration",
		set: ofSettings(cacheDuration(func(s *settings) *[]route.CacheEntry { return &s.globalAuth.cacheFor }))},
	{Name: "global-auth-always-set-cookie", Verdict: Honoured, Values: "true, false", Note: "its auth-always-set-cookie", set: ofSettings(boolean(func(s *settings) *bool { return &s.globalAuth.alwaysSetCookie }))},
	{Name: "forwarded-for-proxy-protocol-header", Verdict: Accepted, Note: "the address of the PROXY header is the client's", set: func(*config, string) error { return nil }},
},
	accepted("weft's memory, threads and buffers need no tuning",
		"client-header-buffer-size", "large-client-header-buffers", "http2-max-field-size", "http2-max-header-size", "http2-max-requests",
		"http2-max-concurrent-streams", "map-hash-bucket-size", "server-name-hash-max-size", "server-name-hash-bucket-size",
		"proxy-headers-hash-max-size", "proxy-headers-hash-bucket-size", "variables-hash-bucket-size", "variables-hash-max-size",
		"max-worker-connections", "max-worker-open-files", "enable-multi-accept", "reuse-port", "worker-processes", "worker-cpu-affinity",
		"enable-aio-write", "lua-shared-dicts", "ssl-buffer-size", "ssl-session-cache-size", "grpc-buffer-size-kb", "limit-conn-zone-variable"),
	accepted("weft's gateway has its own timeouts for clients, set by its flags",
		"client-header-timeout", "client-body-timeout", "keep-alive", "keep-alive-requests", "proxy-protocol-header-timeout", "upstream-keepalive-connections",
		"upstream-keepalive-time", "upstream-keepalive-timeout", "upstream-keepalive-requests"),
	accepted("a change of configuration touches no connection, so nothing is reloaded", "worker-shutdown-timeout", "enable-serial-reloads"),
	accepted("the gateway's log is JSON with all of these; it is configured by its flags",
		"access-log-params", "access-log-path", "http-access-log-path", "stream-access-log-path", "enable-access-log-for-default-backend",
		"error-log-path", "error-log-level", "log-format-escape-none", "log-format-escape-json", "log-format-upstream", "log-format-stream",
		"disable-http-access-log", "disable-stream-access-log", "enable-syslog", "syslog-host", "syslog-port", "skip-access-log-urls", "enable-auth-access-log"),
	accepted("names are resolved by the gateway pod's own resolver, in both families, and both families are bound", "disable-ipv6", "disable-ipv6-dns", "bind-address"),
	accepted("headers are parsed strictly (RFC 9112): what is not valid is refused, and \"_\" is valid", "enable-underscores-in-headers", "ignore-invalid-headers"),
	accepted("weft adds no Server header", "server-tokens"),
	accepted("X-Forwarded-Host of trusted proxies is believed, and no other header", "forwarded-host-header"),
	accepted("early data can be replayed (RFC 8446 section 8): weft takes none", "ssl-early-data"),
	accepted("TLS's own parameters are weft's choice: TLS 1.2 and 1.3, strong curves, forward secrecy, tickets whose keys change",
		"ssl-ecdh-curve", "ssl-dh-param", "ssl-session-cache", "ssl-session-tickets", "ssl-session-ticket-key", "ssl-session-timeout", "ssl-prefer-server-ciphers"),
	accepted("every request has an X-Request-ID", "generate-request-id"),
	accepted("annotations are read as values, never pasted into a configuration: there is nothing to guard against",
		"annotations-risk-level", "annotation-value-word-blocklist", "strict-validate-path-type"),
	accepted("Prometheus metrics are always there, and no status page has to be guarded", "nginx-status-ipv4-whitelist", "nginx-status-ipv6-whitelist"),
	accepted("compression belongs to the application or a cache before the gateway",
		"use-gzip", "gzip-disable", "gzip-level", "gzip-min-length", "gzip-types", "enable-brotli", "brotli-level", "brotli-min-length", "brotli-types"),
	accepted("OCSP staples come with certificates, where a Secret has one under tls.ocsp-staple", "enable-ocsp"),
	accepted("spans are configured for the gateway as a whole",
		"opentelemetry-config", "otlp-collector-host", "otlp-collector-port", "otel-max-queuesize", "otel-schedule-delay-millis",
		"otel-max-export-batch-size", "otel-service-name", "otel-sampler", "otel-sampler-parent-based", "otel-sampler-ratio"),
	accepted("a default for bodies without a type makes clients guess", "default-type"),
	accepted("the request's URI is in the backend's request line, and X-Original-URI with custom-http-errors", "proxy-add-original-uri-header"),
	accepted("backend TLS is per rule", "proxy-ssl-location-only"),
	accepted("TCP and UDP are Gateway API's TCPRoute and UDPRoute",
		"proxy-stream-timeout", "proxy-stream-next-upstream", "proxy-stream-next-upstream-timeout", "proxy-stream-next-upstream-tries", "proxy-stream-responses"),
	accepted("it is nginx's own debugging", "debug-connections"),
	refused("weft has no GeoIP database", "use-geoip", "use-geoip2", "geoip2-autoreload-in-minutes"),
	refused("Jaeger's own protocol is at its end: use OpenTelemetry",
		"jaeger-collector-host", "jaeger-collector-port", "jaeger-endpoint", "jaeger-service-name", "jaeger-propagation-format", "jaeger-sampler-type",
		"jaeger-sampler-param", "jaeger-sampler-host", "jaeger-sampler-port", "jaeger-trace-context-header-name", "jaeger-debug-header",
		"jaeger-baggage-header", "jaeger-trace-baggage-header-prefix"),
	refused("weft runs no nginx, so arbitrary nginx configuration is refused",
		"allow-snippet-annotations", "main-snippet", "http-snippet", "server-snippet", "stream-snippet", "location-snippet", "global-auth-snippet"),
)

func notSettings(field func(*settings, bool)) func(*config, string) error {
	return func(c *config, v string) error {
		b, err := strconv.ParseBool(strings.TrimSpace(v))
		if err != nil {
			return errors.New(`it should be "true" or "false"`)
		}
		field(&c.set, !b)
		return nil
	}
}

var configKeyByName = func() map[string]*ConfigKey {
	m := map[string]*ConfigKey{}
	for k := range configKeys {
		m[configKeys[k].Name] = &configKeys[k]
	}
	return m
}()

// guarding are the keys whose mistakes must not open anything.
var guarding = []string{
	"whitelist-source-range", "denylist-source-range", "block-cidrs", "block-user-agents", "block-referers", "global-auth-url", "global-auth-method",
	"global-auth-cache-key", "global-auth-cache-duration", "enable-modsecurity", "modsecurity-snippet", "enable-owasp-modsecurity-crs",
}

// ofGateway are the keys that concern the gateway as a whole: they count in the controller's own ConfigMap alone.
var ofGateway = []string{
	"default-ssl-certificate", "use-forwarded-headers", "enable-real-ip", "proxy-real-ip-cidr", "use-proxy-protocol", "ssl-protocols", "ssl-ciphers",
	"use-http2", "ssl-reject-handshake",
}

// readConfig judges a ConfigMap; nil is one that is not there, and says nothing. own is the name of the controller's.
func readConfig(name, own model.Name, cm *model.ConfigMap) *config {
	c := &config{name: name, set: defaults(), http2: true, trusted: everywhere}
	if cm == nil {
		return c
	}
	for _, k := range slices.Sorted(maps.Keys(cm.Data)) {
		say := func(reason, format string, args ...any) {
			c.problems = append(c.problems, problem{reason: reason, message: fmt.Sprintf("ConfigMap %s: %s: ", name, k) + fmt.Sprintf(format, args...)})
		}
		key := configKeyByName[k]
		value := cm.Data[k]
		switch {
		case key == nil:
			say("UnknownConfiguration", "this is not a key of ingress-nginx's ConfigMap; it has no effect")
		case strings.TrimSpace(value) == "":
		case name != own && slices.Contains(ofGateway, k):
			say("InvalidConfiguration", "this concerns the gateway as a whole: it has an effect in the controller's own ConfigMap %s alone", own)
		case key.Verdict == Refused:
			if value != "false" {
				say("ConfigurationRefused", "refused: %s", key.Note)
			}
		default:
			if err := key.set(c, value); err != nil {
				if slices.Contains(guarding, k) {
					c.denied = append(c.denied, fmt.Sprintf("ConfigMap %s: %s: %q: %v", name, k, value, err))
				} else {
					say("InvalidConfiguration", "%q: %v; it has no effect", value, err)
				}
			}
		}
	}
	return c
}

// everywhere is ingress-nginx's default of proxy-real-ip-cidr.
var everywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
