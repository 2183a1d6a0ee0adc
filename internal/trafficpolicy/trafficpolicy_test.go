// SPDX-License-Identifier: Apache-2.0

package trafficpolicy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

func name(s string) model.Name { return model.Name{Namespace: "shop", Name: s} }

// parse reads a policy whose spec is given, with a target when it names none.
func parse(t *testing.T, n, spec string) *v1alpha1.TrafficPolicy {
	t.Helper()
	p := &v1alpha1.TrafficPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: n, Generation: 3}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	if p.Spec.TargetRefs == nil {
		p.Spec.TargetRefs = []v1alpha1.TrafficPolicyTarget{ref("Gateway", "web", "")}
	}
	return p
}

func ref(kind, n, section string) v1alpha1.TrafficPolicyTarget {
	return v1alpha1.TrafficPolicyTarget{Group: gatewayapi.GroupName, Kind: kind, Name: n, SectionName: section}
}

// world is what policies find: a Gateway of weft's with listeners a and b, another's, a route, a Secret, a Service.
func world() *gatewayapi.Change {
	class := func(controller string) *gwv1.GatewayClass {
		return &gwv1.GatewayClass{Spec: gwv1.GatewayClassSpec{ControllerName: gwv1.GatewayController(controller)}}
	}
	gateway := func(class string) *gwv1.Gateway {
		return &gwv1.Gateway{Spec: gwv1.GatewaySpec{GatewayClassName: gwv1.ObjectName(class), Listeners: []gwv1.Listener{{Name: "a"}, {Name: "b"}}}}
	}
	rule := gwv1.SectionName("cart")
	return &gatewayapi.Change{
		GatewayClasses: map[string]*gwv1.GatewayClass{"weft": class(gatewayapi.ControllerName), "other": class("example.com/x")},
		Gateways:       map[model.Name]*gwv1.Gateway{name("web"): gateway("weft"), name("theirs"): gateway("other")},
		HTTPRoutes:     map[model.Name]*gwv1.HTTPRoute{name("r"): {Spec: gwv1.HTTPRouteSpec{Rules: []gwv1.HTTPRouteRule{{}, {Name: &rule}}}}},
		Secrets:        map[model.Name]*model.Secret{name("users"): {Data: map[string][]byte{"auth": []byte("u:{SHA}x")}}},
		Services:       map[model.Name]*model.Service{name("auth"): {Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}},
	}
}

