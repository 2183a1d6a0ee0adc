// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/ingress"
)

// wireCase shows on the wire what an annotation does: what a request comes to without it, and with it.
type wireCase struct {
	value string
	needs string // other annotations and keys, as gateway reads them
	asked
	show          string // words, as reply.show reads them
	without, with string // what they come to; "-" without: it is not asked for
	// see tells what is to be seen in place of show, where that takes more than one request.
	see func(g *gatewayFor) string
}

func get(what string, fields ...string) asked {
	return asked{what: "GET " + what, fields: strings.Join(fields, " | ")}
}

const (
	web       = "http://web.test/"
	secure    = "https://web.test/"
	preflight = "Origin: https://a.test | Access-Control-Request-Method: PUT"
	login     = "Authorization: Basic YW5uOnRlc3Q=" // ann:test
	authURL   = "auth-url=http://" + authAt + ":{P}/check"
	mirrored  = "mirror-target=http://" + mirrorAt + ":{P}$request_uri"
	evil      = `SecRuleEngine On` + "\n" + `SecRule ARGS:x "@streq evil" "id:1,phase:1,deny,status:403"`
	failOne   = "X-Fail: " + cartOne
	failAll   = "X-Fail: " + cartOne + "," + cartTwo + "," + cartThree
)

func sees(n int, a asked, what func([]reply) string) func(*gatewayFor) string {
	return func(g *gatewayFor) string { return what(g.many(n, a)) }
}

// afterMirror is what the server of mirrors got.
func afterMirror(a asked, what func(facts) string) func(*gatewayFor) string {
	return func(g *gatewayFor) string {
		if r := g.do(a); r.status != 200 {
			return r.show("status")
		}
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if g.w.count(mirrorAt, g.name) > 0 {
				return what(g.w.seen(mirrorAt, g.name))
			}
		}
		return "nothing"
	}
}

// question is what the authority was asked.
func question(a asked, what func(facts) string) func(*gatewayFor) string {
	return func(g *gatewayFor) string {
		r := g.do(a)
		return r.show("status") + " " + what(g.w.seen(authAt, g.name))
	}
}

// twice is how often the authority is asked about two requests.
func twice(g *gatewayFor) string {
	before := g.w.count(authAt, g.name)
	return statuses(g.many(2, get(web, "X-Ask: ann"))) + fmt.Sprintf(" asked %d times", g.w.count(authAt, g.name)-before)
}

// cookieOf gives a session's cookie, and the server that it is of.
func cookieOf(g *gatewayFor, name string) (cookie, by string) {
	r := g.do(get(web))
	c, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	if !strings.HasPrefix(c, name+"=") {
		g.t.Errorf("no cookie %s: %v", name, r.header)
	}
	return c, r.facts.By
}

// chained is a client's certificate with certificates of CAs in between.
func chained(g *gatewayFor, between int) *tls.Certificate {
	by, chain := g.w.ca, [][]byte(nil)
	for i := range between {
		by = certtest.New(g.t, named(fmt.Sprintf("between %d", i), true), &by)
		chain = append([][]byte{by.Certificate[0]}, chain...)
	}
	c := certtest.New(g.t, named("ann", false, "ann.test"), &by)
	c.Certificate = append(c.Certificate, chain...)
	return &c
}

// asClient asks with a certificate.
func asClient(between int, what, show string) func(*gatewayFor) string {
	return func(g *gatewayFor) string {
		return g.do(asked{what: "GET " + what, cert: chained(g, between)}).show(show)
	}
}

// took asks and tells the status, and whether the answer was there in the time.
func took(a asked, most time.Duration) func(*gatewayFor) string {
	return func(g *gatewayFor) string {
		began := time.Now()
		r := g.do(a)
		if d := time.Since(began); d >= most {
			return fmt.Sprintf("%s late", r.show("status"))
		}
		return r.show("status")
	}
}

