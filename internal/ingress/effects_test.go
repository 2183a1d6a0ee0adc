// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

// effect is a value that shows what an annotation or key does, beside what it needs others for.
type effect struct {
	value string
	needs string // name=value, separated by " ; "; of a key, those that begin with "@" are annotations
}

// annotationEffects has each annotation that is honoured.
var annotationEffects = map[string]effect{
	"canary": {"true", "canary-weight=10"}, "canary-by-header": {"X-C", "canary=true"}, "canary-by-header-value": {"v", "canary=true ; canary-by-header=X-C"},
	"canary-by-header-pattern": {"v+", "canary=true ; canary-by-header=X-C"}, "canary-by-cookie": {"c", "canary=true"}, "canary-weight": {"10", "canary=true"},
	"canary-weight-total": {"200", "canary=true ; canary-weight=10"}, "affinity-canary-behavior": {"legacy", "main:affinity=cookie ; canary=true ; canary-weight=10"},

	"rewrite-target": {"/x", ""}, "use-regex": {"true", ""}, "app-root": {"/app", ""}, "x-forwarded-prefix": {"/p", ""}, "upstream-vhost": {"other.test", ""},
	"server-alias": {"alias.test", ""}, "permanent-redirect": {"https://a.test", ""}, "permanent-redirect-code": {"308", "permanent-redirect=https://a.test"},
	"temporal-redirect": {"https://a.test", ""}, "temporal-redirect-code": {"307", "temporal-redirect=https://a.test"}, "from-to-www-redirect": {"true", ""},
	"use-port-in-redirects": {"true", ""}, "ssl-redirect": {"false", ""}, "force-ssl-redirect": {"true", "ssl-redirect=false"}, "preserve-trailing-slash": {"true", ""},
	"ssl-passthrough": {"true", ""}, "ssl-ciphers": {"ECDHE-RSA-AES128-GCM-SHA256", ""}, "hsts": {"false", ""}, "hsts-max-age": {"5", ""},
	"hsts-include-subdomains": {"false", ""}, "hsts-preload": {"true", ""},

	"affinity": {"cookie", ""}, "affinity-mode": {"persistent", "affinity=cookie"}, "session-cookie-name": {"s", "affinity=cookie"}, "session-cookie-path": {"/s", "affinity=cookie"},
	"session-cookie-domain": {"d.test", "affinity=cookie"}, "session-cookie-samesite": {"None", "affinity=cookie"}, "session-cookie-secure": {"true", "affinity=cookie"},
	"session-cookie-max-age": {"5", "affinity=cookie"}, "session-cookie-expires": {"5", "affinity=cookie"}, "session-cookie-change-on-failure": {"true", "affinity=cookie"},

	"auth-type": {"basic", "auth-secret=passwords"}, "auth-secret": {"passwords", "auth-type=basic"}, "auth-secret-type": {"auth-map", "auth-type=basic ; auth-secret=passwords"},
	"auth-realm": {"here", "auth-type=basic ; auth-secret=passwords"},

	"auth-url": {"http://auth.test/", ""}, "auth-method": {"POST", "auth-url=http://auth.test/"}, "auth-signin": {"https://l.test/", "auth-url=http://auth.test/"},
	"auth-signin-redirect-param": {"back", "auth-url=http://auth.test/ ; auth-signin=https://l.test/"}, "auth-response-headers": {"X-User", "auth-url=http://auth.test/"},
	"auth-proxy-set-headers": {"headers", "auth-url=http://auth.test/"}, "auth-request-redirect": {"/x", "auth-url=http://auth.test/"},
	"auth-cache-key": {"$http_cookie", "auth-url=http://auth.test/ ; auth-cache-duration=200 5m"}, "auth-cache-duration": {"200 5m", "auth-url=http://auth.test/ ; auth-cache-key=$http_cookie"},
	"auth-always-set-cookie": {"true", "auth-url=http://auth.test/"}, "enable-global-auth": {"false", "global:global-auth-url=http://auth.test/"},

	"auth-tls-secret": {"clients", ""}, "auth-tls-verify-client": {"optional", "auth-tls-secret=clients"}, "auth-tls-verify-depth": {"3", "auth-tls-secret=clients"},
	"auth-tls-error-page": {"https://e.test/", "auth-tls-secret=clients"}, "auth-tls-pass-certificate-to-upstream": {"true", "auth-tls-secret=clients"},
	"auth-tls-match-cn": {"CN=a", "auth-tls-secret=clients"},

	"whitelist-source-range": {"10.0.0.0/8", ""}, "allowlist-source-range": {"10.0.0.0/8", ""}, "denylist-source-range": {"10.0.0.0/8", ""},
	"satisfy": {"any", "auth-type=basic ; auth-secret=passwords"},

	"limit-rps": {"5", ""}, "limit-rpm": {"5", ""}, "limit-connections": {"5", ""}, "limit-burst-multiplier": {"2", "limit-rps=5"}, "limit-whitelist": {"10.0.0.0/8", "limit-rps=5"},
	"limit-allowlist": {"10.0.0.0/8", "limit-rps=5"}, "limit-rate": {"5", ""}, "limit-rate-after": {"5", "limit-rate=5"}, "proxy-body-size": {"5m", ""},

	"enable-cors": {"true", ""}, "cors-allow-origin": {"https://a.test", "enable-cors=true"}, "cors-allow-methods": {"GET", "enable-cors=true"}, "cors-allow-headers": {"X-A", "enable-cors=true"},
	"cors-expose-headers": {"X-A", "enable-cors=true"}, "cors-allow-credentials": {"false", "enable-cors=true"}, "cors-max-age": {"5", "enable-cors=true"},

	"custom-http-errors": {"503", "default-backend=errors"}, "default-backend": {"errors", "custom-http-errors=503"}, "disable-proxy-intercept-errors": {"true", "custom-http-errors=503 ; default-backend=errors"},
	"custom-headers": {"headers", "global:global-allowed-response-headers=X-A"}, "proxy-cookie-domain": {"a.test b.test", ""}, "proxy-cookie-path": {"/a /b", ""},
	"proxy-redirect-from": {"http://a.test/", "proxy-redirect-to=/"}, "proxy-redirect-to": {"/", "proxy-redirect-from=http://a.test/"},

	"backend-protocol": {"GRPC", ""}, "service-upstream": {"true", ""}, "load-balance": {"ewma", ""}, "upstream-hash-by": {"$request_uri", ""},
	"upstream-hash-by-subset": {"true", "upstream-hash-by=$request_uri"}, "upstream-hash-by-subset-size": {"5", "upstream-hash-by=$request_uri ; upstream-hash-by-subset=true"},

	"proxy-connect-timeout": {"7", ""}, "proxy-read-timeout": {"7", ""}, "proxy-send-timeout": {"7", ""}, "proxy-next-upstream": {"off", ""}, "proxy-next-upstream-tries": {"7", ""},
	"proxy-next-upstream-timeout": {"7", ""}, "proxy-request-buffering": {"on", ""}, "proxy-buffering": {"on", ""}, "connection-proxy-header": {"close", ""},

	"proxy-ssl-secret": {"clients", "backend-protocol=HTTPS ; proxy-ssl-verify=on"}, "proxy-ssl-verify": {"on", "backend-protocol=HTTPS ; proxy-ssl-secret=clients"},
	"proxy-ssl-name": {"b.test", "backend-protocol=HTTPS"},

	"mirror-target": {"http://m.test$request_uri", ""}, "mirror-host": {"h.test", "mirror-target=http://m.test$request_uri"}, "mirror-request-body": {"off", "mirror-target=http://m.test$request_uri"},

	"enable-modsecurity": {"true", ""}, "enable-owasp-core-rules": {"true", "enable-modsecurity=true"}, "modsecurity-snippet": {"SecRuleEngine On", "enable-modsecurity=true"},
	"enable-access-log": {"false", ""},
}