func TestTranslate(t *testing.T) {
	yes, no := true, false
	for spec, want := range map[string]route.Policy{
		`{sources: {allow: [192.0.2.0/24, "2001:db8::1"], deny: [192.0.2.9/28]}, satisfy: Any}`: {Sources: &route.Sources{
			Allow: cidrs("192.0.2.0/24", "2001:db8::1/128"), Deny: cidrs("192.0.2.0/28")}, SatisfyAny: &yes},
		`{satisfy: All}`: {SatisfyAny: &no},
		`{basicAuth: {realm: x, secretRef: {name: users}}}`: {BasicAuth: &route.BasicAuth{Realm: "x", Users: "u:{SHA}x"}},
		`{externalAuth: {backendRef: {name: auth, port: 80}, path: /check, timeout: 2s, cache: {key: $http_cookie, for: [{statuses: [200], duration: 5m}]}}}`: {
			ExternalAuth: &route.ExternalAuth{AuthRequest: true, Backend: "Service/shop/auth/80", Path: "/check", Method: "GET", Timeout: route.Duration(2 * time.Second),
				CacheKey: "$http_cookie", CacheFor: []route.CacheEntry{{Statuses: []int{200}, For: route.Duration(5 * time.Minute)}}}},
		`{externalAuth: {signInURL: "https://$host/in", signInParameter: rd, requestHeaders: [{name: X, value: $uri}], responseHeaders: [X-User]}}`: {
			ExternalAuth: &route.ExternalAuth{AuthRequest: true, Host: "$http_host", Path: "/", Method: "GET", Signin: "https://$host/in", SigninParam: "rd",
				RequestHeaders: []route.Header{{Name: "X", Value: "$uri"}}, ResponseHeaders: []string{"X-User"}}},
		`{externalAuth: {disabled: true}}`: {ExternalAuth: &route.ExternalAuth{Disabled: true, Host: "$http_host", Path: "/", Method: "GET"}},
		`{rateLimits: [{requests: 5, per: 1s, burst: 10, exempt: [10.0.0.0/8]}], connectionLimit: {max: 9}}`: {
			RateLimits:  []route.RateLimit{{Requests: 5, Per: route.Duration(time.Second), Burst: 10, Status: 429, Exempt: cidrs("10.0.0.0/8")}},
			Connections: &route.Connections{Max: 9}},
		`{requestBody: {maxSize: 8Mi, buffer: true}, responseBody: {buffer: false, bytesPerSecond: 1M, fullSpeedBytes: 64Ki}}`: {
			MaxRequestBody: pointer(int64(8 << 20)), BufferRequest: &yes, BufferResponse: &no, ResponseRate: &route.ResponseRate{BytesPerSecond: 1e6, After: 65536}},
		`{errorPages: {statuses: [404, 503], backendRef: {name: auth, port: 80}}}`: {ErrorPages: &route.ErrorPages{Statuses: []int{404, 503},
			Backend: "Service/shop/auth/80", Headers: []route.Header{{Name: "X-Namespace", Value: "shop"}, {Name: "X-Service-Name", Value: "auth"}, {Name: "X-Service-Port", Value: "80"}}}},
		`{rewrite: {hostname: x.example.com, path: /$1}, redirect: {location: "https://x/$1", status: 301}}`: {
			Rewrite: &route.Rewrite{Hostname: "x.example.com", Path: &route.PathRewrite{Template: pointer(route.Template("/$1"))}}, Redirect: &route.Redirect{Location: "https://x/$1", Status: 301}},
		`{strictTransportSecurity: {includeSubdomains: true}}`: {HSTS: &route.HSTS{MaxAge: 31536000, IncludeSubdomains: true}},
		`{strictTransportSecurity: {maxAgeSeconds: 0}}`:        {HSTS: &route.HSTS{}},
		`{hideHeaders: [Server], locations: [{from: "http://x/", to: /}], cookies: {paths: [{from: ^/a, regex: true, to: /b}]}}`: {HideHeaders: []string{"Server"},
			Locations: &route.Locations{Replace: []route.Replacement{{From: "http://x/", To: "/"}}},
			Cookies:   &route.Cookies{Paths: []route.Replacement{{From: "^/a", Regex: true, To: "/b"}}}},
		`{loadBalancing: {type: Hash, subsetSize: 3}}`:             {Balance: &route.Balance{Kind: route.Hash, Key: "$remote_addr", SubsetSize: 3}},
		`{loadBalancing: {type: Hash, hashKey: $cookie_user}}`:     {Balance: &route.Balance{Kind: route.Hash, Key: "$cookie_user"}},
		`{loadBalancing: {type: EWMA}}`:                            {Balance: &route.Balance{Kind: route.EWMA}},
		`{sessionCookie: {name: s, lifetime: 1h, sameSite: None}}`: {Session: &route.Session{Kind: route.SessionCookie, Name: "s", Permanent: true, AbsoluteTimeout: route.Duration(time.Hour), SameSite: "None", ChangeOnFailure: true}},
		`{sessionCookie: {name: s, changeOnFailure: false}}`:       {Session: &route.Session{Kind: route.SessionCookie, Name: "s"}},
		`{timeouts: {request: 10s, connect: 1s, read: 2s, send: 3s}}`: {Timeouts: &route.Timeouts{Request: route.Duration(10 * time.Second)},
			ConnectTimeout: route.Duration(time.Second), ReadTimeout: route.Duration(2 * time.Second), SendTimeout: route.Duration(3 * time.Second)},
		`{retry: {statuses: [502, 503], backoff: 50ms}}`:          {Retry: &route.Retry{Codes: []int{502, 503}, Attempts: 1, Backoff: route.Duration(50 * time.Millisecond), Idempotent: true}},
		`{retry: {attempts: 0, idempotentOnly: false}}`:           {Retry: &route.Retry{Unsafe: true}},
		`{accessLog: false, firewall: {mode: Detect}}`:            {AccessLog: &no, WAF: &route.WAF{CoreRules: true, DetectOnly: true}},
		`{firewall: {mode: Enforce, coreRules: false, rules: x}}`: {WAF: &route.WAF{Rules: "x"}},
		`{firewall: {mode: "Off"}}`:                               {WAF: &route.WAF{CoreRules: true, Disabled: true}},
	} {
		s, c := New(), world()
		statuses := s.Apply(c, map[model.Name]*v1alpha1.TrafficPolicy{name("p"): parse(t, "p", spec)})
		got := c.Policies["TrafficPolicy/shop/p"]
		if d := cmp.Diff(fields(want), fields(got.Policy)); d != "" {
			t.Errorf("%s: %s", spec, d)
		}
		if v, why := verdict(statuses[name("p")], 0); v != "Accepted ResolvedRefs" {
			t.Errorf("%s: %s %s", spec, v, why)
		}
		if strings.Contains(spec, "backendRef") != (len(got.Backends) == 1) {
			t.Errorf("%s: needs %v", spec, got.Backends)
		}
	}
}