// wireCases has each annotation that is honoured.
var wireCases = map[string]wireCase{
	"canary":                   {needs: "canary-weight=100", value: "true", see: chosen(), without: "main", with: "canary"},
	"canary-by-header":         {needs: "canary=true", value: "X-C", see: chosen("X-C: always"), without: "main", with: "canary"},
	"canary-by-header-value":   {needs: "canary=true ; canary-by-header=X-C", value: "v", see: chosen("X-C: v"), without: "main", with: "canary"},
	"canary-by-header-pattern": {needs: "canary=true ; canary-by-header=X-C", value: "^v+$", see: chosen("X-C: vvv"), without: "main", with: "canary"},
	"canary-by-cookie":         {needs: "canary=true", value: "c", see: chosen("Cookie: c=always"), without: "main", with: "canary"},
	"canary-weight":            {needs: "canary=true", value: "100", see: chosen(), without: "main", with: "canary"},
	"canary-weight-total":      {needs: "canary=true ; canary-weight=100", value: "1000000000", see: chosen(), without: "canary", with: "main"},
	"affinity-canary-behavior": {needs: "main:affinity=cookie ; canary=true ; canary-weight=0", value: "legacy", without: "main", with: "canary", see: func(g *gatewayFor) string {
		c, _ := cookieOf(g, "INGRESSCOOKIE")
		after := "main:affinity=cookie ; canary=true ; canary-weight=100"
		if g.name == "affinity-canary-behavior with" {
			after += " ; affinity-canary-behavior=legacy"
		}
		if err := g.serve(after); err != nil {
			g.t.Error(err)
		}
		return mainOrCanary(g.do(get(web, "Cookie: "+c)))
	}},

	"rewrite-target":          {value: "/x", asked: get(web + "a?b=c"), show: "uri", without: "/a?b=c", with: "/x?b=c"},
	"use-regex":               {needs: "path=/a[0-9]+", value: "true", asked: get(web + "a12"), show: "status", without: "404", with: "200"},
	"app-root":                {value: "/app", asked: get(web), show: "status Location", without: "200", with: "302 http://web.test/app"},
	"x-forwarded-prefix":      {needs: "rewrite-target=/x", value: "/p", asked: get(web), show: "<X-Forwarded-Prefix", without: "", with: "/p"},
	"upstream-vhost":          {value: "other.test", asked: get(web), show: "host", without: "web.test", with: "other.test"},
	"server-alias":            {value: "alias.test", asked: get("http://alias.test/"), show: "status", without: "404", with: "200"},
	"permanent-redirect":      {value: "https://a.test", asked: get(web), show: "status Location", without: "200", with: "301 https://a.test"},
	"permanent-redirect-code": {needs: "permanent-redirect=https://a.test", value: "308", asked: get(web), show: "status", without: "301", with: "308"},
	"temporal-redirect":       {value: "https://a.test", asked: get(web), show: "status Location", without: "200", with: "302 https://a.test"},
	"temporal-redirect-code":  {needs: "temporal-redirect=https://a.test", value: "307", asked: get(web), show: "status", without: "302", with: "307"},
	"from-to-www-redirect":    {value: "true", asked: get("http://www.web.test/a?b=c"), show: "status Location", without: "404", with: "308 http://web.test/a?b=c"},
	"use-port-in-redirects":   {needs: "https=1", value: "true", asked: get(web), show: "Location", without: "https://web.test", with: "https://web.test:443"},

	"ssl-redirect":            {needs: "https=1", value: "false", asked: get(web), show: "status", without: "308", with: "200"},
	"force-ssl-redirect":      {needs: "ssl-redirect=false", value: "true", asked: get(web), show: "status", without: "200", with: "308"},
	"preserve-trailing-slash": {needs: "https=1", value: "true", asked: get(web + "a/"), show: "Location", without: "https://web.test/a", with: "https://web.test/a/"},
	"ssl-passthrough":         {needs: "secure=1 ; backend-protocol=HTTPS", value: "true", asked: get(secure), show: "status peer", without: "200 web.test", with: "200 backend.test"},
	"ssl-ciphers": {value: "ECDHE-ECDSA-AES128-GCM-SHA256", asked: asked{what: "GET " + secure, suites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}},
		show: "status", without: "200", with: "failed"},
	"hsts":                    {value: "false", asked: get(secure), show: "Strict-Transport-Security", without: "max-age=31536000; includeSubDomains", with: ""},
	"hsts-max-age":            {value: "5", asked: get(secure), show: "Strict-Transport-Security", without: "max-age=31536000; includeSubDomains", with: "max-age=5; includeSubDomains"},
	"hsts-include-subdomains": {value: "false", asked: get(secure), show: "Strict-Transport-Security", without: "max-age=31536000; includeSubDomains", with: "max-age=31536000"},
	"hsts-preload":            {value: "true", asked: get(secure), show: "Strict-Transport-Security", without: "max-age=31536000; includeSubDomains", with: "max-age=31536000; includeSubDomains; preload"},

	"affinity":                {value: "cookie", without: "3 servers", with: "1 servers", see: sticky},
	"affinity-mode":           {needs: "affinity=cookie", value: "persistent", without: "1 servers", with: "1 servers", see: sticky}, // both modes keep a session where it is
	"session-cookie-name":     {needs: "affinity=cookie", value: "s", see: cookieSays(""), without: "INGRESSCOOKIE Path=/ HttpOnly SameSite=Lax", with: "s Path=/ HttpOnly SameSite=Lax"},
	"session-cookie-path":     {needs: "affinity=cookie", value: "/s", see: cookieSays("Path"), without: "Path=/", with: "Path=/s"},
	"session-cookie-domain":   {needs: "affinity=cookie", value: "web.test", see: cookieSays("Domain"), without: "", with: "Domain=web.test"},
	"session-cookie-samesite": {needs: "affinity=cookie", value: "Strict", see: cookieSays("SameSite"), without: "SameSite=Lax", with: "SameSite=Strict"},
	"session-cookie-secure":   {needs: "affinity=cookie", value: "true", see: cookieSays("Secure"), without: "", with: "Secure"},
	"session-cookie-max-age":  {needs: "affinity=cookie", value: "5", see: cookieSays("Max-Age"), without: "", with: "Max-Age=5"},
	"session-cookie-expires": {needs: "affinity=cookie", value: "5", without: "", with: "Expires", see: func(g *gatewayFor) string {
		at, _, _ := strings.Cut(cookieSays("Expires")(g), "=")
		return at
	}},
	"session-cookie-change-on-failure": {needs: "affinity=cookie", value: "true", without: "502", with: "200", see: func(g *gatewayFor) string {
		c, by := cookieOf(g, "INGRESSCOOKIE")
		return g.do(get(web, "Cookie: "+c, "X-Fail: "+by)).show("status")
	}},

	"auth-type":        {needs: "auth-secret=passwords", value: "basic", asked: get(web), show: "status", without: "503", with: "401"},
	"auth-secret":      {needs: "auth-type=basic", value: "passwords", asked: get(web, login), show: "status", without: "503", with: "200"},
	"auth-secret-type": {needs: "auth-type=basic ; auth-secret=names", value: "auth-map", asked: get(web, login), show: "status", without: "503", with: "200"},
	"auth-realm":       {needs: "auth-type=basic ; auth-secret=passwords", value: "here", asked: get(web), show: "WWW-Authenticate", without: `Basic realm="Authentication Required", charset="UTF-8"`, with: `Basic realm="here", charset="UTF-8"`},

	"auth-url": {value: "http://" + authAt + ":{P}/", asked: get(web, "X-Ask: bob"), show: "status", without: "200", with: "401"},
	"auth-method": {needs: authURL, value: "POST", without: "200 GET", with: "200 POST",
		see: question(get(web, "X-Ask: ann"), func(f facts) string { return f.Method })},
	"auth-signin": {needs: authURL, value: "https://l.test/in?to=x", asked: get(web), show: "status Location", without: "401", with: "302 https://l.test/in?to=x&rd=http%3A%2F%2Fweb.test%2F"},
	"auth-signin-redirect-param": {needs: authURL + " ; auth-signin=https://l.test/", value: "back", asked: get(web), show: "Location",
		without: "https://l.test/?rd=http%3A%2F%2Fweb.test%2F", with: "https://l.test/?back=http%3A%2F%2Fweb.test%2F"},
	"auth-response-headers": {needs: authURL, value: "X-User", asked: get(web, "X-Ask: ann", "X-User: forged"), show: "<X-User", without: "forged", with: "user-ann"},
	"auth-proxy-set-headers": {needs: authURL, value: "headers", without: "200 ", with: "200 b",
		see: question(get(web, "X-Ask: ann"), func(f facts) string { return f.Header.Get("X-A") })},
	"auth-request-redirect": {needs: authURL, value: "/x", without: "200 /a?b=c", with: "200 /x",
		see: question(get(web+"a?b=c", "X-Ask: ann"), func(f facts) string { return f.Header.Get("X-Auth-Request-Redirect") })},
	"auth-cache-key":         {needs: authURL + " ; auth-cache-duration=200 5m", value: "$http_x_ask", see: twice, without: "200 asked 2 times", with: "200 asked 1 times"},
	"auth-cache-duration":    {needs: authURL + " ; auth-cache-key=$http_x_ask", value: "403 5m", see: twice, without: "200 asked 1 times", with: "200 asked 2 times"},
	"auth-always-set-cookie": {needs: authURL, value: "true", asked: get(web, "X-Ask: ann", "X-Status: 404"), show: "status Set-Cookie", without: "404", with: "404 auth=1"},
	"enable-global-auth":     {needs: "global:global-" + authURL, value: "false", asked: get(web), show: "status", without: "401", with: "200"},

	"auth-tls-secret":        {value: "web", asked: get(secure), show: "status", without: "200", with: "400"},
	"auth-tls-verify-client": {needs: "auth-tls-secret=web", value: "optional", asked: get(secure), show: "status", without: "400", with: "200"},
	"auth-tls-verify-depth":  {needs: "auth-tls-secret=web", value: "3", see: asClient(2, secure, "status"), without: "400", with: "200"},
	"auth-tls-error-page":    {needs: "auth-tls-secret=web", value: "https://e.test/", asked: get(secure), show: "status Location", without: "400", with: "302 https://e.test/"},
	"auth-tls-pass-certificate-to-upstream": {needs: "auth-tls-secret=web", value: "true", without: "", with: "-----BEGIN", see: func(g *gatewayFor) string {
		pem, _, _ := strings.Cut(asClient(0, secure, "<Ssl-Client-Cert")(g), "%20")
		return pem
	}},
	"auth-tls-match-cn": {needs: "auth-tls-secret=web", value: "CN=bob", see: asClient(0, secure, "status"), without: "200", with: "403"},

	"whitelist-source-range": {value: "10.0.0.0/8", asked: get(web), show: "status", without: "200", with: "403"},
	"allowlist-source-range": {value: "10.0.0.0/8", asked: get(web), show: "status", without: "200", with: "403"},
	"denylist-source-range":  {value: "127.0.0.0/8", asked: get(web), show: "status", without: "200", with: "403"},
	"satisfy":                {needs: "allowlist-source-range=127.0.0.0/8 ; auth-type=basic ; auth-secret=passwords", value: "any", asked: get(web), show: "status", without: "401", with: "200"},

	"limit-rps": {value: "1", see: sees(60, get(web), statuses), without: "200", with: "200 503"},
	"limit-rpm": {value: "1", see: sees(15, get(web), statuses), without: "200", with: "200 503"},
	"limit-connections": {value: "1", without: "200", with: "503", see: func(g *gatewayFor) string {
		held := make(chan reply)
		go func() { held <- g.do(get(web + "hold")) }()
		gate := g.w.gate(g.name)
		<-gate.inside
		r := g.do(get(web))
		close(gate.open)
		if first := <-held; first.status != 200 {
			g.t.Errorf("the first request: %d, %v", first.status, first.err)
		}
		return r.show("status")
	}},
	"limit-burst-multiplier": {needs: "limit-rpm=2", value: "1", see: sees(8, get(web), statuses), without: "200", with: "200 503"},
	"limit-whitelist":        {needs: "limit-rpm=1", value: "127.0.0.0/8", see: sees(15, get(web), statuses), without: "200 503", with: "200"},
	"limit-allowlist":        {needs: "limit-rpm=1", value: "127.0.0.0/8", see: sees(15, get(web), statuses), without: "200 503", with: "200"},
	"limit-rate":             {value: "2", without: "-", with: "200 late", see: took(get(web+"bytes/4096"), time.Second)},
	"limit-rate-after":       {needs: "limit-rate=1", value: "100", without: "-", with: "200", see: took(get(web+"bytes/100000"), 45*time.Second)}, // at 1 KiB/s: 98 s
	"proxy-body-size": {value: "10", without: "200", with: "413", see: func(g *gatewayFor) string {
		return g.do(asked{what: "POST " + web, body: strings.NewReader("eleven byte")}).show("status")
	}},

	"enable-cors":            {value: "true", asked: get(web, "Origin: https://a.test"), show: "Access-Control-Allow-Origin", without: "", with: "https://a.test"},
	"cors-allow-origin":      {needs: "enable-cors=true", value: "https://b.test", asked: get(web, "Origin: https://a.test"), show: "Access-Control-Allow-Origin", without: "https://a.test", with: ""},
	"cors-allow-methods":     {needs: "enable-cors=true", value: "GET, PUT", asked: asked{what: "OPTIONS " + web, fields: preflight}, show: "Access-Control-Allow-Methods", without: "GET, PUT, POST, DELETE, PATCH, OPTIONS", with: "GET, PUT"},
	"cors-allow-headers":     {needs: "enable-cors=true", value: "X-A", asked: asked{what: "OPTIONS " + web, fields: preflight}, show: "Access-Control-Allow-Headers", without: "DNT, Keep-Alive, User-Agent, X-Requested-With, If-Modified-Since, Cache-Control, Content-Type, Range, Authorization", with: "X-A"},
	"cors-expose-headers":    {needs: "enable-cors=true", value: "X-A", asked: get(web, "Origin: https://a.test"), show: "Access-Control-Expose-Headers", without: "", with: "X-A"},
	"cors-allow-credentials": {needs: "enable-cors=true", value: "false", asked: get(web, "Origin: https://a.test"), show: "Access-Control-Allow-Credentials", without: "true", with: ""},
	"cors-max-age":           {needs: "enable-cors=true", value: "5", asked: asked{what: "OPTIONS " + web, fields: preflight}, show: "Access-Control-Max-Age", without: "1728000", with: "5"},

	"custom-http-errors":             {needs: "default-backend=errors", value: "503", see: errorBody, without: "503 own", with: "503 page 503"},
	"default-backend":                {needs: "custom-http-errors=503", value: "errors", see: errorBody, without: "503 own", with: "503 page 503"},
	"disable-proxy-intercept-errors": {needs: "custom-http-errors=503 ; default-backend=errors", value: "true", see: errorBody, without: "503 page 503", with: "503 own"},
	"custom-headers":                 {needs: "global:global-allowed-response-headers=X-A", value: "headers", asked: get(web), show: "X-A", without: "", with: "b"},
	"proxy-cookie-domain":            {value: "a.test b.test", asked: get(web, "X-Set-Cookie: x=1; Domain=a.test"), show: "Set-Cookie", without: "x=1; Domain=a.test", with: "x=1; Domain=b.test"},
	"proxy-cookie-path":              {value: "/a /b", asked: get(web, "X-Set-Cookie: x=1; Path=/a/c"), show: "Set-Cookie", without: "x=1; Path=/a/c", with: "x=1; Path=/b/c"},
	"proxy-redirect-from":            {needs: "proxy-redirect-to=/", value: "http://a.test/", asked: get(web, "X-Location: http://a.test/x"), show: "Location", without: "http://a.test/x", with: "/x"},
	"proxy-redirect-to":              {needs: "proxy-redirect-from=http://a.test/", value: "/y/", asked: get(web, "X-Location: http://a.test/x"), show: "Location", without: "http://a.test/x", with: "/y/x"},

	"backend-protocol": {value: "GRPC", asked: get(web), show: "proto", without: "HTTP/1.1", with: "HTTP/2.0"},
	"service-upstream": {value: "true", see: sees(40, get(web), func(all []reply) string {
		return fmt.Sprintf("%d servers, %v", servers(all), all[0].facts.By == clusterIP)
	}),
		without: "3 servers, false", with: "1 servers, true"},
	"load-balance": {value: "round_robin", without: "as it comes", with: "in turn", see: sees(30, get(web), func(all []reply) string {
		for i := range all[3:] {
			if servers(all[i:i+3]) != 3 {
				return "as it comes"
			}
		}
		return "in turn"
	})},
	"upstream-hash-by": {value: "$http_x_key", without: "3 servers", with: "1 servers", see: sees(40, get(web, "X-Key: k"), inWords)},
	"upstream-hash-by-subset": {needs: "upstream-hash-by=$http_x_key ; upstream-hash-by-subset-size=2", value: "true", without: "1 servers", with: "2 servers",
		see: sees(40, get(web, "X-Key: k"), inWords)},
	"upstream-hash-by-subset-size": {needs: "upstream-hash-by=$http_x_key ; upstream-hash-by-subset=true", value: "1", without: "3 servers", with: "1 servers",
		see: sees(40, get(web, "X-Key: k"), inWords)},

	"proxy-connect-timeout": {needs: "full=1 ; proxy-next-upstream=off", value: "1", without: "-", with: "504", see: took(get(web), 4900*time.Millisecond)}, // 5 s otherwise
	"proxy-read-timeout":    {needs: "proxy-next-upstream=off", value: "1", without: "-", with: "504", see: took(get(web+"silent"), 45*time.Second)},
	"proxy-send-timeout": {needs: "proxy-next-upstream=off ; proxy-body-size=0", value: "1", without: "-", with: "in time", see: func(g *gatewayFor) string {
		began := time.Now()
		r := g.do(asked{what: "POST " + web + "deaf", body: io.LimitReader(zeros{}, 256<<20)})
		if time.Since(began) > 45*time.Second || r.status != 504 && r.status != 502 && r.err == nil {
			return fmt.Sprint(r.status, r.err)
		}
		return "in time"
	}},
	"proxy-next-upstream":       {value: "off", see: sees(30, get(web, failOne), statuses), without: "200", with: "200 502"},
	"proxy-next-upstream-tries": {value: "1", see: sees(30, get(web, failOne), statuses), without: "200", with: "200 502"},
	"proxy-next-upstream-timeout": {value: "1", without: "3 tries", with: "1 tries", see: func(g *gatewayFor) string {
		g.do(get(web, failAll, "X-Slow-1: 1100ms", "X-Slow-2: 1100ms", "X-Slow-3: 1100ms"))
		return fmt.Sprintf("%d tries", g.w.count(cartOne, g.name)+g.w.count(cartTwo, g.name)+g.w.count(cartThree, g.name))
	}},
	"proxy-request-buffering": {value: "on", without: "-1", with: "200000", see: func(g *gatewayFor) string { // held, it has a length
		return g.do(asked{what: "POST " + web, body: io.MultiReader(bytes.NewReader(make([]byte, 200_000)))}).show("length")
	}},
	// The answer's server is done when the client has less than half of it, or more.
	"proxy-buffering": {needs: "limit-rate=200", value: "on", without: "late", with: "early", see: func(g *gatewayFor) string {
		const size = 900_000 // a gateway holds a little more of an answer
		resp, err := g.client(asked{}).Do(g.request(get(fmt.Sprintf("%sbytes/%d", web, size))))
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		for got, b := 0, make([]byte, 16<<10); ; {
			select {
			case <-g.w.gate(g.name).open:
				if got < size/2 {
					return "early"
				}
				return "late"
			default:
			}
			n, err := resp.Body.Read(b)
			if got += n; err != nil {
				return fmt.Sprintf("%v after %d bytes", err, got)
			}
		}
	}},
	"connection-proxy-header": {value: "close", asked: get(web), show: "<Connection", without: "", with: "close"},

	"proxy-ssl-secret": {needs: "secure=1 ; backend-protocol=HTTPS", value: "web", asked: get(web), show: "status client", without: "200", with: "200 web.test"},
	"proxy-ssl-verify": {needs: "secure=1 ; backend-protocol=HTTPS ; proxy-ssl-secret=web", value: "on", asked: get(web), show: "status", without: "200", with: "502"}, // it is for another name
	"proxy-ssl-name":   {needs: "secure=1 ; backend-protocol=HTTPS ; proxy-ssl-secret=web ; proxy-ssl-verify=on", value: "backend.test", asked: get(web), show: "status sni", without: "502", with: "200 backend.test"},

	"mirror-target": {value: "http://" + mirrorAt + ":{P}$request_uri", without: "-", with: "/a?b=c", see: afterMirror(get(web+"a?b=c"), func(f facts) string { return f.URI })},
	"mirror-host":   {needs: mirrored, value: "h.test", without: mirrorAt, with: "h.test", see: afterMirror(get(web), func(f facts) string { h, _, _ := strings.Cut(f.Host, ":"); return h })},
	"mirror-request-body": {needs: mirrored, value: "off", without: "body", with: "", see: func(g *gatewayFor) string {
		return afterMirror(asked{what: "POST " + web, body: strings.NewReader("body")}, func(f facts) string { return f.Body })(g)
	}},

	"enable-modsecurity":      {needs: "modsecurity-snippet=" + evil, value: "true", asked: get(web + "?x=evil"), show: "status", without: "200", with: "403"},
	"modsecurity-snippet":     {needs: "enable-modsecurity=true", value: evil, asked: get(web + "?x=evil"), show: "status", without: "200", with: "403"},
	"enable-owasp-core-rules": {needs: "enable-modsecurity=true ; modsecurity-snippet=SecRuleEngine On", value: "true", asked: get(web + "?q=%3Cscript%3Ealert(1)%3C/script%3E"), show: "status", without: "200", with: "403"},
	"enable-access-log": {value: "false", without: "200 1 lines", with: "200 0 lines", see: func(g *gatewayFor) string {
		r := g.do(get(web))
		g.srv.Close()
		g.closeLog()
		return fmt.Sprintf("%s %d lines", r.show("status"), g.log.count())
	}},
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func inWords(all []reply) string { return fmt.Sprintf("%d servers", servers(all)) }

