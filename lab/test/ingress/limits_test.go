// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// flood sends n requests one after the other and counts the statuses.
func flood(t *testing.T, c *client, url string, n int) map[int]int {
	t.Helper()
	seen := map[int]int{}
	for range n {
		seen[c.get(t, url).status]++
	}
	return seen
}

func TestRateLimits(t *testing.T) {
	c := outside(t)
	// So few a minute that no machine is too slow to be above.
	apply(t, spec{name: "limit-rpm", host: "rpm.limits.test", paths: []string{"/ cart"}, annotations: map[string]string{"limit-rpm": "1", "limit-burst-multiplier": "3"}})
	apply(t, spec{name: "limit-exempt", host: "exempt.limits.test", paths: []string{"/ cart"}, annotations: map[string]string{"limit-rpm": "1", "limit-whitelist": "172.30.0.0/24"}})
	apply(t, spec{name: "limit-rps", host: "rps.limits.test", paths: []string{"/ cart"}, annotations: map[string]string{"limit-rps": "500"}})
	c.until(t, "http://rpm.limits.test/", from("cart"))
	seen := flood(t, c, "http://rpm.limits.test/", 10)
	if seen[200] > 4 || seen[503] < 6 {
		t.Errorf("1 a minute with a burst of 3: %v", seen)
	}
	c.until(t, "http://exempt.limits.test/", from("cart"))
	if seen := flood(t, c, "http://exempt.limits.test/", 10); seen[200] != 10 {
		t.Errorf("an address without limits: %v", seen)
	}
	c.until(t, "http://rps.limits.test/", from("cart"))
	if seen := flood(t, c, "http://rps.limits.test/", 10); seen[200] != 10 {
		t.Errorf("below the limit: %v", seen)
	}
}

func TestLimitConnections(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "limit-connections", host: "connections.limits.test", paths: []string{"/ cart"}, annotations: map[string]string{"limit-connections": "2"}})
	c.until(t, "http://connections.limits.test/", from("cart"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int]int{}
	for range 8 {
		wg.Go(func() {
			a, err := c.do(http.MethodGet, "http://connections.limits.test/delay/6s", "")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				seen[0]++
			} else {
				seen[a.status]++
			}
		})
	}
	wg.Wait()
	if seen[503] == 0 || seen[200] < 2 || seen[200] > 4 {
		t.Errorf("8 requests of 6 s at once, 2 of which may be under way: %v", seen)
	}
}

func TestLimitRate(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "limit-rate", host: "rate.limits.test", paths: []string{"/ cart"}, annotations: map[string]string{"limit-rate": "50", "limit-rate-after": "10", "proxy-buffering": "on"}})
	c.until(t, "http://rate.limits.test/", from("cart"))
	began := time.Now()
	a := c.get(t, "http://rate.limits.test/bytes/112640") // 110 KiB: 10 at once, 100 at 50 KiB/s
	if took := time.Since(began); len(a.body) != 112640 || took < time.Second {
		t.Errorf("%d bytes took %v, want about 2 s", len(a.body), took)
	}
}

func TestBodySize(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "body-default", host: "default.body.test", paths: []string{"/ cart"}})
	apply(t, spec{name: "body-small", host: "small.body.test", paths: []string{"/ cart"}, annotations: map[string]string{"proxy-body-size": "1k"}})
	apply(t, spec{name: "body-any", host: "any.body.test", paths: []string{"/ cart"}, annotations: map[string]string{"proxy-body-size": "0", "proxy-request-buffering": "off"}})
	post := func(host string, size int) int {
		t.Helper()
		a, err := c.do(http.MethodPost, "http://"+host+".body.test/", strings.Repeat("x", size))
		if err != nil {
			t.Fatalf("POST of %d bytes to %s: %v", size, host, err)
		}
		return a.status
	}
	for _, h := range []string{"default", "small", "any"} {
		c.until(t, "http://"+h+".body.test/", from("cart"))
	}
	for _, s := range []struct {
		host string
		size int
		want int
	}{{"default", 1 << 20, 200}, {"default", 1<<20 + 1, 413}, {"small", 1024, 200}, {"small", 1025, 413}, {"any", 3 << 20, 200}} {
		if got := post(s.host, s.size); got != s.want {
			t.Errorf("%s: a body of %d bytes gets %d, want %d", s.host, s.size, got, s.want)
		}
	}
}

func TestCORS(t *testing.T) {
	c := outside(t)
	apply(t, spec{name: "cors", host: "cors.test", paths: []string{"/ cart"}, annotations: map[string]string{"enable-cors": "true"}})
	apply(t, spec{name: "cors-own", host: "cors-own.test", paths: []string{"/ cart"}, annotations: map[string]string{
		"enable-cors": "true", "cors-allow-origin": "https://origin.test:8080, https://*.foo.test", "cors-allow-methods": "POST, GET", "cors-allow-headers": "DNT, User-Agent",
		"cors-allow-credentials": "false", "cors-max-age": "200", "cors-expose-headers": "X-Custom",
	}})
	preflight := func(url, origin string) *answer {
		t.Helper()
		a, err := c.do(http.MethodOptions, url, "", "Origin: "+origin, "Access-Control-Request-Method: POST")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	c.until(t, "http://cors.test/", all(from("cart"), func(a *answer) error {
		if got := a.header.Get("Access-Control-Allow-Origin"); got != "*" && got != "https://any.test" {
			return fmt.Errorf("Access-Control-Allow-Origin %q", got)
		}
		return nil
	}), "Origin: https://any.test")
	a := preflight("http://cors.test/", "https://any.test")
	if a.status != 204 || !strings.Contains(a.header.Get("Access-Control-Allow-Methods"), "PATCH") || a.header.Get("Access-Control-Max-Age") != "1728000" ||
		!strings.Contains(a.header.Get("Access-Control-Allow-Headers"), "If-Modified-Since") || a.header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("preflight: %d, %v", a.status, a.header)
	}
	c.until(t, "http://cors-own.test/", all(from("cart"), header("Access-Control-Allow-Origin", "https://a.foo.test"), header("Access-Control-Expose-Headers", "X-Custom"),
		header("Access-Control-Allow-Credentials", "")), "Origin: https://a.foo.test")
	for _, origin := range []string{"https://origin.test", "https://foo.test", "http://a.foo.test", "https://a.b.foo.test"} {
		if a := c.get(t, "http://cors-own.test/", "Origin: "+origin); a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("origin %s is allowed: %v", origin, a.header)
		}
	}
	a = preflight("http://cors-own.test/", "https://origin.test:8080")
	if a.status != 204 || a.header.Get("Access-Control-Allow-Methods") != "POST, GET" || a.header.Get("Access-Control-Allow-Headers") != "DNT, User-Agent" ||
		a.header.Get("Access-Control-Max-Age") != "200" {
		t.Errorf("preflight: %d, %v", a.status, a.header)
	}
}