// fields makes a policy comparable: it prints nothing of itself.
func fields(p route.Policy) map[string]any {
	out := map[string]any{}
	v := reflect.ValueOf(p)
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() {
			b, _ := yaml.Marshal(f.Interface())
			out[v.Type().Field(i).Name] = string(b)
		}
	}
	return out
}

// verdict tells the reasons of both conditions at a target, and their messages.
func verdict(s *v1alpha1.TrafficPolicyStatus, i int) (reasons, messages string) {
	if s == nil || len(s.Ancestors) <= i {
		return "no status", ""
	}
	for _, c := range s.Ancestors[i].Conditions {
		reasons += " " + c.Reason
		messages += " " + c.Message
		if yes := c.Reason == "Accepted" || c.Reason == "ResolvedRefs"; yes != (c.Status == metav1.ConditionTrue) || c.ObservedGeneration != 3 {
			return "wrong condition", fmt.Sprint(c)
		}
	}
	return strings.TrimSpace(reasons), strings.TrimSpace(messages)
}

// What can't be enforced says so, and refuses requests.
func TestMistakes(t *testing.T) {
	for spec, want := range map[string]string{
		`{sources: {allow: [nonsense]}}`:                       "Invalid ResolvedRefs|sources.allow[0]: \"nonsense\"",
		`{satisfy: Some}`:                                      "Invalid ResolvedRefs|spec.satisfy",
		`{rateLimits: [{requests: 0, per: 1s}]}`:               "Invalid ResolvedRefs|rateLimits[0]",
		`{rateLimits: [{requests: 1, per: soon}]}`:             "Invalid ResolvedRefs|rateLimits[0].per: \"soon\"",
		`{externalAuth: {path: /$nothing}}`:                    "Invalid ResolvedRefs|$nothing",
		`{loadBalancing: {type: Dice}}`:                        "Invalid ResolvedRefs|Dice",
		`{firewall: {mode: Maybe}}`:                            "Invalid ResolvedRefs|firewall.mode",
		`{basicAuth: {secretRef: {name: none}}}`:               "Accepted RefNotFound|there is no Secret shop/none",
		`{basicAuth: {secretRef: {name: users, key: other}}}`:  "Accepted RefNotFound|no key other",
		`{externalAuth: {backendRef: {name: none, port: 80}}}`: "Accepted RefNotFound|there is no Service shop/none",
		`{externalAuth: {backendRef: {name: auth, port: 81}}}`: "Accepted RefNotFound|no TCP port 81",
		`{timeouts: {read: "-1s"}, errorPages: {statuses: [200], backendRef: {name: none, port: 1}}}`: "Invalid RefNotFound|timeouts.read",
	} {
		s, c := New(), world()
		statuses := s.Apply(c, map[model.Name]*v1alpha1.TrafficPolicy{name("p"): parse(t, "p", spec)})
		reasons, part, _ := strings.Cut(want, "|")
		if v, why := verdict(statuses[name("p")], 0); v != reasons || !strings.Contains(why, part) {
			t.Errorf("%s: %s: %s", spec, v, why)
		}
		if c.Policies["TrafficPolicy/shop/p"].Invalid == "" {
			t.Errorf("%s: opens what it should guard", spec)
		}
	}
}

