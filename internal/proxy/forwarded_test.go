// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"testing"

	"github.com/weft-net/weft/internal/route"
)

func TestForwarded(t *testing.T) {
	e := newEcho(t, "e")
	for _, c := range []struct {
		name            string
		trusted, tell   bool
		in, xff         string
		forwarded, want string // what the endpoint gets in Forwarded and X-Forwarded-For
		client          string
	}{
		{"none", false, false, "", "", "", "127.0.0.1", "127.0.0.1"},
		{"asked for", false, true, "", "", `for=127.0.0.1;host=a.example.com;proto=http`, "127.0.0.1", "127.0.0.1"},
		{"forged", false, false, "for=192.0.2.1", "", "", "127.0.0.1", "127.0.0.1"},
		{"forged, asked for", false, true, "for=192.0.2.1", "", `for=127.0.0.1;host=a.example.com;proto=http`, "127.0.0.1", "127.0.0.1"},
		{"trusted", true, false, `for="[2001:db8::1]:47011";proto=https, for=192.0.2.1`, "", `for="[2001:db8::1]:47011";proto=https, for=192.0.2.1, for=127.0.0.1;host=a.example.com;proto=http`,
			"2001:db8::1, 192.0.2.1, 127.0.0.1", "192.0.2.1"},
		{"hidden", true, false, `for=192.0.2.1, for=_secret`, "", `for=192.0.2.1, for=_secret, for=127.0.0.1;host=a.example.com;proto=http`, "192.0.2.1, unknown, 127.0.0.1", "127.0.0.1"},
		{"both", true, false, "for=192.0.2.1", "192.0.2.7", `for=192.0.2.1, for=127.0.0.1;host=a.example.com;proto=http`, "192.0.2.7, 127.0.0.1", "192.0.2.7"},
	} {
		u := simple(e.addr())
		u.Listeners[0].Forwarded = c.tell
		if c.trusted {
			u.Listeners[0].TrustedProxies = prefixes("127.0.0.0/8")
		}
		u.Routes[0].Rules[0].Filters = []route.Filter{{RequestHeaders: &route.HeaderEdit{SetTemplates: []route.TemplateHeader{{Name: "X-Client", Value: "$remote_addr"}}}}}
		header := map[string]string{}
		if c.in != "" {
			header["Forwarded"] = c.in
		}
		if c.xff != "" {
			header["X-Forwarded-For"] = c.xff
		}
		status, s := start(t, u).get("/", header)
		if status != http.StatusOK || s.Header.Get("Forwarded") != c.forwarded || s.Header.Get("X-Forwarded-For") != c.want || s.Header.Get("X-Client") != c.client {
			t.Errorf("%s: %d, Forwarded %q, X-Forwarded-For %q, client %s", c.name, status, s.Header.Get("Forwarded"), s.Header.Get("X-Forwarded-For"), s.Header.Get("X-Client"))
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	f.Add(`for="[2001:db8::1]:47011";proto=https, for=192.0.2.1;by="a\"b,c"`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []byte(forwardedFor(s)) {
			if !isValue[c] {
				t.Errorf("%q gives %q", s, forwardedFor(s))
			}
		}
	})
}
