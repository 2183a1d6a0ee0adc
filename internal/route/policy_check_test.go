// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestPolicyCheck(t *testing.T) {
	minus, bad := int64(-1), Template("$nothing")
	for field, p := range map[string]Policy{
		"externalAuth.path":            {ExternalAuth: &ExternalAuth{Backend: "b", Path: "$nothing"}},
		"externalAuth.backend":         {ExternalAuth: &ExternalAuth{Path: "/"}},
		"externalAuth.method":          {ExternalAuth: &ExternalAuth{Backend: "b", Method: "GET /"}},
		"rateLimits[0]":                {RateLimits: []RateLimit{{Per: Duration(time.Second)}}},
		"rateLimits[1].name":           {RateLimits: []RateLimit{{Requests: 1, Per: 1}, {Requests: 1, Per: 1}}},
		"rateLimits[0].status":         {RateLimits: []RateLimit{{Requests: 1, Per: 1, Status: 200}}},
		"rewrite.path":                 {Rewrite: &Rewrite{Path: &PathRewrite{Template: &bad}}},
		"redirect.location":            {Redirect: &Redirect{Location: bad}},
		"redirect.status":              {Redirect: &Redirect{Location: "/", Status: 200}},
		"connections.status":           {Connections: &Connections{Status: 99}},
		"maxRequestBody":               {MaxRequestBody: &minus},
		"responseRate":                 {ResponseRate: &ResponseRate{BytesPerSecond: -1}},
		"errorPages.statuses":          {ErrorPages: &ErrorPages{Statuses: []int{200}}},
		"hsts.maxAge":                  {HSTS: &HSTS{MaxAge: -1}},
		"cookies.domains[0]":           {Cookies: &Cookies{Domains: []Replacement{{}}}},
		"locations.replace[0]":         {Locations: &Locations{Replace: []Replacement{{From: "(", Regex: true}}}},
		"balance.kind":                 {Balance: &Balance{Kind: "Random"}},
		"balance.key":                  {Balance: &Balance{Kind: Hash}},
		"session: name":                {Session: &Session{Kind: SessionCookie, Name: "a;b"}},
		"session: sameSite":            {Session: &Session{Kind: SessionCookie, Name: "a", SameSite: "Maybe"}},
		"externalAuth.cacheKey":        {ExternalAuth: &ExternalAuth{Backend: "b", CacheKey: "${"}},
		"externalAuth.forwardBody":     {ExternalAuth: &ExternalAuth{Backend: "b", ForwardBody: MaxForwardBody + 1}},
		"externalAuth.forwardBody: an": {ExternalAuth: &ExternalAuth{Backend: "b", ForwardBody: 1, CacheKey: "k"}},
		"externalAuth.backend: gRPC":   {ExternalAuth: &ExternalAuth{Host: "h", GRPC: true}},
		"externalAuth.grpc":            {ExternalAuth: &ExternalAuth{Backend: "b", GRPC: true, Signin: "/in"}},
		"externalAuth.requestHeaders":  {ExternalAuth: &ExternalAuth{Backend: "b", RequestHeaders: []Header{{"X", "$"}, {"Y", "$no"}}}},
	} {
		if err := p.Check(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	good := Policy{
		ExternalAuth: &ExternalAuth{Host: "$host", Path: "/auth?rd=$escaped_request_uri", Method: "GET"}, HSTS: &HSTS{MaxAge: 1},
		RateLimits: []RateLimit{{Name: "a", Requests: 1, Per: 1, Status: 429}, {Name: "b", Requests: 1, Per: 1}},
		Balance:    &Balance{Kind: Hash, Key: "$remote_addr"}, Session: &Session{Kind: SessionCookie, Name: "route", SameSite: "None"},
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	good.ExternalAuth = &ExternalAuth{Backend: "b", GRPC: true, Headers: []string{"Cookie"}, ForwardBody: MaxForwardBody, Timeout: 1}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}

func TestHtpasswd(t *testing.T) {
	bcrypt := "$2y$05$" + strings.Repeat("x", 53)
	users, err := ParseHtpasswd(strings.Join([]string{
		"# a comment", "", "ann:" + bcrypt, "bob:$apr1$salt$hash", "cat:{SHA}x:comment", "dan:$6$rounds=5000$s$h", "ann:{SHA}second",
		"old:rqXexS6ZhobKA", "plain:secret", "slow:$2y$31$" + strings.Repeat("x", 53), "cut:$2y$05$x", "odd:$9$x$y", "nonsense", "spin:$5$rounds=99999999$s$h",
	}, "\r\n"))
	want := []PasswordHash{{"ann", bcrypt}, {"bob", "$apr1$salt$hash"}, {"cat", "{SHA}x"}, {"dan", "$6$rounds=5000$s$h"}}
	if len(users) != len(want) {
		t.Fatalf("%v", users)
	}
	for i := range want {
		if users[i] != want[i] {
			t.Errorf("%d: %s %q", i, users[i], users[i].Hash)
		}
	}
	for _, s := range []string{"user old: hashes of DES", "user plain: the password is not hashed", "user slow: the bcrypt hash has cost", "user cut: the bcrypt hash is cut", "user odd: hashes of kind \"$9$\"", "line 13 is not", "user spin: "} {
		if err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("nothing says %q", s)
		}
	}
	for _, secret := range []string{"rqXexS6ZhobKA", "secret"} {
		if strings.Contains(err.Error(), secret) || strings.Contains(fmt.Sprintf("%+v %#v", users, users), bcrypt) {
			t.Errorf("a hash is told")
		}
	}
}

func FuzzParseHtpasswd(f *testing.F) {
	f.Add("a:$2y$05$x\nb:{SHA}\n{:{\n:$\nx:$5$rounds=")
	f.Fuzz(func(t *testing.T, s string) {
		users, _ := ParseHtpasswd(s)
		for _, u := range users {
			if u.User == "" || u.Hash == "" {
				t.Errorf("%q gives %q", s, u.Hash)
			}
		}
	})
}