func TestTargets(t *testing.T) {
	s, c := New(), world()
	p := parse(t, "p", `{accessLog: true}`)
	p.Spec.TargetRefs = []v1alpha1.TrafficPolicyTarget{
		ref("Gateway", "web", ""), ref("Gateway", "web", "b"), ref("HTTPRoute", "r", "cart"), ref("Gateway", "web", "c"), ref("Gateway", "theirs", ""),
		ref("HTTPRoute", "none", ""), ref("HTTPRoute", "r", "none"), ref("Service", "auth", ""), ref("Gateway", "web", ""),
	}
	status := s.Apply(c, map[model.Name]*v1alpha1.TrafficPolicy{name("p"): p})[name("p")]
	if len(status.Ancestors) != 8 {
		t.Errorf("%d entries", len(status.Ancestors))
	}
	for i, want := range []string{"Accepted|", "Accepted|", "Accepted|", "TargetNotFound|no listener named c", "TargetNotFound|not weft's", "TargetNotFound|no HTTPRoute shop/none",
		"TargetNotFound|no rule named none", "TargetNotFound|can't apply to a Service"} {
		reason, part, _ := strings.Cut(want, "|")
		if v, why := verdict(status, i); v != reason+" ResolvedRefs" || !strings.Contains(why, part) {
			t.Errorf("%v: %s: %s", p.Spec.TargetRefs[i], v, why)
		}
	}
	attached := func(kind, n, section string) string {
		a := c.Attachments[gatewayapi.Target{Kind: kind, Name: name(n), Section: section}]
		if a == nil {
			return ""
		}
		return strings.Join(a.Policies, " ")
	}
	for _, at := range [][3]string{{"Gateway", "web", ""}, {"Gateway", "web", "b"}, {"HTTPRoute", "r", "cart"}} {
		if got := attached(at[0], at[1], at[2]); got != "TrafficPolicy/shop/p" {
			t.Errorf("%v: %q", at, got)
		}
	}
	// The target that was missing comes, and goes with the policy at once.
	c = &gatewayapi.Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{name("none"): {}}}
	status = s.Apply(c, nil)[name("p")]
	if v, _ := verdict(status, 5); v != "Accepted ResolvedRefs" || attached("HTTPRoute", "none", "") == "" {
		t.Errorf("%s", v)
	}
	c = &gatewayapi.Change{HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{name("r"): nil}}
	if out := s.Apply(c, map[model.Name]*v1alpha1.TrafficPolicy{name("p"): nil}); len(out) != 0 {
		t.Errorf("%v", out)
	}
	if a, ok := c.Attachments[gatewayapi.Target{Kind: "HTTPRoute", Name: name("r"), Section: "cart"}]; !ok || a != nil {
		t.Error("the rule of the route that is gone keeps the policy")
	}
	if p, ok := c.Policies["TrafficPolicy/shop/p"]; !ok || p != nil {
		t.Error("the policy is still there")
	}
}

