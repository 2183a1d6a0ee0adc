// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/weft-net/weft/internal/route"
)

var originPattern = regexp.MustCompile(`^([a-z][a-z0-9+.-]*://(\*\.)?[A-Za-z0-9.-]+(:\d+)?|\*|null)$`)

var methodPattern = regexp.MustCompile(`^[A-Za-z]+$`)

var corsAnnotations = []Annotation{
	{
		Name: "enable-cors", Group: "CORS", Verdict: Honoured, Values: "true, false", Note: "preflight requests are answered, and answers get the headers of the Fetch standard",
		set: boolean(func(s *settings) *bool { return &s.corsEnabled }),
	},
	{
		Name: "cors-allow-origin", Group: "CORS", Verdict: Honoured, Values: "origins (*)", Note: "https://example.com, https://*.example.com:8443 (one label), null, *. An origin that is not one is an error, and no other origin is allowed in its place",
		set: list(func(s *settings) *[]string { return &s.corsOrigins }, func(v string) error {
			if !originPattern.MatchString(v) {
				return fmt.Errorf("%q is not an origin such as https://example.com", v)
			}
			return nil
		}),
		closed: true,
	},
	{
		Name: "cors-allow-methods", Group: "CORS", Verdict: Honoured, Values: "methods (GET, PUT, POST, DELETE, PATCH, OPTIONS)", Note: "Access-Control-Allow-Methods",
		set: list(func(s *settings) *[]string { return &s.corsMethods }, func(v string) error {
			if !methodPattern.MatchString(v) {
				return fmt.Errorf("%q is not a method", v)
			}
			return nil
		}),
	},
	{
		Name: "cors-allow-headers", Group: "CORS", Verdict: Honoured, Values: "headers (DNT, Keep-Alive, User-Agent, ...)", Note: "Access-Control-Allow-Headers",
		set: list(func(s *settings) *[]string { return &s.corsHeaders }, checkHeader),
	},
	{
		Name: "cors-expose-headers", Group: "CORS", Verdict: Honoured, Values: "headers", Note: "Access-Control-Expose-Headers",
		set: list(func(s *settings) *[]string { return &s.corsExpose }, checkHeader),
	},
	{
		Name: "cors-allow-credentials", Group: "CORS", Verdict: Honoured, Values: "true, false (true)", Note: "Access-Control-Allow-Credentials",
		set: boolean(func(s *settings) *bool { return &s.corsCredentials }),
	},
	{
		Name: "cors-max-age", Group: "CORS", Verdict: Honoured, Values: "seconds (1728000)", Note: "Access-Control-Max-Age",
		set: number(func(s *settings) *int { return &s.corsMaxAge }, 0),
	},
}

