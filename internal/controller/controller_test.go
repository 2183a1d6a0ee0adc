// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/model"
)

const (
	svcPath  = "/api/v1/namespaces/default/services/"
	poolPath = "/apis/weft.dev/v1alpha1/addresspools/"
)

// replica is one controller at work against a fakeAPI.
type replica struct {
	*Controller
	registry *prometheus.Registry
	stop     func() // ends it and waits
	mu       sync.Mutex
	said     []string
}

func (r *replica) events() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.said, "\n")
}

// run has a controller with these Parts at work.
func run(t *testing.T, f *fakeAPI, identity string, parts func(record func(model.Event), log *slog.Logger) []*Role) *replica {
	t.Helper()
	r := &replica{registry: prometheus.NewRegistry()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	record := func(e model.Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.said = append(r.said, fmt.Sprintf("%s %s %s: %s", e.Kind, e.Name, e.Reason, e.Message))
	}
	c, err := New(Config{
		API: f.config(), Identity: identity, Namespace: "weft", Lease: "weft-controller", Metrics: r.registry,
		LeaseDuration: 8 * time.Second, RenewDeadline: 4 * time.Second, RetryPeriod: 100 * time.Millisecond, // a busy machine ends no term
		Record: record, Log: log,
		Parts: parts(record, log),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Controller = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			t.Errorf("%s: %v", identity, err)
		}
	}()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(r.stop)
	return r
}

func start(t *testing.T, f *fakeAPI, identity string, opts addresses.Options) *replica {
	t.Helper()
	return run(t, f, identity, func(record func(model.Event), log *slog.Logger) []*Role {
		return []*Role{NewLoadBalancers(f.config(), opts, record, log)}
	})
}

var lbOpts = addresses.Options{Class: addresses.DefaultClass, Unclassed: true}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("in a minute, not: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// look spells what matters of a Service: "ingress | finalizers | allocated-from".
func (f *fakeAPI) look(name string) string {
	o := f.get(svcPath + name)
	if o == nil {
		return "gone"
	}
	var ips []string
	if st, ok := o["status"].(object); ok {
		if lb, ok := st["loadBalancer"].(object); ok {
			in, _ := lb["ingress"].([]any)
			for _, x := range in {
				e := x.(object)
				ips = append(ips, fmt.Sprint(e["ip"], "/", e["ipMode"]))
			}
		}
	}
	fin, _ := metaOf(o)["finalizers"].([]any)
	ann, _ := metaOf(o)["annotations"].(object)
	mark, _ := ann[addresses.AllocatedAnnotation].(string)
	return fmt.Sprintf("%s | %v | %s", strings.Join(ips, ","), fin, mark)
}

func (f *fakeAPI) wants(t *testing.T, name, want string) {
	t.Helper()
	var last string
	deadline := time.Now().Add(20 * time.Second)
	for last = f.look(name); last != want; last = f.look(name) {
		if time.Now().After(deadline) {
			t.Fatalf("Service %s: %s\nwant:     %s", name, last, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const (
	plain    = `{"spec":{"type":"LoadBalancer","ipFamilies":["IPv4"],"ports":[{"port":80,"protocol":"TCP"}]}}`
	dual     = `{"spec":{"type":"LoadBalancer","ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"RequireDualStack","ports":[{"port":80}]}}`
	smallish = `{"apiVersion":"weft.dev/v1alpha1","kind":"AddressPool","metadata":{"generation":1},"spec":{"addresses":["192.0.2.1-192.0.2.3","2001:db8::1-2001:db8::3"]}}`
	finalize = "[service.kubernetes.io/load-balancer-cleanup]"
)

func TestLoadBalancerLife(t *testing.T) {
	f := newFakeAPI(t)
	f.put(poolPath+"p", smallish)
	f.put(svcPath+"a", plain)
	f.put(svcPath+"b", dual)
	f.put(svcPath+"other", `{"spec":{"type":"LoadBalancer","loadBalancerClass":"x.example/lb","ipFamilies":["IPv4"],"ports":[{"port":80}]},
		"metadata":{"finalizers":["service.kubernetes.io/load-balancer-cleanup"]},"status":{"loadBalancer":{"ingress":[{"hostname":"lb.example"}]}}}`)
	otherBefore := f.look("other")
	r := start(t, f, "one", lbOpts)

	f.wants(t, "a", "192.0.2.1/VIP | "+finalize+" | p")
	f.wants(t, "b", "192.0.2.2/VIP,2001:db8::1/VIP | "+finalize+" | p")
	eventually(t, "an Event about the address", func() bool {
		return strings.Contains(r.events(), `Service default/a AddressAssigned: assigned 192.0.2.1 of AddressPool "p"`)
	})
	eventually(t, "the pool's status", func() bool {
		st, _ := f.get(poolPath + "p")["status"].(object)
		v4, _ := st["ipv4"].(object)
		conditions, _ := st["conditions"].([]any)
		return v4["used"] == 2.0 && v4["free"] == 1.0 && v4["total"] == 3.0 && st["observedGeneration"] == 1.0 &&
			len(conditions) == 1 && conditions[0].(object)["status"] == "True"
	})

	// A condition says so, beside those of others.
	condition := func(name string) string {
		st, _ := f.get(svcPath + name)["status"].(object)
		conditions, _ := st["conditions"].([]any)
		var out []string
		for _, c := range conditions {
			out = append(out, fmt.Sprint(c.(object)["type"], "=", c.(object)["status"], " ", c.(object)["message"]))
		}
		slices.Sort(out)
		return strings.Join(out, "; ")
	}
	if got := condition("a"); got != `weft.dev/AddressAssigned=True 192.0.2.1 of AddressPool "p"` {
		t.Errorf("conditions: %s", got)
	}

	// Someone else's change of the status is undone.
	o := f.get(svcPath + "a")
	o["status"] = object{"conditions": []any{object{"type": "x.example/y", "status": "False", "message": "theirs"}}}
	f.mu.Lock()
	f.store(svcPath+"a", o)
	f.mu.Unlock()
	f.wants(t, "a", "192.0.2.1/VIP | "+finalize+" | p")
	if got := condition("a"); got != `weft.dev/AddressAssigned=True 192.0.2.1 of AddressPool "p"; x.example/y=False theirs` {
		t.Errorf("conditions: %s", got)
	}

	// No longer a load balancer: weft's marks go. (The API server clears the status by itself.)
	f.put(svcPath+"a", `{"spec":{"type":"ClusterIP"},"metadata":{"annotations":{"weft.dev/allocated-from":"p"}},"status":{"loadBalancer":{}}}`)
	f.wants(t, "a", " | [] | ")
	// A deleted Service goes once the finalizer has.
	f.delete(svcPath + "b")
	f.wants(t, "b", "gone")
	f.put(svcPath+"c", dual)
	f.wants(t, "c", "192.0.2.1/VIP,2001:db8::1/VIP | "+finalize+" | p")

	if got := f.look("other"); got != otherBefore {
		t.Errorf("another class's Service was touched: %s, was %s", got, otherBefore)
	}
	if slices.ContainsFunc(f.written(), func(w string) bool { return strings.Contains(w, "/other") }) {
		t.Errorf("another class's Service was written to: %v", f.written())
	}
}

// TestConflictingPool: the younger of two pools that overlap is refused, with a condition and an Event that say why.
func TestConflictingPool(t *testing.T) {
	f := newFakeAPI(t)
	f.put(poolPath+"a", smallish)
	f.put(poolPath+"b", smallish)
	r := start(t, f, "one", lbOpts)
	eventually(t, "a condition", func() bool {
		st, _ := f.get(poolPath + "b")["status"].(object)
		conditions, _ := st["conditions"].([]any)
		if len(conditions) == 0 {
			return false
		}
		c := conditions[0].(object)
		return c["type"] == "Accepted" && c["status"] == "False" && c["reason"] == "Conflict" && strings.Contains(fmt.Sprint(c["message"]), `older AddressPool "a"`)
	})
	eventually(t, "an Event", func() bool { return strings.Contains(r.events(), "AddressPool b Conflict") })
}

// TestRestartsAndOutages: while replicas stop, start and lose the API server, no Service's address changes, and
// nothing is written that need not be.
func TestRestartsAndOutages(t *testing.T) {
	f := newFakeAPI(t)
	f.put(poolPath+"p", `{"apiVersion":"weft.dev/v1alpha1","kind":"AddressPool","spec":{"addresses":["192.0.2.1-192.0.2.9"]}}`)
	one, two := start(t, f, "one", lbOpts), start(t, f, "two", lbOpts)
	names := []string{"s1", "s2", "s3", "s4", "s5"}
	for _, n := range names {
		f.put(svcPath+n, plain)
	}
	had := map[string]string{}
	for _, n := range names {
		eventually(t, n+" has an address", func() bool { return strings.Contains(f.look(n), "/VIP") })
		had[n] = f.look(n)
	}
	waits := func(n string) {
		f.put(svcPath+n, plain)
		eventually(t, n+" has an address", func() bool { return strings.Contains(f.look(n), "/VIP") })
		had[n] = f.look(n)
		names = append(names, n)
	}
	same := func(when string) {
		t.Helper()
		for _, n := range names {
			if now := f.look(n); now != had[n] {
				t.Fatalf("%s: %s went from %s to %s", when, n, had[n], now)
			}
		}
	}

	leader, standby := one, two
	if two.elector.Load().IsLeader() {
		leader, standby = two, one
	}
	leader.stop()
	waits("s6")
	same("the leader stopped")
	if !standby.elector.Load().IsLeader() {
		t.Error("the address was assigned, yet the standby does not lead")
	}

	writes := len(f.written())
	f.setAway(true)
	eventually(t, "leadership is given up", func() bool { return !standby.elector.Load().IsLeader() && !standby.synced.Load() })
	f.put(svcPath+"s7", plain)
	f.setAway(false)
	eventually(t, "s7 has an address", func() bool { return strings.Contains(f.look("s7"), "/VIP") })
	same("the API server was away")
	if w := f.written()[writes:]; slices.ContainsFunc(w, func(x string) bool { return strings.Contains(x, "/services/") && !strings.Contains(x, "/s7") }) {
		t.Errorf("needless writes after the outage: %v", w)
	}
}

// TestHealthAndMetrics: what the endpoints show while the replica leads, and after.
func TestHealthAndMetrics(t *testing.T) {
	f := newFakeAPI(t)
	f.put(poolPath+"p", smallish)
	f.put(svcPath+"a", plain)
	r := start(t, f, "one", lbOpts)
	h := health.Handler(r.registry, r.Live, r.Ready)
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		return rec.Code, rec.Body.String()
	}
	eventually(t, "ready", func() bool { code, _ := get("/readyz"); return code == 200 })
	if code, body := get("/livez"); code != 200 {
		t.Errorf("/livez: %d %s", code, body)
	}
	eventually(t, "metrics", func() bool {
		_, body := get("/metrics")
		return strings.Contains(body, "weft_controller_leader 1") && strings.Contains(body, `weft_loadbalancer_services{state="assigned"} 1`) &&
			strings.Contains(body, `weft_address_pool_addresses{family="IPv4",pool="p",state="free"} 2`)
	})
	r.stop()
	if _, body := get("/metrics"); !strings.Contains(body, "weft_controller_leader 0") || strings.Contains(body, "weft_address_pool_addresses") {
		t.Errorf("metrics of a replica that no longer leads: %s", body)
	}
}

// TestCleanup: everything on Services that weft wrote is taken back, and nothing else.
func TestCleanup(t *testing.T) {
	f := newFakeAPI(t)
	f.put(poolPath+"p", smallish)
	f.put(svcPath+"a", plain)
	f.put(svcPath+"b", dual)
	const foreign = `{"spec":{"type":"LoadBalancer","loadBalancerClass":"x.example/lb","ports":[{"port":80}]},
		"metadata":{"finalizers":["service.kubernetes.io/load-balancer-cleanup"]},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.3"}]}}}`
	f.put(svcPath+"other", foreign)
	r := start(t, f, "one", lbOpts)
	f.wants(t, "a", "192.0.2.1/VIP | "+finalize+" | p")
	f.wants(t, "b", "192.0.2.2/VIP,2001:db8::1/VIP | "+finalize+" | p")
	r.stop()
	n, err := Cleanup(t.Context(), f.config(), lbOpts)
	if n != 2 || err != nil {
		t.Errorf("freed %d, %v; want 2", n, err)
	}
	for _, name := range []string{"a", "b"} {
		if got := f.look(name); got != " | [] | " {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := f.look("other"); got != "192.0.2.3/<nil> | "+finalize+" | " {
		t.Errorf("another class's Service: %s", got)
	}
	if n, err := Cleanup(t.Context(), f.config(), lbOpts); n != 0 || err != nil {
		t.Errorf("again: freed %d, %v", n, err)
	}
}

// TestPatches holds the order and content of what is written against a table.
func TestPatches(t *testing.T) {
	s := func(opts ...func(*model.Service)) *model.Service {
		x := &model.Service{Meta: model.Meta{Name: model.Name{Namespace: "d", Name: "s"}, UID: "u"}, Type: model.LoadBalancer}
		for _, o := range opts {
			o(x)
		}
		return x
	}
	marked := func(x *model.Service) { x.Annotations = map[string]string{addresses.AllocatedAnnotation: "p"} }
	finalizer := func(x *model.Service) { x.CleanupFinalizer = true }
	shown := func(x *model.Service) { x.Ingress = []model.LoadBalancerIngress{{IP: model192}} }
	otherClass := func(x *model.Service) { x.LoadBalancer.Class = "x.example/lb" }
	deleting := func(x *model.Service) { x.Deleting = true }
	clusterIP := func(x *model.Service) { x.Type = model.ClusterIP }
	says := func(status bool, reason, message string) func(*model.Service) {
		return func(x *model.Service) {
			x.AddressCondition = &model.Condition{Status: status, Reason: reason, Message: message}
		}
	}
	told := says(true, "AddressAssigned", `192.0.2.1 of AddressPool "p"`)
	refused := says(false, "NoAddressPool", "there is none")
	has := addresses.Decision{Ours: true, Addresses: []addresses.Assigned{{Addr: model192, Pool: "p"}}}
	wishes := addresses.Decision{Ours: true, Addresses: has.Addresses, Problem: addresses.Problem{Reason: "AddressUnavailable", Message: "192.0.2.9 is taken"}}
	none := addresses.Decision{Ours: true}
	lacks := addresses.Decision{Ours: true, Problem: addresses.Problem{Reason: "NoAddressPool", Message: "there is none"}}
	const (
		add     = `{"metadata":{"annotations":{"weft.dev/allocated-from":"p"},"finalizers":["service.kubernetes.io/load-balancer-cleanup"],"uid":"u"}}`
		remove  = `{"metadata":{"$deleteFromPrimitiveList/finalizers":["service.kubernetes.io/load-balancer-cleanup"],"annotations":{"weft.dev/allocated-from":null},"uid":"u"}}`
		unmark  = `{"metadata":{"annotations":{"weft.dev/allocated-from":null},"uid":"u"}}`
		show    = `{"metadata":{"uid":"u"},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1","ipMode":"VIP"}]}}}`
		clear   = `{"metadata":{"uid":"u"},"status":{"loadBalancer":{"ingress":null}}}`
		ingress = `"loadBalancer":{"ingress":[{"ip":"192.0.2.1","ipMode":"VIP"}]}`
		since   = `"lastTransitionTime":"2026-01-02T03:04:05Z",`
		yes     = `"message":"192.0.2.1 of AddressPool \"p\"","reason":"AddressAssigned","status":"True","type":"weft.dev/AddressAssigned"`
		no      = `"message":"there is none","reason":"NoAddressPool","status":"False","type":"weft.dev/AddressAssigned"`
		keeps   = `"message":"192.0.2.9 is taken (the Service keeps 192.0.2.1 of AddressPool \"p\")","reason":"AddressUnavailable","status":"False","type":"weft.dev/AddressAssigned"`
		forget  = `{"$patch":"delete","type":"weft.dev/AddressAssigned"}`
	)
	status := func(parts ...string) string {
		return `{"metadata":{"uid":"u"},"status":{` + strings.Join(parts, ",") + `}}`
	}
	condition := func(c string) string { return `"conditions":[` + c + `]` }
	for _, c := range []struct {
		name string
		s    *model.Service
		d    addresses.Decision
		want []string
	}{
		{"new", s(), has, []string{add, status(condition("{"+since+yes+"}"), ingress)}},
		{"done", s(marked, finalizer, shown, told), has, nil},
		{"finalizer removed by hand", s(marked, shown, told), has, []string{add}},
		{"address removed by hand", s(marked, finalizer, told), has, []string{show}},
		{"condition removed by hand", s(marked, finalizer, shown), has, []string{status(condition("{" + since + yes + "}"))}},
		{"a wish that can't be met", s(marked, finalizer, shown, told), wishes, []string{status(condition("{" + since + keeps + "}"))}},
		{"no address", s(), lacks, []string{status(condition("{" + since + no + "}"))}},
		{"still none", s(refused), lacks, nil},
		{"still none, for another reason", s(says(false, "AddressPoolExhausted", "full")), lacks, []string{status(condition("{" + no + "}"))}},
		{"an address at last", s(refused), has, []string{add, status(condition("{"+since+yes+"}"), ingress)}},
		{"no load balancer any more, and never had an address", s(refused, clusterIP), addresses.Decision{}, []string{status(condition(forget))}},
		{"no load balancer any more", s(marked, finalizer, told, clusterIP), addresses.Decision{}, []string{status(condition(forget)), remove}},
		{"deleted, with a condition", s(marked, finalizer, shown, told, deleting), addresses.Decision{}, []string{remove}},
		{"another class's, with a condition", s(marked, finalizer, shown, told, otherClass), addresses.Decision{}, []string{status(condition(forget)), unmark}},
		{"taken away", s(marked, finalizer, shown), none, []string{clear, remove}},
		{"pending", s(), none, nil},
		{"deleted", s(marked, finalizer, shown, deleting), addresses.Decision{}, []string{remove}},
		{"type changed", s(marked, finalizer, clusterIP), addresses.Decision{}, []string{remove}},
		{"weft is the default no more", s(marked, finalizer, shown), addresses.Decision{}, []string{clear, remove}},
		{"another class's by now", s(marked, finalizer, shown, otherClass), addresses.Decision{}, []string{unmark}},
		{"another's finalizer", s(finalizer, shown), addresses.Decision{}, nil},
	} {
		var got []string
		for _, p := range patches(c.s, c.d, lbOpts, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
			got = append(got, string(p.data))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n  got  %s\n  want %s", c.name, strings.Join(got, "\n       "), strings.Join(c.want, "\n       "))
		}
	}
}

var model192 = netip.MustParseAddr("192.0.2.1")
