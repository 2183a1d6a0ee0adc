// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

// wall refuses what says "evil", in the URI, a header or the first 100,000 bytes of a text.
type wall struct{ conf *route.WAF }

func (w wall) Limit(kind string) int {
	if kind == "image/png" {
		return 0
	}
	return 100_000
}

func (w wall) Inspect(r *Inspected) (int, string) {
	all := r.Method + r.URI + r.Host + r.Protocol + string(r.Body)
	for name, value := range r.Headers {
		all += name + value
	}
	switch {
	case strings.Contains(all, "odd"):
		return 999, "a status of its own"
	case strings.Contains(all, "evil"):
		return 406, "evil"
	case r.Truncated:
		return 413, "too large"
	}
	return 0, ""
}

func TestFirewalls(t *testing.T) {
	e := newEcho(t, "e")
	made := func(c *route.WAF) (Firewall, error) {
		if c.Rules == "bad" {
			return nil, errors.New("bad rules")
		}
		return wall{c}, nil
	}
	r := start(t, guarded(route.Policy{WAF: &route.WAF{Rules: "x"}}, e.addr()), Config{NewFirewall: made})
	text, image := map[string]string{"Content-Type": "text/plain"}, map[string]string{"Content-Type": "image/png"}
	for _, c := range []struct {
		target, body string
		header       map[string]string
		want         int
	}{
		{"/", "", nil, 200},
		{"/?q=evil", "", nil, 406},
		{"/", "", map[string]string{"X-A": "evil"}, 406},
		{"/", "odd", text, 403},
		{"/", "all is well", text, 200},
		{"/", "an evil text", text, 406},
		{"/", strings.Repeat("x", 90_000) + "evil", text, 406},
		{"/", strings.Repeat("x", 100_000), text, 200},
		{"/", strings.Repeat("x", 100_001), text, 413},
		{"/", strings.Repeat("x", 1_000_000), text, 413},
		{"/", strings.Repeat("evil", 1_000_000), image, 200},
	} {
		resp, body := r.once("POST", c.target, c.header, c.body)
		if resp.StatusCode != c.want || c.want == 200 && !strings.Contains(body, fmt.Sprintf(`"Length":%d`, len(c.body))) {
			t.Errorf("%s %v, %d bytes: %d, want %d", c.target, c.header, len(c.body), resp.StatusCode, c.want)
		}
		// The same without a length.
		if c.body == "" {
			continue
		}
		conn := r.dial()
		conn.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Type: " + c.header["Content-Type"] + "\r\n\r\n")
		_, _ = fmt.Fprintf(conn, "%x\r\n%s\r\n0\r\n\r\n", len(c.body), c.body)
		if resp, _ := conn.answer(http.MethodPost); resp.StatusCode != c.want {
			t.Errorf("chunked, %d bytes: %d, want %d", len(c.body), resp.StatusCode, c.want)
		}
	}
	until(t, "nothing is held", func() bool { return r.srv.held.bytes.Load() == 0 })
	// What can't be made refuses everything, and so does a gateway without one.
	r.update.Policies[0].WAF = &route.WAF{Rules: "bad"}
	if err := r.srv.Apply(&r.update); err == nil || !strings.Contains(err.Error(), "bad rules") {
		t.Errorf("%v", err)
	}
	r.want(503, "/", nil)
	r.update.Policies[0].WAF = &route.WAF{Rules: "bad", Disabled: true}
	r.apply()
	r.want(200, "/", nil)
	without := start(t, simple(e.addr()))
	without.update.Policies, without.update.Routes = []route.Policy{{Key: "p", WAF: &route.WAF{CoreRules: true}}}, guarded(route.Policy{}, "").Routes
	if err := without.srv.Apply(&without.update); err == nil {
		t.Error("nothing is said")
	}
	without.want(503, "/", nil)
}
