// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// The passwords of all are "secret", hashed in ways that htpasswd knows.
const htpasswd = `jane:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=
apr1:$apr1$weftsalt$ZAuCx6bFBL1pKjPKwv6FX0
bcrypt:$2y$05$c4WoMPo3SXsafkva.HHa6u7b1XOWKqA7XZANDrnv4IVny/8ABNR66
`

func basic(user, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func challenges(a *answer) error {
	if got := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Basic realm="shop staff"`) {
		return fmt.Errorf("WWW-Authenticate %q", got)
	}
	return nil
}

// signin wants a redirect to a page that is told where the browser came from.
func signin(page, param, from string) func(*answer) error {
	return func(a *answer) error {
		u, err := url.Parse(a.header.Get("Location"))
		if err != nil || a.status != 302 || !strings.HasPrefix(u.String(), page) || u.Query().Get(param) != from {
			return fmt.Errorf("status %d to %q, want 302 to %s with %s=%s", a.status, u, page, param, from)
		}
		return nil
	}
}

func TestBasicAuth(t *testing.T) {
	c := outside(t)
	secret(t, "passwords", "Opaque", map[string][]byte{"auth": []byte(htpasswd)})
	secret(t, "passwords-map", "Opaque", map[string][]byte{"jane": []byte("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=")})
	for name, a := range map[string]map[string]string{
		"basic":     {"auth-type": "basic", "auth-secret": "passwords", "auth-realm": "shop staff"},
		"basic-map": {"auth-type": "basic", "auth-secret": "shop/passwords-map", "auth-secret-type": "auth-map", "auth-realm": "shop staff"},
	} {
		host := name + ".test"
		apply(t, spec{name: name, host: host, paths: []string{"/ cart", "/.well-known/acme-challenge checkout"}, annotations: a})
		c.until(t, "http://"+host+"/", all(status(401), challenges))
		c.until(t, "http://"+host+"/", status(401), basic("jane", "wrong"))
		c.until(t, "http://"+host+"/", status(401), basic("john", "secret"))
		c.until(t, "http://"+host+"/", all(from("cart"), saw("Authorization", "")), basic("jane", "secret"))
		c.until(t, "http://"+host+"/.well-known/acme-challenge/token", from("checkout"))
	}
	c.until(t, "http://basic.test/", from("cart"), basic("apr1", "secret"))
	c.until(t, "http://basic.test/", from("cart"), basic("bcrypt", "secret"))
	c.until(t, "http://basic.test/", status(401), basic("bcrypt", "wrong"))
	secret(t, "passwords-map", "Opaque", map[string][]byte{"john": []byte("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=")})
	c.until(t, "http://basic-map.test/", from("cart"), basic("john", "secret"))
	c.until(t, "http://basic-map.test/", status(401), basic("jane", "secret"))
}

// What is to keep somebody out and can't be had lets nobody in.
func TestAuthFailsClosed(t *testing.T) {
	c := outside(t)
	for name, a := range map[string]map[string]string{
		"no-secret": {"auth-type": "basic", "auth-secret": "no-such-secret"}, "digest": {"auth-type": "digest", "auth-secret": "passwords"},
		"no-type": {"auth-secret": "passwords"}, "no-name": {"auth-type": "basic"}, "elsewhere": {"auth-type": "basic", "auth-secret": "kube-system/passwords"},
		"bad-range": {"whitelist-source-range": "10.0.0.0/99"}, "bad-url": {"auth-url": "ftp://auth.test"}, "misspelt": {"whitelist-source-ranges": "10.0.0.0/8"},
		"bad-limit": {"limit-rps": "many"},
	} {
		apply(t, spec{name: "closed-" + name, host: name + ".closed.test", paths: []string{"/ cart"}, annotations: a})
		c.until(t, "http://"+name+".closed.test/", status(503))
		event(t, "closed-"+name, "Denied", "requests get 503")
	}
}

func TestExternalAuth(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "external", host: "external.test", paths: []string{"/ cart", "/.well-known/acme-challenge checkout"}, annotations: map[string]string{
		"auth-url": "http://checkout.shop.svc.cluster.local/status/$arg_auth?header=X-User:jane&header=Set-Cookie:seen%3Dyes", "auth-response-headers": "X-User, X-Missing",
	}})
	c.until(t, "http://external.test/a?auth=200", all(from("cart"), saw("X-User", "jane"), header("Set-Cookie", "seen=yes")), "X-User: forged")
	c.until(t, "http://external.test/a?auth=401", status(401))
	c.until(t, "http://external.test/a?auth=403", status(403))
	c.until(t, "http://external.test/a?auth=500", status(500))
	c.until(t, "http://external.test/a?auth=404", status(500))
	c.until(t, "http://external.test/.well-known/acme-challenge/x", from("checkout"))
	apply(t, spec{name: "signin", host: "signin.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"auth-url": "http://checkout.shop.svc.cluster.local/status/401", "auth-signin": "https://login.test/start",
	}})
	c.until(t, "http://signin.test/a?b=c", signin("https://login.test/start?", "rd", "http://signin.test/a?b=c"))
	apply(t, spec{name: "signin-param", host: "signin-param.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"auth-url": "http://checkout.shop.svc.cluster.local/status/401", "auth-signin": "https://login.test/start?a=b", "auth-signin-redirect-param": "orig",
	}})
	c.until(t, "http://signin-param.test/", signin("https://login.test/start?a=b&", "orig", "http://signin-param.test/"))
	// As oauth2-proxy is usually set up: the same host has its paths, by an Ingress without authentication.
	apply(t, spec{name: "oauth", host: "oauth.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"auth-url": "http://$host/status/$arg_auth?header=X-User:jane", "auth-signin": "http://$host/start?rd=$escaped_request_uri", "auth-response-headers": "X-User",
	}})
	apply(t, spec{name: "oauth-paths", host: "oauth.test", paths: []string{"/status checkout", "/start checkout"}})
	c.until(t, "http://oauth.test/a?auth=200", all(from("cart"), saw("X-User", "jane")))
	c.until(t, "http://oauth.test/a?auth=401", redirect(302, "http://oauth.test/start?rd=%2Fa%3Fauth%3D401"))
	apply(t, spec{name: "unreachable", host: "unreachable.test", paths: []string{"/ cart"}, annotations: map[string]string{"auth-url": "http://nobody.invalid/"}})
	c.until(t, "http://unreachable.test/", func(a *answer) error {
		if a.status < 500 {
			return fmt.Errorf("status %d without an answer of the authentication server", a.status)
		}
		return nil
	})
}

func TestSourceRanges(t *testing.T) {
	c := outside(t)
	for name, a := range map[string]map[string]string{
		"allowed": {"whitelist-source-range": "172.30.0.0/24, fd00::/8"}, "not-allowed": {"whitelist-source-range": "18.0.0.0/8,56.0.0.1"},
		"newer-name": {"allowlist-source-range": "18.0.0.0/8"}, "denied": {"denylist-source-range": "172.30.0.2"}, "not-denied": {"denylist-source-range": "18.0.0.0/8"},
	} {
		apply(t, spec{name: name, host: name + ".ranges.test", paths: []string{"/ cart"}, annotations: a})
		want := status(403)
		if name == "allowed" || name == "not-denied" {
			want = from("cart")
		}
		c.until(t, "http://"+name+".ranges.test/", want)
	}
}

func TestSatisfy(t *testing.T) {
	c := outside(t)
	secret(t, "passwords", "Opaque", map[string][]byte{"auth": []byte(htpasswd)})
	for name, ranges := range map[string]string{"inside": "172.30.0.0/24", "beyond": "18.0.0.0/8"} {
		for _, satisfy := range []string{"any", "all"} {
			host := name + "-" + satisfy + ".satisfy.test"
			apply(t, spec{name: name + "-" + satisfy, host: host, paths: []string{"/ cart"}, annotations: map[string]string{
				"auth-type": "basic", "auth-secret": "passwords", "whitelist-source-range": ranges, "satisfy": satisfy,
			}})
			want := map[string][2]int{"inside-any": {200, 200}, "inside-all": {401, 200}, "beyond-any": {401, 200}, "beyond-all": {403, 403}}[name+"-"+satisfy]
			c.until(t, "http://"+host+"/", status(want[0]))
			c.until(t, "http://"+host+"/", status(want[1]), basic("jane", "secret"))
		}
	}
}

func TestClientCertificates(t *testing.T) {
	g := ready(t)
	ca := certify(t, nil, "clients' CA")
	jane, john := certify(t, ca, "jane"), certify(t, nil, "john")
	server := certify(t, nil, "mutual.test", "*.mutual.test")
	tlsSecret(t, "mutual", server)
	secret(t, "clients", "Opaque", map[string][]byte{"ca.crt": ca.cert})
	for name, a := range map[string]map[string]string{
		"on": {}, "optional": {"auth-tls-verify-client": "optional"}, "no-ca": {"auth-tls-verify-client": "optional_no_ca"},
		"off": {"auth-tls-verify-client": "off"}, "pass": {"auth-tls-pass-certificate-to-upstream": "true"}, "cn": {"auth-tls-match-cn": "CN=(jane|joan)"},
		"not-cn": {"auth-tls-match-cn": "CN=nobody"}, "page": {"auth-tls-error-page": "https://help.test/certificates"},
	} {
		a["auth-tls-secret"] = "shop/clients"
		apply(t, spec{name: "mutual-" + name, host: name + ".mutual.test", paths: []string{"/ cart"}, secret: "mutual", annotations: a})
	}
	with := &client{g: g, cert: jane.own(t)}
	without := &client{g: g}
	other := &client{g: g, cert: john.own(t)}
	at := func(name string) string { return "https://" + name + ".mutual.test/" }
	with.until(t, at("on"), all(from("cart"), saw("Ssl-Client-Verify", "SUCCESS"), saw("Ssl-Client-Subject-Dn", "CN=jane"), saw("Ssl-Client-Issuer-Dn", "CN=clients' CA"), saw("Ssl-Client-Cert", "")))
	without.until(t, at("on"), status(400))
	other.until(t, at("on"), status(400))
	with.until(t, at("optional"), all(from("cart"), saw("Ssl-Client-Verify", "SUCCESS")))
	without.until(t, at("optional"), all(from("cart"), saw("Ssl-Client-Verify", "NONE")), "Ssl-Client-Verify: SUCCESS")
	other.until(t, at("optional"), status(400))
	other.until(t, at("no-ca"), all(from("cart"), func(a *answer) error {
		if !strings.HasPrefix(a.saw("Ssl-Client-Verify"), "FAILED") {
			return fmt.Errorf("the backend saw %q", a.saw("Ssl-Client-Verify"))
		}
		return nil
	}))
	without.until(t, at("off"), all(from("cart"), saw("Ssl-Client-Verify", "")))
	with.until(t, at("pass"), func(a *answer) error {
		if !strings.HasPrefix(a.saw("Ssl-Client-Cert"), "-----BEGIN%20CERTIFICATE-----%0A") {
			return fmt.Errorf("the backend saw %q", a.saw("Ssl-Client-Cert"))
		}
		return nil
	})
	with.until(t, at("cn"), from("cart"))
	with.until(t, at("not-cn"), status(403))
	without.until(t, at("page"), redirect(302, "https://help.test/certificates"))
	apply(t, spec{name: "mutual-closed", host: "closed.mutual.test", paths: []string{"/ cart"}, secret: "mutual", annotations: map[string]string{"auth-tls-secret": "shop/no-such"}})
	with.until(t, at("closed"), status(503))
}
