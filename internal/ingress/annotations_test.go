// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// served is what one Ingress with annotations makes: the policy of all its rules, that of authentication if any, the rule
// of path "/" in plain text, and its problems.
type served struct {
	policy, auth route.Policy
	rule         route.Rule
	rules        []route.Rule
	listener     route.Listener // https
	backends     map[string]route.Backend
	problems     []ingress.Problem
	update       *route.Update
}

// serve makes an Ingress "web" of host web.test with path "/" of Service cart, and says what became of it.
func serve(t *testing.T, more string, annotations map[string]string, edit ...func(*model.Ingress)) served {
	t.Helper()
	opts := both
	opts.Config = model.Name{Namespace: "weft", Name: "ingress"}
	s := ingress.New(opts)
	c := changes(t, "base", []byte(base+more))
	i := &model.Ingress{
		Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "web"}, UID: "1", Annotations: map[string]string{}}, Class: "nginx",
		Rules: []model.IngressRule{{Host: "web.test", Paths: []model.IngressPath{{Path: "/", Type: model.IngressPrefix, Backend: model.IngressBackend{Service: "cart", Port: 80}}}}},
	}
	for k, v := range annotations {
		i.Annotations[ingress.Prefix+k] = v
	}
	for _, e := range edit {
		e(i)
	}
	c.Ingresses[i.Name] = i
	s.Apply(c)
	u := s.Complete()
	checkReferences(t, u)
	out := served{problems: s.Problems(i.Name), update: u, backends: map[string]route.Backend{}}
	for _, p := range u.Policies {
		switch p.Key {
		case "Ingress/shop/web":
			out.policy = p
		case "Ingress/shop/web/auth":
			out.auth = p
		}
	}
	for _, b := range u.Backends {
		out.backends[b.Key] = b
	}
	for _, l := range u.Listeners {
		if l.Key == "https/web.test" {
			out.listener = l
		}
	}
	for _, r := range u.Routes {
		if strings.HasPrefix(r.Key, "Ingress/shop/web/web.test") && r.Kind == route.HTTPRoute {
			for _, p := range r.Parents {
				if p.Listener == "http/web.test" {
					out.rules = r.Rules
				}
			}
		}
	}
	for _, r := range out.rules {
		if r.Name == "/" {
			out.rule = r
		}
	}
	return out
}

// filter finds a rule's filter.
func filter[T any](r route.Rule, get func(route.Filter) *T) *T {
	for _, f := range r.Filters {
		if v := get(f); v != nil {
			return v
		}
	}
	return nil
}

// What ingress-nginx does without any annotation (its documentation's defaults).
func TestDefaults(t *testing.T) {
	s := serve(t, "", nil)
	p := s.policy
	if *p.MaxRequestBody != 1<<20 || time.Duration(p.ConnectTimeout) != 5*time.Second || time.Duration(p.ReadTimeout) != time.Minute || time.Duration(p.SendTimeout) != time.Minute {
		t.Errorf("body size and timeouts: %d, %v, %v, %v", *p.MaxRequestBody, time.Duration(p.ConnectTimeout), time.Duration(p.ReadTimeout), time.Duration(p.SendTimeout))
	}
	if p.HSTS.MaxAge != 31536000 || !p.HSTS.IncludeSubdomains || p.HSTS.Preload || p.HSTS.Disabled {
		t.Errorf("HSTS: %+v", p.HSTS)
	}
	if p.Sources != nil || p.RateLimits != nil || p.Connections != nil || p.ErrorPages != nil || p.WAF != nil || p.AccessLog != nil || p.Invalid != "" || s.auth.Key != "" {
		t.Errorf("something that nobody asked for: %#v", p.Key)
	}
	r := s.rule
	if r.Retry == nil || r.Retry.Attempts != 2 || !r.Retry.Idempotent || len(r.Retry.Codes) != 0 || r.Session != nil {
		t.Errorf("retries: %+v", r.Retry)
	}
	if len(r.Backends) != 1 || r.Backends[0].Backend != "Service/shop/cart/80" || s.backends["Service/shop/cart/80"].Protocol != route.HTTP1 {
		t.Errorf("backends: %+v", r.Backends)
	}
	if len(s.problems) != 0 {
		t.Errorf("problems: %v", s.problems)
	}
}