// without has annotations that are honoured by doing what is done anyhow.
var without = map[string]string{
	"affinity-mode": "both modes keep a session where it is",
}

// keyEffects has each key of the ConfigMap that is honoured and not an annotation as well.
var keyEffects = map[string]effect{
	"add-headers": {"shop/headers", ""}, "proxy-set-headers": {"shop/headers", ""}, "hide-headers": {"X-A", ""}, "global-allowed-response-headers": {"X-A", "@custom-headers=headers"},
	"allow-cross-namespace-resources": {"true", "@auth-type=basic ; @auth-secret=other/passwords"}, "default-backend-service": {"shop/errors", ""},
	"default-ssl-certificate": {"shop/clients", ""}, "rewrite-root": {"replace", "@rewrite-target=/ ; @path=/app"}, "http-redirect-code": {"301", ""}, "no-tls-redirect-locations": {"/app", "@path=/app"},
	"no-auth-locations": {"/app", "@path=/app ; @auth-type=basic ; @auth-secret=passwords"}, "limit-req-status-code": {"429", "@limit-rps=5"}, "limit-conn-status-code": {"429", "@limit-connections=5"},
	"retry-non-idempotent": {"true", ""}, "enable-owasp-modsecurity-crs": {"true", "enable-modsecurity=true"}, "disable-access-log": {"true", ""},
	"disable-proxy-intercept-errors": {"true", "custom-http-errors=503 ; default-backend-service=shop/errors"}, "block-cidrs": {"10.0.0.0/8", ""},
	"block-user-agents": {"bad", ""}, "block-referers": {"bad", ""}, "use-forwarded-headers": {"true", ""}, "enable-real-ip": {"true", ""},
	"proxy-real-ip-cidr": {"10.0.0.0/8", "use-forwarded-headers=true"}, "forwarded-for-header": {"X-Forwarded-For", "use-forwarded-headers=true"}, "use-proxy-protocol": {"true", ""},
	"ssl-protocols": {"TLSv1.3", ""}, "ssl-ciphers": {"ECDHE-RSA-AES128-GCM-SHA256", ""}, "use-http2": {"false", ""}, "ssl-reject-handshake": {"true", "default-ssl-certificate=shop/clients"},
	"global-auth-url": {"http://auth.test/", ""}, "global-auth-method": {"POST", "global-auth-url=http://auth.test/"}, "global-auth-signin": {"https://l.test/", "global-auth-url=http://auth.test/"},
	"global-auth-signin-redirect-param": {"back", "global-auth-url=http://auth.test/ ; global-auth-signin=https://l.test/"},
	"global-auth-response-headers":      {"X-User", "global-auth-url=http://auth.test/"}, "global-auth-request-redirect": {"/x", "global-auth-url=http://auth.test/"},
	"global-auth-cache-key":         {"$http_cookie", "global-auth-url=http://auth.test/ ; global-auth-cache-duration=200 5m"},
	"global-auth-cache-duration":    {"200 5m", "global-auth-url=http://auth.test/ ; global-auth-cache-key=$http_cookie"},
	"global-auth-always-set-cookie": {"true", "global-auth-url=http://auth.test/"},
	// What an annotation of the same name shows.
	"affinity-mode": {"persistent", "@affinity=cookie"}, "cors-allow-credentials": {"false", "@enable-cors=true"}, "custom-http-errors": {"503", "@default-backend=errors"},
	"limit-rate-after": {"5", "limit-rate=5"}, "proxy-redirect-from": {"http://a.test/", "proxy-redirect-to=/"}, "proxy-redirect-to": {"/", "proxy-redirect-from=http://a.test/"},
	"modsecurity-snippet": {"SecRuleEngine On", "enable-modsecurity=true"}, "force-ssl-redirect": {"true", "ssl-redirect=false"},
}