func mainOrCanary(r reply) string {
	switch r.facts.By {
	case checkoutAt:
		return "canary"
	case cartOne, cartTwo, cartThree:
		return "main"
	}
	return r.show("status by")
}

// chosen tells whether the canary gets a request.
func chosen(fields ...string) func(*gatewayFor) string {
	return func(g *gatewayFor) string { return mainOrCanary(g.do(get(web, fields...))) }
}

// sticky counts the servers of requests that bring their cookies.
func sticky(g *gatewayFor) string {
	var all []reply
	cookie := ""
	for range 40 {
		r := g.do(get(web, "Cookie: "+cookie))
		if c, _, ok := strings.Cut(r.header.Get("Set-Cookie"), ";"); ok {
			cookie = c
		}
		all = append(all, r)
	}
	return inWords(all)
}

// cookieSays gives an attribute of the session's cookie, "" for its name and all of them.
func cookieSays(attribute string) func(*gatewayFor) string {
	return func(g *gatewayFor) string {
		var out []string
		for i, part := range strings.Split(g.do(get(web)).header.Get("Set-Cookie"), "; ") {
			name, _, _ := strings.Cut(part, "=")
			if i == 0 {
				part = name
			}
			if attribute == "" || i > 0 && name == attribute {
				out = append(out, part)
			}
		}
		return strings.Join(out, " ")
	}
}

