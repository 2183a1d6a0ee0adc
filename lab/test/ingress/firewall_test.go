// SPDX-License-Identifier: Apache-2.0

package ingress

import "testing"

func TestFirewall(t *testing.T) {
	c := outside(t)
	rule := `SecRule ARGS:evil "@streq yes" "id:1234,phase:1,deny,status:403"`
	for name, a := range map[string]map[string]string{
		"rules":      {"modsecurity-snippet": "SecRuleEngine On\n" + rule},
		"detect":     {"modsecurity-snippet": rule},
		"core":       {"enable-owasp-core-rules": "true", "modsecurity-snippet": "SecRuleEngine On"},
		"forbidden":  {"modsecurity-snippet": `SecRule ARGS "@rx x" "id:1,exec:/bin/sh"`},
		"include":    {"modsecurity-snippet": "Include /etc/passwd"},
		"not-a-rule": {"modsecurity-snippet": "SecNonsense On"},
	} {
		a["enable-modsecurity"] = "true"
		apply(t, spec{name: "waf-" + name, host: name + ".waf.test", paths: []string{"/ cart"}, annotations: a})
	}
	c.until(t, "http://rules.waf.test/?evil=no", from("cart"))
	c.until(t, "http://rules.waf.test/?evil=yes", status(403))
	c.until(t, "http://detect.waf.test/?evil=yes", from("cart"))
	c.until(t, "http://core.waf.test/?a=b", from("cart"), "User-Agent: Mozilla/5.0", "Accept: text/html")
	c.until(t, "http://core.waf.test/?a=%3Cscript%3Ealert(1)%3C/script%3E", status(403), "User-Agent: Mozilla/5.0", "Accept: text/html")
	for _, closed := range []string{"forbidden", "include", "not-a-rule"} {
		c.until(t, "http://"+closed+".waf.test/", status(503))
	}
	event(t, "waf-forbidden", "Denied", "reaches outside the request")
}