// withoutKeys are keys that say what is so anyhow.
var withoutKeys = map[string]string{
	"affinity-mode": "as the annotation", "forwarded-for-header": "its one value is what weft does",
}

// surroundings are what effects refer to.
func surroundings(t *testing.T) string {
	t.Helper()
	crt, key := inYAML(t, certtest.New(t, named("web.test", true, "web.test"), nil))
	return `
apiVersion: v1
kind: Secret
metadata: {name: clients, namespace: shop}
stringData: {tls.crt: ` + crt + `, tls.key: ` + key + `, ca.crt: ` + crt + `}
---
apiVersion: v1
kind: Secret
metadata: {name: passwords, namespace: other}
stringData: {auth: "ann:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}
---
` + referredTo + `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: main, namespace: shop, annotations: {MAIN}}
spec:
  ingressClassName: nginx
  rules: [{host: canary.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: cart, port: {number: 80}}}}]}}]
---
`
}

// made is all that becomes of annotations and keys, with a certificate for the host.
func made(t *testing.T, around, settings string) string {
	t.Helper()
	annotations, keys, main, path := map[string]string{}, []string{}, "", "/"
	for one := range strings.SplitSeq(settings, " ; ") {
		name, value, _ := strings.Cut(one, "=")
		if rest, ok := strings.CutPrefix(name, "global:"); ok {
			keys = append(keys, rest+": "+quoted(value))
		} else if rest, ok := strings.CutPrefix(name, "main:"); ok {
			main += ingress.Prefix + rest + ": " + quoted(value)
		} else if name == "path" {
			path = value
		} else if name != "" {
			annotations[name] = value
		}
	}
	more := strings.Replace(around, "{MAIN}", "{"+main+"}", 1) + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ingress, namespace: weft}\ndata: {" + strings.Join(keys, ", ") + "}\n---\n"
	s := serve(t, more, annotations, func(i *model.Ingress) {
		i.TLS = []model.IngressTLS{{Hosts: []string{"web.test"}, Secret: "clients"}}
		i.Rules[0].Paths[0].Path = path
		if strings.Contains(settings, "canary") {
			i.Rules[0].Host, i.Rules[0].Paths[0].Backend.Service = "canary.test", "checkout"
		}
	})
	s.update.Revision = 0
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", " ")
	if err := e.Encode(s.update); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Each annotation and key that is said to be honoured changes what gateways are told.