// errorBody tells whose the answer of a failure is.
func errorBody(g *gatewayFor) string {
	r := g.do(get(web, "X-Status: 503"))
	if r.facts.By != "" {
		return r.show("status") + " own"
	}
	return r.show("status body")
}

// Each annotation that is honoured does on the wire what it says, and each that is not harms nobody.
func TestAnnotationsOnTheWire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	known := map[string]bool{}
	for _, a := range ingress.Annotations() {
		known[a.Name] = true
		if a.Verdict != ingress.Honoured {
			continue
		}
		c, ok := wireCases[a.Name]
		if !ok {
			t.Errorf("%s: nothing shows on the wire that it is honoured", a.Name)
			continue
		}
		t.Run(a.Name, func(t *testing.T) {
			t.Parallel()
			see := c.see
			if see == nil {
				see = func(g *gatewayFor) string { return g.do(c.asked).show(c.show) }
			}
			if c.without != "-" {
				if got := strings.TrimSpace(see(w.gateway(t, a.Name+" without", c.needs))); got != strings.TrimSpace(c.without) {
					t.Errorf("without it: %q, want %q", got, c.without)
				}
			}
			g := w.gateway(t, a.Name+" with", strings.Trim(c.needs+" ; "+a.Name+"="+c.value, " ;"))
			if len(g.problems) > 0 {
				t.Errorf("%v", g.problems)
			}
			if got := strings.TrimSpace(see(g)); got != strings.TrimSpace(c.with) {
				t.Errorf("with it: %q, want %q", got, c.with)
			}
		})
	}
	for name := range wireCases {
		if !known[name] {
			t.Errorf("%s is no annotation", name)
		}
	}
	t.Run("not honoured", func(t *testing.T) {
		t.Parallel()
		g := w.gateway(t, "not honoured", "")
		for _, a := range ingress.Annotations() {
			if a.Verdict == ingress.Honoured {
				continue
			}
			want := 200
			if a.Verdict == ingress.Refused && a.FailsClosed() {
				want = 503
			}
			good := false
			for _, value := range []string{"return 403;", "true", "1", "on", "1.1", "1k", "TLSv1.3", "$request_id", "x"} {
				if err := g.serve(a.Name + "=" + value); err != nil {
					t.Fatal(err)
				}
				if good = a.Verdict == ingress.Refused || len(g.problems) == 0; good {
					break
				}
			}
			if !good {
				t.Errorf("%s: no value that it takes: %v", a.Name, g.problems)
			}
			if r := g.do(get(web)); r.status != want {
				t.Errorf("%s: %d, %v, want %d", a.Name, r.status, r.err, want)
			}
		}
	})
}