// Of policies with one target the oldest comes first, and the others say what they lost.
func TestConflicts(t *testing.T) {
	s, c := New(), world()
	old, young, same := parse(t, "old", `{accessLog: true, hideHeaders: [A]}`), parse(t, "young", `{accessLog: false}`), parse(t, "some", `{accessLog: false, requestBody: {maxSize: 1k}}`)
	old.CreationTimestamp = metav1.Unix(100, 0)
	young.CreationTimestamp = metav1.Unix(300, 0)
	same.CreationTimestamp = metav1.Unix(200, 0)
	out := s.Apply(c, map[model.Name]*v1alpha1.TrafficPolicy{name("old"): old, name("young"): young, name("some"): same})
	a := c.Attachments[gatewayapi.Target{Kind: "Gateway", Name: name("web")}]
	if got := strings.Join(a.Policies, " "); got != "TrafficPolicy/shop/young TrafficPolicy/shop/some TrafficPolicy/shop/old" {
		t.Errorf("order: %s", got)
	}
	for n, want := range map[string]string{"old": "Accepted|applies to Gateway shop/web.", "young": "Conflicted|shop/some, shop/old", "some": "Accepted|but for accessLog"} {
		reason, part, _ := strings.Cut(want, "|")
		if v, why := verdict(out[name(n)], 0); v != reason+" ResolvedRefs" || !strings.Contains(why, part) {
			t.Errorf("%s: %s: %s", n, v, why)
		}
	}
	// The older one leaves the field to the others.
	changed := parse(t, "old", `{hideHeaders: [A]}`)
	changed.CreationTimestamp = old.CreationTimestamp
	out = s.Apply(&gatewayapi.Change{}, map[model.Name]*v1alpha1.TrafficPolicy{name("old"): changed})
	if _, why := verdict(out[name("some")], 0); !strings.Contains(why, "applies to Gateway shop/web.") {
		t.Errorf("%s", why)
	}
}

// A Secret that changes changes the policies that name it, and no others.
func TestReferencesChange(t *testing.T) {
	s, c := New(), world()
	s.Apply(c, map[model.Name]*v1alpha1.TrafficPolicy{name("p"): parse(t, "p", `{basicAuth: {secretRef: {name: later}}}`), name("q"): parse(t, "q", `{hideHeaders: [A]}`)})
	c = &gatewayapi.Change{Secrets: map[model.Name]*model.Secret{name("later"): {Data: map[string][]byte{"auth": []byte("u:{SHA}x")}}}}
	out := s.Apply(c, nil)
	if v, _ := verdict(out[name("p")], 0); v != "Accepted ResolvedRefs" || len(c.Policies) != 1 || c.Policies["TrafficPolicy/shop/p"].Invalid != "" {
		t.Errorf("%s, %v", v, c.Policies)
	}
	c = &gatewayapi.Change{Secrets: map[model.Name]*model.Secret{name("unrelated"): {}}}
	if out := s.Apply(c, nil); len(out) != 0 || len(c.Policies) != 0 || len(c.Attachments) != 0 {
		t.Errorf("%v %v", out, c)
	}
	// A status that says it already is not told again.
	p := parse(t, "p", `{basicAuth: {secretRef: {name: later}}}`)
	p.Status = (&v1alpha1.TrafficPolicy{Status: *s.policies[name("p")].told}).DeepCopy().Status
	p.Status.Ancestors[0].Conditions[0].LastTransitionTime = metav1.Now()
	if out := s.Apply(&gatewayapi.Change{}, map[model.Name]*v1alpha1.TrafficPolicy{name("p"): p}); len(out) != 0 {
		t.Errorf("told again: %v", out)
	}
}