// The values that each annotation takes, and what is made of them. "!" begins what an unusable value is told with.
func TestValues(t *testing.T) {
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	body := func(s served) string { return text(*s.policy.MaxRequestBody) }
	read := func(s served) string { return time.Duration(s.policy.ReadTimeout).String() }
	sources := func(s served) string {
		if s.policy.Sources == nil {
			return "none"
		}
		return text(*s.policy.Sources)
	}
	limits := func(s served) string { return text(s.policy.RateLimits) }
	redirected := func(s served) string {
		if r := filter(s.rule, func(f route.Filter) *route.Redirect { return f.Redirect }); r != nil {
			return fmt.Sprint(r.Status, " ", r.Location)
		}
		return "none"
	}
	cors := func(s served) string {
		if c := filter(s.rule, func(f route.Filter) *route.CORS { return f.CORS }); c != nil {
			return text(*c)
		}
		return "none"
	}
	retry := func(s served) string { return text(*s.rule.Retry) }
	session := func(s served) string {
		if s.rule.Session == nil {
			return "none"
		}
		return text(*s.rule.Session)
	}
	cookies := func(s served) string {
		if s.policy.Cookies == nil {
			return "none"
		}
		return text(*s.policy.Cookies)
	}
	balance := func(s served) string {
		if s.policy.Balance == nil {
			return "none"
		}
		return text(*s.policy.Balance)
	}
	for _, c := range []struct {
		annotations string // name=value, separated by " ; "
		what        func(served) string
		want        string
	}{
		{"proxy-body-size=8m", body, "8388608"}, {"proxy-body-size=8M", body, "8388608"}, {"proxy-body-size=100", body, "100"}, {"proxy-body-size=1g", body, "1073741824"},
		{"proxy-body-size=0", body, "0"}, {"proxy-body-size=8mb", body, "!it should be a size"}, {"proxy-body-size=", body, "1048576"},
		{"proxy-read-timeout=120", read, "2m0s"}, {"proxy-read-timeout=120s", read, "2m0s"}, {"proxy-read-timeout=2m", read, "!a whole number of seconds"},
		{"proxy-read-timeout=0", read, "!a whole number of seconds, 1 or more"},
		{"whitelist-source-range=10.0.0.0/24, 2001:db8::/32,1.2.3.4", sources, `{"allow":["10.0.0.0/24","2001:db8::/32","1.2.3.4/32"]}`},
		{"whitelist-source-range=1.0.0.0/8 ; allowlist-source-range=2.0.0.0/8", sources, `{"allow":["2.0.0.0/8"]}`},
		{"denylist-source-range=10.1.2.3/8", sources, `{"deny":["10.0.0.0/8"]}`}, {"whitelist-source-range=10.0.0.0/33", sources, "!neither an address nor a CIDR"},
		{"limit-rps=10", limits, `[{"name":"rps","requests":10,"per":"1s","burst":50,"status":503}]`},
		{"limit-rpm=6 ; limit-rps=1 ; limit-burst-multiplier=2 ; limit-whitelist=10.0.0.0/8", limits,
			`[{"name":"rpm","requests":6,"per":"1m0s","burst":12,"status":503,"exempt":["10.0.0.0/8"]},{"name":"rps","requests":1,"per":"1s","burst":2,"status":503,"exempt":["10.0.0.0/8"]}]`},
		{"limit-rps=0", limits, "null"}, {"limit-rps=-1", limits, "!a whole number, 0 or more"},
		{"limit-connections=3", func(s served) string { return text(*s.policy.Connections) }, `{"max":3,"status":503}`},
		{"limit-rate=50 ; limit-rate-after=10", func(s served) string { return text(*s.policy.ResponseRate) }, `{"bytesPerSecond":51200,"after":10240}`},
		{"permanent-redirect=https://a.test$request_uri", redirected, "301 https://a.test$request_uri"},
		{"permanent-redirect=https://a.test ; permanent-redirect-code=308", redirected, "308 https://a.test"},
		{"permanent-redirect=https://a.test ; temporal-redirect=https://b.test ; temporal-redirect-code=307", redirected, "307 https://b.test"},
		{"permanent-redirect=ftp://a.test", redirected, "!begins with http://"}, {"permanent-redirect=https://a.test ; permanent-redirect-code=200", redirected, "!300 to 308"},
		{"permanent-redirect=https://a.test/$no_such_variable", redirected, "!no_such_variable"}, {"force-ssl-redirect=true", func(s served) string { return s.rules[0].Name }, "/ to TLS"},
		{"enable-cors=true", cors, `{"allowOrigins":["*"],"allowMethods":["GET","PUT","POST","DELETE","PATCH","OPTIONS"],"allowHeaders":["DNT","Keep-Alive","User-Agent","X-Requested-With","If-Modified-Since","Cache-Control","Content-Type","Range","Authorization"],"allowCredentials":true,"oneLabel":true,"maxAge":1728000}`},
		{"enable-cors=true ; cors-allow-origin=https://*.a.test, http://b.test:8080 ; cors-allow-methods=GET ; cors-allow-headers=X-A,X-B ; cors-expose-headers=* ; cors-allow-credentials=false ; cors-max-age=5", cors,
			`{"allowOrigins":["https://*.a.test","http://b.test:8080"],"allowMethods":["GET"],"allowHeaders":["X-A","X-B"],"exposeHeaders":["*"],"oneLabel":true,"maxAge":5}`},
		{"enable-cors=true ; cors-allow-origin=https://a.test,nonsense here", cors, "!is not an origin"}, {"cors-allow-origin=https://a.test", cors, "none"},
		{"proxy-next-upstream=error http_502 non_idempotent ; proxy-next-upstream-tries=5 ; proxy-next-upstream-timeout=7", retry, `{"codes":[502],"attempts":4,"unsafe":true,"notOnTimeout":true,"within":"7s"}`},
		{"proxy-next-upstream-tries=1", retry, `{"never":true}`}, {"proxy-next-upstream=timeout", retry, `{"attempts":2,"idempotent":true,"notOnError":true}`},
		{"proxy-next-upstream=non_idempotent", retry, `{"never":true}`},
		{"proxy-next-upstream=off", retry, `{"never":true}`}, {"proxy-next-upstream=sometimes", retry, "!is not one of error"},
		{"affinity=cookie", session, `{"kind":"Cookie","name":"INGRESSCOOKIE","path":"/"}`},
		{"affinity=cookie ; session-cookie-name=a ; session-cookie-expires=60 ; session-cookie-max-age=30 ; session-cookie-path=/x ; session-cookie-samesite=strict ; session-cookie-domain=a.test ; session-cookie-secure=true ; session-cookie-change-on-failure=true", session,
			`{"kind":"Cookie","name":"a","absoluteTimeout":"30s","permanent":true,"path":"/x","domain":"a.test","sameSite":"Strict","secure":true,"changeOnFailure":true}`},
		{"affinity=header", session, "!one of cookie"}, {"session-cookie-name=a", session, "none"}, {"affinity=cookie ; session-cookie-path=/a;b", session, "!character"},
		{"proxy-cookie-domain=a.test b.test ; proxy-cookie-path=~*^/one/(.*) /$1", cookies, `{"domains":[{"from":"a.test","to":"b.test"}],"paths":[{"from":"(?i)^/one/(.*)","regex":true,"to":"/$1"}]}`},
		{"proxy-cookie-domain=off", cookies, "none"}, {"proxy-cookie-path=one", cookies, "!two words"},
		{"upstream-hash-by=$request_uri$host ; upstream-hash-by-subset=true", balance, `{"kind":"Hash","key":"$request_uri$host","subsetSize":3}`},
		{"load-balance=ewma", balance, `{"kind":"EWMA"}`}, {"load-balance=round_robin", balance, `{"kind":"RoundRobin"}`}, {"load-balance=ip_hash", balance, `{"kind":"Hash","key":"$remote_addr"}`},
		{"load-balance=magic", balance, "!one of round_robin"}, {"upstream-hash-by=$no_such", balance, "!no_such"},
		{"hsts=false", func(s served) string { return text(s.policy.HSTS.Disabled) }, "true"}, {"hsts-max-age=x", read, "!a whole number"},
		{"enable-access-log=false", func(s served) string { return text(*s.policy.AccessLog) }, "false"},
		{"proxy-buffering=on ; proxy-request-buffering=off", func(s served) string { return fmt.Sprint(*s.policy.BufferResponse, *s.policy.BufferRequest) }, "true false"},
		{"proxy-redirect-from=http://a/ ; proxy-redirect-to=http://b/", func(s served) string { return text(*s.policy.Locations) }, `{"replace":[{"from":"http://a/","to":"http://b/"}]}`},
		{"proxy-redirect-from=http://a/", read, "!no effect without"},
		{"server-alias=a.test, ~^www\\d+\\.b\\.test$", read, "!not regular expressions"}, {"upstream-vhost=$service_name.$namespace.svc:$service_port", func(s served) string {
			return filter(s.rule, func(f route.Filter) *route.Rewrite { return f.Rewrite }).Hostname
		}, "cart.shop.svc:80"}, {"upstream-vhost=$host", read, "!only $service_name"},
		{"ssl-ciphers=ECDHE-RSA-AES128-GCM-SHA256:AES256-SHA", func(s served) string { return text(s.listener.TLS.CipherSuites) }, `["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]`},
		{"ssl-ciphers=ALL:!aNULL", func(s served) string { return text(s.listener.TLS.CipherSuites) }, "null"}, {"ssl-ciphers=RC4-SHA", read, "!none of these"},
		{"enable-modsecurity=true ; modsecurity-snippet=SecRuleEngine On", func(s served) string { return text(*s.policy.WAF) }, `{"rules":"SecRuleEngine On"}`},
		{"enable-modsecurity=true ; modsecurity-snippet=Include /etc/nginx/owasp-modsecurity-crs/nginx-modsecurity.conf", func(s served) string { return text(*s.policy.WAF) }, `{"detectOnly":true,"coreRules":true}`},
		{"enable-modsecurity=true", func(s served) string { return text(s.policy.WAF.Disabled) }, "true"},
		{"enable-modsecurity=false", func(s served) string { return text(s.policy.WAF.Disabled) }, "true"},
		{"mirror-target=https://a.test:8443$request_uri ; mirror-request-body=off", func(s served) string {
			return text(*filter(s.rule, func(f route.Filter) *route.Mirror { return f.Mirror }))
		}, `{"backend":"Address/https/a.test:8443","numerator":100,"denominator":100,"hostname":"a.test","withoutBody":true}`},
		{"auth-url=http://auth.test:8080/check?a=$host ; auth-method=POST ; auth-cache-key=$http_authorization ; auth-cache-duration=200 202 10m, 401 5s", func(s served) string {
			a := s.auth.ExternalAuth
			return fmt.Sprint(a.Backend, " ", a.Host, " ", a.Path, " ", a.Method, " ", a.CacheKey, " ", text(a.CacheFor))
		}, `Address/http/auth.test:8080 auth.test /check?a=$host POST $http_authorization [{"statuses":[200,202],"for":"10m0s"},{"statuses":[401],"for":"5s"}]`},
		{"auth-url=https://$host/oauth2/auth ; auth-signin=https://$host/oauth2/start?rd=$escaped_request_uri", func(s served) string {
			a := s.auth.ExternalAuth
			return fmt.Sprint(a.Backend, " ", a.Host, " ", a.Path, " ", a.Signin, " ", a.SigninParam)
		}, "$host /oauth2/auth https://$host/oauth2/start?rd=$escaped_request_uri"},
		{"auth-url=not a url", read, "!begins with http://"}, {"auth-url=http://a.test ; auth-cache-duration=200 soon", read, "!is not a time"},
		{"backend-protocol=grpcs", func(s served) string { return text(s.rule.Backends[0].Backend) }, `"Service/shop/cart/80/h2"`}, {"backend-protocol=FCGI", read, "!FastCGI"},
		{"service-upstream=true", func(s served) string { return text(s.rule.Backends[0].Backend) }, `"Service/shop/cart/80/clusterip"`},
		{"canary-weight=20", func(s served) string { return text(len(s.rule.Backends)) }, "1"},
	} {
		t.Run(c.annotations, func(t *testing.T) {
			a := map[string]string{}
			for _, one := range strings.Split(c.annotations, " ; ") {
				name, value, _ := strings.Cut(one, "=")
				a[name] = value
			}
			s := serve(t, "", a)
			if want, wrong := strings.CutPrefix(c.want, "!"); wrong {
				if all := fmt.Sprint(s.problems); !strings.Contains(all, want) {
					t.Errorf("told %s, want %q", all, want)
				}
				return
			}
			if got := strings.TrimSpace(c.what(s)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if len(s.problems) > 0 {
				t.Errorf("problems: %v", s.problems)
			}
		})
	}
}

// A Service says itself that its endpoints want a PROXY header.
func TestProxyProtocolOfServices(t *testing.T) {
	for value, want := range map[string]int{"v1": 1, "v2": 2, "v3": 0} {
		s := serve(t, `
apiVersion: v1
kind: Service
metadata: {name: mail, namespace: shop, annotations: {weft.dev/proxy-protocol: `+value+`}}
spec: {clusterIP: 10.96.0.20, ports: [{name: http, port: 80}]}
`, nil, func(i *model.Ingress) { i.Rules[0].Paths[0].Backend.Service = "mail" })
		b := s.backends["Service/shop/mail/80"]
		if b.ProxyProtocol != want || (b.Invalid != "") != (want == 0) {
			t.Errorf("%s: version %d, invalid %q", value, b.ProxyProtocol, b.Invalid)
		}
	}
}

// Annotations that were to keep somebody out and can't be used shut the paths; others only lose their effect.
func TestFailClosed(t *testing.T) {
	for _, a := range ingress.Annotations() {
		value := "\x01 not a value {{"
		if a.Verdict == ingress.Accepted {
			continue
		}
		s := serve(t, "", map[string]string{a.Name: value})
		if a.Name == "proxy-redirect-from" || a.Name == "canary" {
			continue // any text; and a canary that is none is an Ingress like any other
		}
		if len(s.problems) == 0 {
			t.Errorf("%s: nothing is said about the value %q", a.Name, value)
		}
		if shut := s.policy.Invalid != ""; shut != a.FailsClosed() && !strings.HasSuffix(a.Name, "-snippet") {
			t.Errorf("%s: shut is %v, want %v: %v", a.Name, shut, a.FailsClosed(), s.problems)
		}
	}
	for snippet, shut := range map[string]bool{
		"more_set_headers \"X-A: b\";": false, "deny 10.0.0.0/8;": true, "auth_basic \"x\";": true, "if ($http_x = y) { return 403; }": true,
		"access_by_lua_block { ngx.exit(403) }": true, "proxy_set_header X-A b;": false, "rewrite ^/a /b permanent;": false,
	} {
		s := serve(t, "", map[string]string{"configuration-snippet": snippet})
		if got := s.policy.Invalid != ""; got != shut || len(s.problems) == 0 {
			t.Errorf("snippet %q: shut is %v, want %v; %v", snippet, got, shut, s.problems)
		}
	}
}

func TestRegexHosts(t *testing.T) {
	paths := func(list ...model.IngressPath) func(*model.Ingress) {
		return func(i *model.Ingress) { i.Rules[0].Paths = list }
	}
	to := model.IngressBackend{Service: "cart", Port: 80}
	match := func(s served, path string) string {
		t.Helper()
		r := &route.Route{Key: "x", Rules: s.rules}
		entries, errs := route.Entries(r, func(int) any { return nil })
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		e := route.NewHostTable(entries).Match(&route.Request{Method: "GET", Path: path, Header: none{}})
		if e == nil {
			return ""
		}
		return r.Rules[e.Rule].Name
	}
	s := serve(t, "", map[string]string{"use-regex": "true"}, paths(
		model.IngressPath{Path: "/a", Type: model.IngressExact, Backend: to}, model.IngressPath{Path: "/a/[0-9]+", Type: model.IngressImplementationSpecific, Backend: to},
		model.IngressPath{Path: "/A/(b|c)/.+", Type: model.IngressPrefix, Backend: to},
	))
	for path, want := range map[string]string{"/a": "/a", "/a/b": "/a", "/A": "/a", "/a/12": "/a/[0-9]+", "/a/12x": "/a/[0-9]+", "/a/B/x": "/A/(b|c)/.+", "/b": "default"} {
		if got := match(s, path); got != want {
			t.Errorf("with regular expressions %s takes %q, want %q", path, got, want)
		}
	}
	s = serve(t, "", nil, paths(
		model.IngressPath{Path: "/a", Type: model.IngressPrefix, Backend: to}, model.IngressPath{Path: "/ab", Type: model.IngressImplementationSpecific, Backend: to},
		model.IngressPath{Path: "/a/b", Type: model.IngressExact, Backend: to}, model.IngressPath{Path: "/dir/", Type: model.IngressImplementationSpecific, Backend: to},
	))
	for path, want := range map[string]string{"/a": "/a", "/a/x": "/a", "/abc": "/ab", "/ac": "default", "/a/b": "/a/b", "/a/b/c": "/a", "/A": "default", "/dir": "/dir/ slash", "/dir/x": "/dir/"} {
		if got := match(s, path); got != want {
			t.Errorf("%s takes %q, want %q", path, got, want)
		}
	}
	// The rewrite of "/" strips only what it can: with a regular expression on the host both are expressions.
	s = serve(t, "", map[string]string{"rewrite-target": "/"}, paths(
		model.IngressPath{Path: "/app", Type: model.IngressPrefix, Backend: to}, model.IngressPath{Path: "/x/(.*)", Type: model.IngressImplementationSpecific, Backend: to},
	))
	for path, want := range map[string]string{"/app": "/app", "/app/y": "/app", "/apple": "default", "/x/y": "/x/(.*)"} {
		if got := match(s, path); got != want {
			t.Errorf("mixed: %s takes %q, want %q", path, got, want)
		}
	}
	for _, r := range s.rules {
		w := filter(r, func(f route.Filter) *route.Rewrite { return f.Rewrite })
		if want := map[string]route.Template{"/app": "/$1", "/x/(.*)": "/"}[r.Name]; w != nil && *w.Path.Template != want {
			t.Errorf("%s is rewritten to %s, want %s", r.Name, *w.Path.Template, want)
		}
	}
}

type none struct{}

func (none) Lookup(string) (string, bool) { return "", false }
