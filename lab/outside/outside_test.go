// SPDX-License-Identifier: Apache-2.0

package outside

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestZone(t *testing.T) {
	zone := Zone{"internet.example": {netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ffff::1")}}
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  string
	}{
		{"internet.example.", dns.TypeA, dns.RcodeSuccess, "203.0.113.1"},
		{"Www.Internet.Example.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:ffff::1"},
		{"internet.example.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"example.", dns.TypeA, dns.RcodeNameError, ""},
		{"xinternet.example.", dns.TypeA, dns.RcodeNameError, ""},
	} {
		answer := new(dns.Msg)
		zone.resolve(answer, dns.Question{Name: c.name, Qtype: c.kind, Qclass: dns.ClassINET})
		got := ""
		for _, rr := range answer.Answer {
			got += strings.Fields(rr.String())[4]
		}
		if answer.Rcode != c.rcode || got != c.want {
			t.Errorf("%s %s: got %s %q, want %s %q", c.name, dns.TypeToString[c.kind],
				dns.RcodeToString[answer.Rcode], got, dns.RcodeToString[c.rcode], c.want)
		}
		if c.want == "" && len(answer.Ns) != 1 {
			t.Errorf("%s %s: no SOA beside no answer", c.name, dns.TypeToString[c.kind])
		}
	}
}

func TestProxy(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the proxy's password went on to the server")
		}
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, r.Method+" "+r.URL.Path)
	})
	plain, tls := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer tls.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go ServeProxy(l, (&net.Dialer{}).DialContext, "secret")

	get := func(target, password string) (int, string, error) {
		via := &url.URL{Scheme: "http", User: url.UserPassword("pull", password), Host: l.Addr().String()}
		transport := tls.Client().Transport.(*http.Transport).Clone()
		transport.Proxy = http.ProxyURL(via)
		resp, err := (&http.Client{Transport: transport}).Get(target)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	byName := strings.Replace(plain.URL, "127.0.0.1", Host, 1)
	for _, target := range []string{byName + "/v2/", tls.URL + "/v2/"} {
		if code, body, err := get(target, "secret"); err != nil || code != http.StatusTeapot || body != "GET /v2/" {
			t.Errorf("%s: %d %q %v", target, code, body, err)
		}
		if code, _, err := get(target, "guess"); err == nil && code != http.StatusProxyAuthRequired {
			t.Errorf("%s with a wrong password: %d", target, code)
		}
	}
}