// readStatuses reads statuses of errors between commas.
func readStatuses(value string) (out []int, err error) {
	for e := range strings.SplitSeq(value, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		n, err := strconv.Atoi(e)
		if err != nil || n < 400 || n > 599 {
			return nil, fmt.Errorf("%q is not a status from 400 to 599", e)
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

var serviceNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

var answerAnnotations = []Annotation{
	{
		Name: "custom-http-errors", Group: "Answers", Verdict: Honoured, Values: "statuses (400 to 599)", Note: "the default backend writes the answer in place of these, told what it is for in the X-Code, X-Format, X-Original-URI, X-Namespace, X-Ingress-Name, X-Service-Name, X-Service-Port and X-Request-ID headers",
		set: func(s *settings, v string) error {
			list, err := readStatuses(v)
			if err == nil {
				s.errorStatuses = list
			}
			return err
		},
	},
	{
		Name: "default-backend", Group: "Answers", Verdict: Honoured, Values: "Service of the namespace", Note: "gets the requests when the rule's Service has no endpoints, and custom-http-errors; at its first port",
		set: text(func(s *settings) *string { return &s.defaultBackend }, func(v string) error {
			if !serviceNamePattern.MatchString(v) {
				return errors.New("it should be the name of a Service")
			}
			return nil
		}),
	},
	{
		Name: "disable-proxy-intercept-errors", Group: "Answers", Verdict: Honoured, Values: "true, false", Note: "custom-http-errors has no effect",
		set: func(s *settings, v string) error {
			off := false
			err := boolean(func(*settings) *bool { return &off })(s, v)
			if err == nil {
				s.interceptErrors = !off
			}
			return err
		},
	},
	{
		Name: "custom-headers", Group: "Answers", Verdict: Honoured, Values: "ConfigMap", closed: true,
		Note: "response headers; each must be in global-allowed-response-headers of the administrator's ConfigMap",
		set:  text(func(s *settings) *string { return &s.customHeaders }, nil),
	},
	{
		Name: "proxy-cookie-domain", Group: "Answers", Verdict: Honoured, Values: "off (default), or two words", Note: "the Domain of the backend's cookies: the first is replaced by the second; ~ begins a regular expression (RE2)",
		set: replacement(func(s *settings) *[]route.Replacement { return &s.cookieDomains }),
	},
	{
		Name: "proxy-cookie-path", Group: "Answers", Verdict: Honoured, Values: "off (default), or two words", Note: "the same for their Path",
		set: replacement(func(s *settings) *[]route.Replacement { return &s.cookiePaths }),
	},
	{
		Name: "proxy-redirect-from", Group: "Answers", Verdict: Honoured, Values: "off (default), default, text", Note: "the beginning of the backend's Location and Refresh headers; \"default\" does nothing, as there is no other URL between weft and the backend",
		set: text(func(s *settings) *string { return &s.redirectFrom }, nil),
	},
	{
		Name: "proxy-redirect-to", Group: "Answers", Verdict: Honoured, Values: "text", Note: "what replaces it",
		set: text(func(s *settings) *string { return &s.redirectTo }, template),
	},
}

// replacement reads the two words of nginx's proxy_cookie_domain and proxy_cookie_path.
func replacement(field func(*settings) *[]route.Replacement) func(*settings, string) error {
	return func(s *settings, value string) error {
		words := strings.Fields(value)
		if len(words) == 1 && words[0] == "off" {
			*field(s) = nil
			return nil
		}
		if len(words) != 2 {
			return errors.New(`it should be "off" or two words: what is replaced, and by what`)
		}
		r := route.Replacement{From: words[0], To: route.Template(words[1])}
		if rest, ok := strings.CutPrefix(r.From, "~"); ok {
			r.Regex = true
			if r.From, ok = strings.CutPrefix(rest, "*"); ok {
				r.From = "(?i)" + r.From
			} else {
				r.From = rest
			}
			if err := expression(r.From); err != nil {
				return err
			}
		}
		if err := template(string(r.To)); err != nil {
			return err
		}
		*field(s) = []route.Replacement{r}
		return nil
	}
}

var backendAnnotations = []Annotation{
	{
		Name: "backend-protocol", Group: "Backend", Verdict: Honoured, Values: "HTTP (default), HTTPS, AUTO_HTTP, GRPC, GRPCS", closed: true,
		Note: "what endpoints speak; AUTO_HTTP is as the client does. FCGI is refused: have a web server speak FastCGI beside the application",
		set: func(s *settings, v string) error {
			if strings.EqualFold(strings.TrimSpace(v), "FCGI") {
				return errors.New("weft does not speak FastCGI: put a web server such as nginx or Caddy into the application's pod and name its port")
			}
			return choice(func(s *settings) *string { return &s.protocol }, "HTTP", "HTTPS", "AUTO_HTTP", "GRPC", "GRPCS")(s, v)
		},
	},
	{
		Name: "fastcgi-index", Group: "Backend", Verdict: Refused, Values: "file", Note: "weft does not speak FastCGI",
	},
	{
		Name: "fastcgi-params-configmap", Group: "Backend", Verdict: Refused, Values: "ConfigMap", Note: "weft does not speak FastCGI",
	},
	{
		Name: "service-upstream", Group: "Backend", Verdict: Honoured, Values: "true, false", Note: "requests go to the Service's cluster IP, not to its endpoints",
		set: boolean(func(s *settings) *bool { return &s.serviceUpstream }),
	},
	{
		Name: "load-balance", Group: "Backend", Verdict: Honoured, Values: "round_robin, ewma, ip_hash", ofCanaries: true,
		Note: "how an endpoint is chosen; without it, the less busy of two. chash, chashsubset, sticky_balanced and sticky_persistent are names of what other annotations ask for, and have no effect by themselves",
		set:  choice(func(s *settings) *string { return &s.balance }, "round_robin", "ewma", "ip_hash", "chash", "chashsubset", "sticky_balanced", "sticky_persistent"),
	},
	{
		Name: "upstream-hash-by", Group: "Backend", Verdict: Honoured, Values: "text with variables", ofCanaries: true, Note: "requests with the same value go to the same endpoint",
		set: text(func(s *settings) *string { return &s.hashBy }, template),
	},
	{
		Name: "upstream-hash-by-subset", Group: "Backend", Verdict: Honoured, Values: "true, false", ofCanaries: true, Note: "to the same few endpoints",
		set: boolean(func(s *settings) *bool { return &s.hashSubset }),
	},
	{
		Name: "upstream-hash-by-subset-size", Group: "Backend", Verdict: Honoured, Values: "number (3)", ofCanaries: true, Note: "to how many",
		set: number(func(s *settings) *int { return &s.hashSubsetSize }, 1),
	},
}

// nextUpstreamWords are those of nginx's proxy_next_upstream.
var nextUpstreamWords = []string{
	"error", "timeout", "invalid_header", "http_500", "http_502", "http_503", "http_504", "http_403", "http_404", "http_429", "non_idempotent", "off",
}

func readNextUpstream(value string) ([]string, error) {
	words := strings.Fields(value)
	for _, w := range words {
		if !slices.Contains(nextUpstreamWords, w) {
			return nil, fmt.Errorf("%q is not one of %s", w, strings.Join(nextUpstreamWords, ", "))
		}
	}
	return words, nil
}

var proxyAnnotations = []Annotation{
	{
		Name: "proxy-connect-timeout", Group: "Proxy", Verdict: Honoured, Values: "seconds (5)", Note: "for a connection to an endpoint",
		set: seconds(func(s *settings) *time.Duration { return &s.connectTimeout }, 1),
	},
	{
		Name: "proxy-read-timeout", Group: "Proxy", Verdict: Honoured, Values: "seconds (60)", Note: "the longest silence of an endpoint: 504. WebSockets obey it too",
		set: seconds(func(s *settings) *time.Duration { return &s.readTimeout }, 1),
	},
	{
		Name: "proxy-send-timeout", Group: "Proxy", Verdict: Honoured, Values: "seconds (60)", Note: "the longest time in which it takes nothing of a request",
		set: seconds(func(s *settings) *time.Duration { return &s.sendTimeout }, 1),
	},
	{
		Name: "proxy-next-upstream", Group: "Proxy", Verdict: Honoured, Values: "error, timeout, http_502, ..., non_idempotent, off", Note: "when another endpoint is asked: error is a connection that can't be made or breaks. Requests that reached one are sent again when their method is idempotent, or with non_idempotent",
		set: func(s *settings, v string) error {
			words, err := readNextUpstream(v)
			if err == nil {
				s.nextUpstream = words
			}
			return err
		},
	},
	{
		Name: "proxy-next-upstream-tries", Group: "Proxy", Verdict: Honoured, Values: "number (3; 0: 11)", Note: "how many are asked at most",
		set: number(func(s *settings) *int { return &s.nextTries }, 0),
	},
	{
		Name: "proxy-next-upstream-timeout", Group: "Proxy", Verdict: Honoured, Values: "seconds (0: no limit)", Note: "for how long",
		set: seconds(func(s *settings) *time.Duration { return &s.nextTimeout }, 0),
	},
	{
		Name: "proxy-request-buffering", Group: "Proxy", Verdict: Honoured, Values: "on, off", Note: "on: the whole body is read before an endpoint is asked. Without it weft streams",
		set: onOff(func(s *settings, v bool) { s.bufferRequest = &v }),
	},
	{
		Name: "proxy-buffering", Group: "Proxy", Verdict: Honoured, Values: "on, off (default)", Note: "on: an endpoint is done before a slow client is",
		set: onOff(func(s *settings, v bool) { s.bufferResponse = v }),
	},
	{
		Name: "proxy-buffer-size", Group: "Proxy", Verdict: Accepted, Values: "size", Note: "weft's buffers grow with the heads they hold, up to a fixed limit", set: unused(size(ignoredSize)),
	},
	{
		Name: "proxy-buffers-number", Group: "Proxy", Verdict: Accepted, Values: "number", Note: "weft's buffers need no tuning", set: unused(number(ignoredInt, 1)),
	},
	{
		Name: "proxy-busy-buffers-size", Group: "Proxy", Verdict: Accepted, Values: "size", Note: "weft's buffers need no tuning", set: unused(size(ignoredSize)),
	},
	{
		Name: "proxy-max-temp-file-size", Group: "Proxy", Verdict: Accepted, Values: "size", Note: "weft writes no bodies to files", set: unused(size(ignoredSize)),
	},
	{
		Name: "client-body-buffer-size", Group: "Proxy", Verdict: Accepted, Values: "size", Note: "bodies are streamed, or bounded by proxy-body-size", set: unused(size(ignoredSize)),
	},
	{
		Name: "proxy-http-version", Group: "Proxy", Verdict: Accepted, Values: "1.0, 1.1", Note: "endpoints are always spoken to in HTTP/1.1, which servers of 1.0 understand",
		set: unused(choice(ignoredString, "1.0", "1.1")),
	},
	{
		Name: "connection-proxy-header", Group: "Proxy", Verdict: Honoured, Values: "keep-alive, close", Note: "the Connection header that the backend gets; with close each request has a connection of its own",
		set: choice(func(s *settings) *string { return &s.connection }, "keep-alive", "close"),
	},
}

var backendTLSAnnotations = []Annotation{
	{
		Name: "proxy-ssl-secret", Group: "Backend TLS", Verdict: Honoured, Values: "Secret", closed: true, Note: "tls.crt and tls.key are shown to endpoints that speak TLS, ca.crt vouches for theirs",
		set: text(func(s *settings) *string { return &s.tlsSecret }, nil),
	},
	{
		Name: "proxy-ssl-verify", Group: "Backend TLS", Verdict: Honoured, Values: "on, off (default)", closed: true, Note: "whether endpoints' certificates are checked; needs proxy-ssl-secret",
		set: onOff(func(s *settings, v bool) { s.tlsVerify = v }),
	},
	{
		Name: "proxy-ssl-name", Group: "Backend TLS", Verdict: Honoured, Values: "host name", closed: true, Note: "the name that they must be for, and that is asked for (SNI); SERVICE.NAMESPACE.svc where it is not set",
		set: text(func(s *settings) *string { return &s.tlsName }, checkHost),
	},
	{
		Name: "proxy-ssl-server-name", Group: "Backend TLS", Verdict: Accepted, Values: "on, off", Note: "the name is always sent (SNI): servers that need none ignore it",
		set: unused(onOff(ignoredOnOff)),
	},
	{
		Name: "proxy-ssl-verify-depth", Group: "Backend TLS", Verdict: Accepted, Values: "number", Note: "the CA's own constraints on the length of chains count",
		set: unused(number(ignoredInt, 0)),
	},
	{
		Name: "proxy-ssl-protocols", Group: "Backend TLS", Verdict: Accepted, Values: "TLSv1.2 TLSv1.3", Note: "TLS 1.2 and 1.3, whichever the endpoint has",
		set: unused(func(_ *settings, v string) error {
			_, _, err := readProtocols(v)
			return err
		}),
	},
	{
		Name: "proxy-ssl-ciphers", Group: "Backend TLS", Verdict: Accepted, Values: "OpenSSL's names", Note: "weft offers its strong suites only", set: unused(anything),
	},
}

// readProtocols reads nginx's ssl_protocols.
func readProtocols(value string) (least, most string, err error) {
	for w := range strings.FieldsSeq(value) {
		switch w {
		case "TLSv1.2":
			least = "1.2"
			if most == "" {
				most = "1.2"
			}
		case "TLSv1.3":
			most = "1.3"
			if least == "" {
				least = "1.3"
			}
		case "SSLv2", "SSLv3", "TLSv1", "TLSv1.1": // weft has none of these: what else is listed counts
		default:
			return "", "", fmt.Errorf("%q is not one of TLSv1.2, TLSv1.3", w)
		}
	}
	if least == "" {
		return "", "", errors.New("TLSv1.2 and TLSv1.3 are what weft has: older ones are broken (RFC 8996)")
	}
	return least, most, nil
}

var mirrorAnnotations = []Annotation{
	{
		Name: "mirror-target", Group: "Mirror", Verdict: Honoured, Values: "URL", Note: "gets a copy of each request; its path must be the request's own (https://test.example.com$request_uri)",
		set: text(func(s *settings) *string { return &s.mirrorTarget }, func(v string) error {
			_, _, _, err := readMirror(v)
			return err
		}),
	},
	{
		Name: "mirror-host", Group: "Mirror", Verdict: Honoured, Values: "host", Note: "the copy's Host header; the target's where it is not set",
		set: text(func(s *settings) *string { return &s.mirrorHost }, func(v string) error {
			if !hostPortPattern.MatchString(v) || strings.Contains(v, "$") {
				return errors.New("it should be a host name")
			}
			return nil
		}),
	},
	{
		Name: "mirror-request-body", Group: "Mirror", Verdict: Honoured, Values: "on (default), off", Note: "whether the copy has the body. One of more than 1 MiB is not copied",
		set: onOff(func(s *settings, v bool) { s.mirrorWithBody = v }),
	},
}

// readMirror takes a mirror's URL apart.
func readMirror(value string) (scheme, host string, port uint16, err error) {
	scheme, rest, ok := strings.Cut(value, "://")
	if !ok || scheme != "http" && scheme != "https" {
		return "", "", 0, errors.New("it should be a URL that begins with http:// or https://")
	}
	k := strings.IndexAny(rest, "/$")
	path := ""
	if k >= 0 {
		rest, path = rest[:k], rest[k:]
	}
	switch path {
	case "", "/", "$request_uri", "$uri$is_args$args", "$uri":
	default:
		return "", "", 0, errors.New("the copy has the request's own path: end the URL with $request_uri")
	}
	host, port, err = hostPort(rest, scheme)
	return scheme, host, port, err
}

// hostPort splits an authority; the port is the scheme's where there is none.
func hostPort(authority, scheme string) (string, uint16, error) {
	port := uint16(80)
	if scheme == "https" {
		port = 443
	}
	host := authority
	if k := strings.LastIndexByte(authority, ':'); k >= 0 && !strings.HasSuffix(authority, "]") {
		n, err := strconv.ParseUint(authority[k+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("%q is not a port", authority[k+1:])
		}
		host, port = authority[:k], uint16(n)
	}
	host = strings.Trim(host, "[]")
	if host == "" || !hostPortPattern.MatchString(host) || strings.Contains(host, "$") {
		return "", 0, fmt.Errorf("%q is not a host", host)
	}
	return host, port, nil
}

var firewallAnnotations = []Annotation{
	{
		Name: "enable-modsecurity", Group: "Web application firewall", Verdict: Honoured, Values: "true, false", closed: true,
		Note: "Coraza, which speaks ModSecurity's language, looks at requests; as ingress-nginx's it only detects, unless the rules say \"SecRuleEngine On\"",
		set: func(s *settings, v string) error {
			s.wafSet = true
			return boolean(func(s *settings) *bool { return &s.waf })(s, v)
		},
	},
	{
		Name: "enable-owasp-core-rules", Group: "Web application firewall", Verdict: Honoured, Values: "true, false", closed: true, Note: "with the OWASP core rule set",
		set: boolean(func(s *settings) *bool { return &s.wafCoreRules }),
	},
	{
		Name: "modsecurity-snippet", Group: "Web application firewall", Verdict: Honoured, Values: "rules in ModSecurity's language", closed: true,
		Note: "rules of one's own. Include of the core rule set stands for enable-owasp-core-rules; what reads files or runs programs is refused",
		set: func(s *settings, v string) error {
			rules, core, err := readRules(v)
			if err == nil {
				s.wafRules, s.wafCoreRules = rules, s.wafCoreRules || core
			}
			return err
		},
	},
	{
		Name: "modsecurity-transaction-id", Group: "Web application firewall", Verdict: Accepted, Values: "variable", Note: "the id is always the request's X-Request-ID",
		set: unused(text(ignoredString, template)),
	},
}

// forbiddenRules reach outside the request.
var forbiddenRules = regexp.MustCompile(`(?i)(^|[\s,"'])(exec:|SecRuleScript|SecRemoteRules|SecAuditLog\s|SecDebugLog\s|SecUploadDir|SecTmpDir|SecDataDir|@inspectFile|@(pmf|pmFromFile|ipMatchF|ipMatchFromFile|fuzzyHash)\b)`)

// harmlessRules write logs of their own: weft's access log has what they tell.
var harmlessRules = regexp.MustCompile(`(?i)^\s*(SecDebugLog|SecAuditLog|SecDebugLogLevel|SecUploadDir|SecTmpDir|SecDataDir)\b`)

// readRules takes out what has no place in a shared gateway.
func readRules(value string) (rules string, core bool, err error) {
	if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) }) {
		return "", false, errors.New("it holds control characters")
	}
	var out []string
	for line := range strings.Lines(value) {
		trimmed := strings.TrimSpace(line)
		if file, ok := strings.CutPrefix(trimmed, "Include "); ok {
			switch file = strings.Trim(strings.TrimSpace(file), `"`); {
			case strings.Contains(file, "owasp-modsecurity-crs"):
				core = true
			case strings.HasSuffix(file, "/modsecurity.conf"):
			default:
				return "", false, fmt.Errorf("no file may be included (%s): there are no files to include but the core rule set", file)
			}
			continue
		}
		if harmlessRules.MatchString(trimmed) {
			continue
		}
		if m := forbiddenRules.FindString(trimmed); m != "" {
			return "", false, fmt.Errorf("%s is refused: it reaches outside the request", strings.TrimSpace(m))
		}
		out = append(out, strings.TrimRight(line, "\r\n"))
	}
	return strings.TrimSpace(strings.Join(out, "\n")), core, nil
}

var logAnnotations = []Annotation{
	{
		Name: "enable-access-log", Group: "Logs and traces", Verdict: Honoured, Values: "true, false (true)", Note: "whether requests are in the access log",
		set: boolean(func(s *settings) *bool { return &s.accessLog }),
	},
	{
		Name: "enable-opentelemetry", Group: "Logs and traces", Verdict: Accepted, Values: "true, false", Note: "traceparent headers pass through; spans are configured for the gateway as a whole",
		set: unused(boolean(ignoredBool)),
	},
	{
		Name: "opentelemetry-trust-incoming-span", Group: "Logs and traces", Verdict: Accepted, Values: "true, false", Note: "traceparent headers pass through",
		set: unused(boolean(ignoredBool)),
	},
	{
		Name: "opentelemetry-operation-name", Group: "Logs and traces", Verdict: Accepted, Values: "text", Note: "spans have the route's name",
		set: unused(text(ignoredString, nil)),
	},
}