// Any sequence of changes comes to what all of it at once comes to.
func TestChangesAddUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	specs := []string{`{accessLog: true}`, `{basicAuth: {secretRef: {name: users}}}`, `{externalAuth: {backendRef: {name: auth, port: 80}}}`, `{accessLog: false, hideHeaders: [A]}`}
	refs := []v1alpha1.TrafficPolicyTarget{ref("Gateway", "web", ""), ref("Gateway", "web", "a"), ref("HTTPRoute", "r", ""), ref("HTTPRoute", "r", "cart"), ref("Gateway", "theirs", "")}
	for range 200 {
		s := New()
		all, policies := &gatewayapi.Change{}, map[model.Name]*v1alpha1.TrafficPolicy{}
		gotPolicies, gotAttachments := map[string]*gatewayapi.Policy{}, map[gatewayapi.Target]*gatewayapi.Attachment{}
		statuses := map[model.Name]*v1alpha1.TrafficPolicyStatus{}
		for range 12 {
			w, c := world(), &gatewayapi.Change{}
			changed := map[model.Name]*v1alpha1.TrafficPolicy{}
			gone := rnd.IntN(3) == 0
			switch rnd.IntN(6) {
			case 0:
				c.Gateways = w.Gateways
				c.GatewayClasses = w.GatewayClasses
			case 1:
				c.HTTPRoutes = w.HTTPRoutes
				if gone {
					c.HTTPRoutes = map[model.Name]*gwv1.HTTPRoute{name("r"): nil}
				}
			case 2:
				c.Secrets = w.Secrets
				if gone {
					c.Secrets = map[model.Name]*model.Secret{name("users"): nil}
				}
			case 3:
				c.Services = w.Services
			default:
				n := fmt.Sprint("p", rnd.IntN(3))
				p := parse(t, n, specs[rnd.IntN(len(specs))])
				p.Spec.TargetRefs = []v1alpha1.TrafficPolicyTarget{refs[rnd.IntN(len(refs))], refs[rnd.IntN(len(refs))]}
				p.CreationTimestamp = metav1.Unix(int64(rnd.IntN(3)), 0)
				if gone {
					p = nil
				}
				changed[name(n)] = p
			}
			merge(&all.Gateways, c.Gateways)
			merge(&all.GatewayClasses, c.GatewayClasses)
			merge(&all.HTTPRoutes, c.HTTPRoutes)
			merge(&all.Secrets, c.Secrets)
			merge(&all.Services, c.Services)
			merge(&policies, changed)
			out := s.Apply(c, changed)
			merge(&gotPolicies, c.Policies)
			merge(&gotAttachments, c.Attachments)
			merge(&statuses, out)
			for n, p := range changed {
				if p == nil {
					delete(statuses, n)
				}
			}
		}
		want := New().Apply(all, policies)
		clean(gotPolicies)
		clean(all.Policies)
		clean(gotAttachments)
		clean(all.Attachments)
		if d := cmp.Diff(all.Attachments, gotAttachments, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("attachments: %s", d)
		}
		for k := range all.Policies {
			if gotPolicies[k] == nil || !reflect.DeepEqual(all.Policies[k], gotPolicies[k]) {
				t.Fatalf("%s: %v, want %v", k, fields(gotPolicies[k].Policy), fields(all.Policies[k].Policy))
			}
		}
		if d := cmp.Diff(want, statuses, cmpopts.EquateEmpty()); d != "" || len(gotPolicies) != len(all.Policies) {
			t.Fatalf("statuses: %s", d)
		}
	}
}

func merge[K comparable, V any](to *map[K]V, from map[K]V) {
	if *to == nil {
		*to = map[K]V{}
	}
	maps.Copy(*to, from)
}

func clean[K comparable, V any](m map[K]*V) {
	maps.DeleteFunc(m, func(_ K, v *V) bool { return v == nil })
}

func cidrs(in ...string) (out []netip.Prefix) {
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func pointer[T any](v T) *T { return &v }

// What the documentation shows is a policy that has effect.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../docs/trafficpolicy.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for part := range strings.SplitSeq(string(text), "```yaml\n") {
		block, _, ok := strings.Cut(part, "```")
		if !ok || strings.HasPrefix(block, "#") {
			continue
		}
		n++
		p := &v1alpha1.TrafficPolicy{}
		if strings.HasPrefix(block, "apiVersion") {
			err = yaml.UnmarshalStrict([]byte(block), p)
		} else {
			err = yaml.UnmarshalStrict([]byte(block), &p.Spec)
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, block)
			continue
		}
		p.Namespace = "shop"
		refs := New()
		refs.secrets[name("shop-users")] = &model.Secret{Data: map[string][]byte{"auth": []byte("u:{SHA}x")}}
		made, invalid, missing := translate(p, &recorder{refs, map[model.Name]bool{}, map[model.Name]bool{}})
		if invalid != nil || missing != nil || len(made.Fields()) == 0 {
			t.Errorf("%v %v in\n%s", invalid, missing, block)
		}
	}
	if n < 2 {
		t.Errorf("%d examples", n)
	}
}