func TestHonouredHasAnEffect(t *testing.T) {
	w := surroundings(t)
	differs := func(name, needs, one string, want bool) {
		t.Helper()
		with := strings.Trim(needs+" ; "+one, " ;")
		if got := made(t, w, needs) != made(t, w, with); got != want {
			t.Errorf("%s: an effect of %q is %v, want %v", name, with, got, want)
		}
	}
	for _, a := range ingress.Annotations() {
		if a.Verdict != ingress.Honoured {
			continue
		}
		e, ok := annotationEffects[a.Name]
		if !ok {
			t.Errorf("%s: nothing here shows that it is honoured", a.Name)
			continue
		}
		_, none := without[a.Name]
		differs(a.Name, e.needs, a.Name+"="+e.value, !none)
	}
	for _, k := range ingress.ConfigKeys() {
		if k.Verdict != ingress.Honoured {
			continue
		}
		e, ok := keyEffects[k.Name]
		if !ok {
			if e, ok = annotationEffects[k.Name]; !ok {
				t.Errorf("ConfigMap: %s: nothing here shows that it is honoured", k.Name)
				continue
			}
		}
		var needs []string
		for n := range strings.SplitSeq(e.needs, " ; ") {
			if rest, ok := strings.CutPrefix(n, "@"); ok {
				needs = append(needs, rest)
			} else if n != "" {
				needs = append(needs, "global:"+n)
			}
		}
		_, none := withoutKeys[k.Name]
		differs("ConfigMap: "+k.Name, strings.Join(needs, " ; "), "global:"+k.Name+"="+e.value, !none)
	}
}
