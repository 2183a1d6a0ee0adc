// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

const (
	gatewayPath = "/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways/"
	routePath   = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes/"
	classPath   = "/apis/gateway.networking.k8s.io/v1/gatewayclasses/"
	deployPath  = "/apis/apps/v1/namespaces/default/deployments/"
	secretPath  = "/api/v1/namespaces/default/secrets/"
)

// startGateways runs a controller that serves Gateway API, and gives the address of its configuration stream.
func startGateways(t *testing.T, f *fakeAPI, identity string) (*replica, string) {
	t.Helper()
	return startGatewaysWith(t, f, identity, 0)
}

// startGatewaysWith is startGateways with how long statuses wait for configuration; 0 is what it is for everybody.
func startGatewaysWith(t *testing.T, f *fakeAPI, identity string, configurationFirst time.Duration) (*replica, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	server, ids := configsync.NewServer(slog.New(slog.DiscardHandler)), &Identities{}
	return run(t, f, identity, func(record func(model.Event), log *slog.Logger) []*Role {
		return []*Role{
			NewConfigSync(f.config(), SyncOptions{Server: server, Identities: ids, Namespace: "weft", Listen: addr,
				Clients: map[string]model.Name{"ingress": {Namespace: "weft", Name: "ingress-identity"}}}, log),
			NewGateways(f.config(), GatewayOptions{Server: server, Identities: ids, Class: "weft", configurationFirst: configurationFirst,
				Pods: PodOptions{Image: "weft:test", PullPolicy: "Never", Server: "weft-config.weft.svc:9643"}}, record, log),
		}
	}), addr
}

// condition gives "Status Reason" of a condition of an object's status, found by a path of keys and indexes.
func condition(o object, name string, path ...any) string {
	if c := findCondition(o, name, path...); c != nil {
		return fmt.Sprint(c["status"], " ", c["reason"])
	}
	return ""
}

// message gives a condition's message.
func message(o object, name string, path ...any) string {
	s, _ := findCondition(o, name, path...)["message"].(string)
	return s
}

// raw reads JSON.
func raw(text string) (v any) {
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(err) // a mistake of the test
	}
	return v
}

func findCondition(o object, name string, path ...any) object {
	var v any = o["status"]
	for _, p := range append(path, "conditions") {
		switch p := p.(type) {
		case string:
			m, _ := v.(object)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if len(l) <= p {
				return nil
			}
			v = l[p]
		}
	}
	l, _ := v.([]any)
	for _, c := range l {
		if c := c.(object); c["type"] == name {
			return c
		}
	}
	return nil
}

// gatewayPod is the pod of a Gateway, by the identity in its Secret.
func gatewayPod(t *testing.T, f *fakeAPI, secret, addr string) (applied func() []*route.Update, stop func()) {
	t.Helper()
	return namedPod(t, f, "pod", secret, addr, func(*route.Update) error { return nil })
}

// namedPod is gatewayPod with a name, and with what it says of each update.
func namedPod(t *testing.T, f *fakeAPI, name, secret, addr string, serve func(*route.Update) error) (applied func() []*route.Update, stop func()) {
	t.Helper()
	dir := t.TempDir()
	data := f.get(secret)["data"].(object)
	for k, v := range data {
		b, err := base64.StdEncoding.DecodeString(v.(string))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, k), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var all []*route.Update
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	client := &configsync.Client{Server: addr, Identity: dir, Pod: name, Log: slog.New(slog.DiscardHandler)}
	go func() {
		done <- client.Run(ctx, func(u *route.Update) error {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, u)
			return serve(u)
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return func() []*route.Update {
		mu.Lock()
		defer mu.Unlock()
		return all
	}, stop
}

// A Gateway's life: parts are made, it is programmed once its pod has confirmed and it has an address, drift is put
// right, others' conditions stay, and the next leader takes over without a change.
func TestGatewayLife(t *testing.T) {
	f := newFakeAPI(t)
	r, addr := startGateways(t, f, "one")
	eventually(t, "weft's GatewayClass is made and accepted", func() bool {
		return strings.HasPrefix(condition(f.get(classPath+"weft"), "Accepted"), "True")
	})
	f.put("/api/v1/namespaces/default", `{"kind":"Namespace"}`)
	f.put(gatewayPath+"web", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"generation":1},
		"spec":{"gatewayClassName":"weft","listeners":[{"name":"http","port":80,"protocol":"HTTP"}]},
		"status":{"conditions":[{"type":"example.com/Other","status":"True","reason":"Theirs","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
	for _, path := range []string{deployPath + "web-weft", svcPath + "web-weft", secretPath + "web-weft",
		"/api/v1/namespaces/default/serviceaccounts/web-weft", "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web-weft"} {
		eventually(t, path+" is made", func() bool { return f.get(path) != nil })
	}
	eventually(t, "the identity of a gateway without a Gateway is made", func() bool {
		return f.get("/api/v1/namespaces/weft/secrets/ingress-identity") != nil
	})
	if got := condition(f.get(gatewayPath+"web"), "Programmed"); strings.HasPrefix(got, "True") {
		t.Errorf("programmed without a pod: %s", got)
	}
	svc := f.get(svcPath + "web-weft")
	svc["status"] = object{"loadBalancer": object{"ingress": []any{object{"ip": "192.0.2.1"}}}}
	f.put(svcPath+"web-weft", string(encode(svc)))
	applied, stopPod := gatewayPod(t, f, secretPath+"web-weft", addr)
	// A pod that has the tables is not yet one that the Service sends to.
	eventually(t, "the pod has its tables", func() bool { return len(applied()) > 0 })
	slice := func(ready string) {
		f.put("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-weft-x", `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice",
			"metadata":{"labels":{"kubernetes.io/service-name":"web-weft"}},"addressType":"IPv4","ports":[{"name":"tcp-80","port":61080,"protocol":"TCP"}],
			"endpoints":[{"addresses":["10.244.0.5"],"conditions":{"ready":`+ready+`,"serving":`+ready+`}}]}`)
	}
	slice("false")
	f.put(routePath+"barrier", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},"spec":{"parentRefs":[{"name":"web"}]}}`)
	eventually(t, "later changes have been seen", func() bool {
		return condition(f.get(routePath+"barrier"), "Accepted", "parents", 0) != ""
	})
	eventually(t, "the Gateway waits for a ready pod", func() bool {
		return condition(f.get(gatewayPath+"web"), "Programmed") == "False Pending"
	})
	f.delete(routePath + "barrier")
	slice("true")
	eventually(t, "programmed", func() bool { return condition(f.get(gatewayPath+"web"), "Programmed") == "True Programmed" })
	if got := condition(f.get(gatewayPath+"web"), "example.com/Other"); got != "True Theirs" {
		t.Errorf("another's condition is %q", got)
	}
	if u := applied(); len(u) == 0 || !u[0].Complete || len(u[0].Listeners) != 1 || u[0].Listeners[0].Port != gatewayapi.BindPort(80) {
		t.Errorf("the pod got %+v", u)
	}

	f.put(routePath+"r", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},
		"spec":{"parentRefs":[{"name":"web"}],"rules":[{"backendRefs":[{"name":"none","port":80}]}]},
		"status":{"parents":[{"controllerName":"example.com/other","parentRef":{"name":"theirs"},"conditions":[]}]}}`)
	eventually(t, "the route's status", func() bool {
		return condition(f.get(routePath+"r"), "ResolvedRefs", "parents", 1) == "False BackendNotFound"
	})
	parents := f.get(routePath + "r")["status"].(object)["parents"].([]any)
	if parents[0].(object)["controllerName"] != "example.com/other" {
		t.Errorf("another's parent is gone: %v", parents)
	}
	eventually(t, "an event tells of the missing backend", func() bool { return strings.Contains(r.events(), "HTTPRoute default/r BackendNotFound") })
	eventually(t, "the route is served", func() bool {
		u := applied()
		return len(u) > 1 && len(u[len(u)-1].Routes) == 1 && !u[len(u)-1].Complete
	})

	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	pods := -1.0
	for _, m := range families {
		if m.GetName() == "weft_gateway_connected_pods" {
			pods = m.GetMetric()[0].GetGauge().GetValue()
		}
	}
	if pods != 1 {
		t.Errorf("weft_gateway_connected_pods is %v", pods)
	}

	f.delete(deployPath + "web-weft")
	eventually(t, "the Deployment is made again", func() bool { return f.get(deployPath+"web-weft") != nil })
	spoiled := f.get(deployPath + "web-weft")
	spoiled["spec"].(object)["replicas"] = 7
	f.put(deployPath+"web-weft", string(encode(spoiled)))
	eventually(t, "its replicas are put right", func() bool {
		return fmt.Sprint(f.get(deployPath + "web-weft")["spec"].(object)["replicas"]) == "2"
	})

	// The next leader: the pod comes over, and nothing that was true is said to be false meanwhile.
	r.stop()
	before := len(f.written())
	_, addr = startGateways(t, f, "two")
	stopPod()
	applied, _ = gatewayPod(t, f, secretPath+"web-weft", addr)
	eventually(t, "the next leader feeds the pod", func() bool { return len(applied()) > 0 })
	f.put(routePath+"s", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"generation":1},
		"spec":{"parentRefs":[{"name":"web"}],"rules":[{"backendRefs":[{"name":"none","port":80}]}]}}`)
	eventually(t, "the next leader writes statuses", func() bool {
		return condition(f.get(routePath+"s"), "Accepted", "parents", 0) == "True Accepted"
	})
	if got := condition(f.get(gatewayPath+"web"), "Programmed"); got != "True Programmed" {
		t.Errorf("with the next leader: %s", got)
	}
	for _, w := range f.written()[before:] {
		if w == "PATCH "+routePath+"r/status" {
			t.Errorf("the next leader wrote what was there: %s", w)
		}
	}
}

// An object of somebody else that has a part's name stays as it is, and the Gateway says so.
func TestPartsTakeNothingFromOthers(t *testing.T) {
	f := newFakeAPI(t)
	f.put("/api/v1/namespaces/default", `{"apiVersion":"v1","kind":"Namespace"}`)
	f.put(svcPath+"web-weft", `{"apiVersion":"v1","kind":"Service","spec":{"selector":{"mine":"yes"}}}`)
	f.put(gatewayPath+"web", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"generation":1},
		"spec":{"gatewayClassName":"weft","listeners":[{"name":"http","port":80,"protocol":"HTTP"}]}}`)
	r, _ := startGateways(t, f, "one")
	eventually(t, "an event names the Service", func() bool {
		return strings.Contains(r.events(), "Gateway default/web PartRefused: Service default/web-weft is there and not this Gateway's")
	})
	eventually(t, "the condition names it, too", func() bool {
		return strings.HasPrefix(message(f.get(gatewayPath+"web"), "Programmed"), "Service default/web-weft is there and not this Gateway's")
	})
	if got := string(encode(f.get(svcPath + "web-weft")["spec"])); got != `{"selector":{"mine":"yes"}}` {
		t.Errorf("the Service is %s", got)
	}
	f.delete(svcPath + "web-weft")
	eventually(t, "the name is free, and the Service made", func() bool { return f.get(svcPath+"web-weft") != nil })
}

// Where no controller will run any more nothing of weft keeps a GatewayClass.
func TestCleanupGateways(t *testing.T) {
	f := newFakeAPI(t)
	if n, _, err := CleanupGateways(t.Context(), f.config()); n != 0 || err != nil {
		t.Errorf("with no class: %d, %v", n, err)
	}
	const ours, theirs = gatewayv1.GatewayClassFinalizerGatewaysExist, "example.com/theirs"
	f.put(classPath+"a", `{"kind":"GatewayClass","apiVersion":"gateway.networking.k8s.io/v1","metadata":{"finalizers":["`+ours+`","`+theirs+`"]},"spec":{"controllerName":"weft.dev/gateway"}}`)
	f.put(classPath+"b", `{"kind":"GatewayClass","apiVersion":"gateway.networking.k8s.io/v1","metadata":{"finalizers":["`+ours+`"]},"spec":{"controllerName":"example.com/other"}}`)
	const told = `"status":{"conditions":[{"type":"Accepted","status":"True","reason":"Accepted"},{"type":"example.com/Other","status":"True","reason":"Theirs"}],
		"addresses":[{"value":"192.0.2.1"}],"listeners":[{"name":"http","attachedRoutes":1,"supportedKinds":[],"conditions":[{"type":"Programmed","status":"True","reason":"Programmed"}]}]}`
	f.put(classPath+"unused", `{"apiVersion":"gateway.networking.k8s.io/v1","spec":{"controllerName":"weft.dev/gateway"},
		"status":{"conditions":[{"type":"Accepted","status":"True","reason":"Accepted"}],"supportedFeatures":[{"name":"Gateway"}]}}`)
	f.put(gatewayPath+"ours", `{"spec":{"gatewayClassName":"a"},`+told+`}`)
	f.put(gatewayPath+"theirs", `{"spec":{"gatewayClassName":"b"},`+told+`}`)
	for _, want := range []string{"2 1 <nil>", "0 0 <nil>"} {
		classes, gateways, err := CleanupGateways(t.Context(), f.config())
		if got := fmt.Sprint(classes, gateways, err); got != want {
			t.Errorf("classes and Gateways: %s, want %s", got, want)
		}
	}
	if got := fmt.Sprint(metaOf(f.get(classPath + "a"))["finalizers"], metaOf(f.get(classPath + "b"))["finalizers"]); got != "["+theirs+"] ["+ours+"]" {
		t.Errorf("left: %s", got)
	}
	if got := string(encode(f.get(classPath + "unused")["status"])); got != `{}` {
		t.Errorf("the class says %s", got)
	}
	if got := string(encode(f.get(gatewayPath + "ours")["status"])); strings.Contains(got, "Accepted") || strings.Contains(got, "192.0.2.1") ||
		strings.Contains(got, "listeners") || !strings.Contains(got, "Theirs") {
		t.Errorf("the Gateway says %s", got)
	}
	if got := string(encode(f.get(gatewayPath + "theirs")["status"])); !strings.Contains(got, "Accepted") || !strings.Contains(got, "192.0.2.1") {
		t.Errorf("another's Gateway says %s", got)
	}
}

func TestStatusMerge(t *testing.T) {
	then, now := metav1.NewTime(time.Unix(1000, 0)), metav1.NewTime(time.Unix(2000, 0))
	cond := func(typ, status, reason string, at metav1.Time) metav1.Condition {
		return metav1.Condition{Type: typ, Status: metav1.ConditionStatus(status), Reason: reason, LastTransitionTime: at}
	}
	own := []string{"Accepted", "ResolvedRefs"}
	got := conditions(
		[]metav1.Condition{cond("Theirs", "True", "x", then), cond("Accepted", "True", "Old", then), cond("ResolvedRefs", "False", "y", then)},
		[]metav1.Condition{cond("Accepted", "True", "New", metav1.Time{})}, own, now)
	want := []metav1.Condition{cond("Theirs", "True", "x", then), cond("Accepted", "True", "New", then)}
	if string(encode(got)) != string(encode(want)) {
		t.Errorf("%s\nwant %s", encode(got), encode(want))
	}
	if got := conditions(want, []metav1.Condition{cond("Accepted", "False", "Bad", metav1.Time{})}, own, now); got[1].LastTransitionTime != now {
		t.Errorf("a change has its time: %s", encode(got))
	}

	gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{UID: "u", ResourceVersion: "7"}, Status: gatewayv1.GatewayStatus{
		Addresses: []gatewayv1.GatewayStatusAddress{{Value: "192.0.2.1"}}, Conditions: want}}
	old, merged := statusOf(gw, &gatewayv1.GatewayStatus{Conditions: []metav1.Condition{cond("Accepted", "True", "New", metav1.Time{})}}, now)
	if data := string(mergePatch(gw, old, merged)); data != `{"metadata":{"resourceVersion":"7","uid":"u"},"status":{"addresses":null}}` {
		t.Errorf("an address that goes: %s", data)
	}
	listener := func(conds ...metav1.Condition) []gatewayv1.ListenerStatus {
		return []gatewayv1.ListenerStatus{{Name: "http", Conditions: conds}}
	}
	gw.Status = gatewayv1.GatewayStatus{Listeners: listener(cond("Theirs", "True", "x", then), cond("Programmed", "False", "y", then))}
	_, merged = statusOf(gw, &gatewayv1.GatewayStatus{Listeners: listener(cond("Programmed", "True", "z", metav1.Time{}))}, now)
	if got, want := string(encode(merged.(*gatewayv1.GatewayStatus).Listeners)), string(encode(listener(cond("Theirs", "True", "x", then), cond("Programmed", "True", "z", now)))); got != want {
		t.Errorf("a listener's conditions: %s, want %s", got, want)
	}

	r := &gatewayv1.HTTPRoute{Status: gatewayv1.HTTPRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{
		{ControllerName: gatewayapi.ControllerName, ParentRef: gatewayv1.ParentReference{Name: "gone"}},
	}}}}
	old, merged = statusOf(r, []gatewayv1.RouteParentStatus{}, now)
	if data := string(mergePatch(r, old, merged)); !strings.Contains(data, `"status":{"parents":[]}`) {
		t.Errorf("the last parent goes: %s", data)
	}
	old, merged = statusOf(r, r.Status.Parents, now)
	if data := mergePatch(r, old, merged); data != nil {
		t.Errorf("nothing changes: %s", data)
	}
}

func TestPartsOfAGateway(t *testing.T) {
	gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: strings.Repeat("very-long.", 20) + "name", UID: "uid"},
		Spec: gatewayv1.GatewaySpec{GatewayClassName: "weft"}}
	in := &gatewayapi.Infrastructure{Accepted: true, Labels: map[string]string{"team": "a", "app.kubernetes.io/name": "mine"}, Annotations: map[string]string{"x": "y"},
		Ports: []gatewayapi.Port{{Name: "tcp-80", Protocol: model.TCP, Port: 80, BindPort: 61080}, {Name: "udp-53", Protocol: model.UDP, Port: 53, BindPort: 61053}}}
	ten := int64(10)
	conf := mergedConfig(
		&v1alpha1.GatewayConfig{Spec: v1alpha1.GatewayConfigSpec{Replicas: &ten, DrainSeconds: &ten, Service: &v1alpha1.GatewayService{Type: "NodePort", ExternalTrafficPolicy: "Local"}}},
		&v1alpha1.GatewayConfig{Spec: v1alpha1.GatewayConfigSpec{DrainSeconds: new(int64(60)), Service: &v1alpha1.GatewayService{Type: "LoadBalancer"}, Args: []string{"--log-level=debug"}}})
	if *conf.Replicas != 10 || *conf.DrainSeconds != 60 || conf.Service.Type != "LoadBalancer" || conf.Service.ExternalTrafficPolicy != "Local" {
		t.Errorf("the Gateway's config over its class's: %s", encode(conf))
	}
	seen := map[string]bool{}
	for _, o := range partsOf(gw, in, conf, PodOptions{Image: "i", Server: "c:1"}, nil) {
		seen[o.GetKind()] = true
		if len(o.GetName()) > 63 || strings.Contains(o.GetName(), ".") || o.GetNamespace() != "shop" {
			t.Errorf("%s: name %s/%s", o.GetKind(), o.GetNamespace(), o.GetName())
		}
		if l := o.GetLabels(); l["team"] != "a" || l["app.kubernetes.io/name"] != "weft" || l[kube.OwnedBy] != kube.ManagedBy || o.GetAnnotations()["x"] != "y" {
			t.Errorf("%s: labels %v, annotations %v", o.GetKind(), l, o.GetAnnotations())
		}
		if own := o.GetOwnerReferences(); len(own) != 1 || own[0].UID != types.UID("uid") {
			t.Errorf("%s: owners %v", o.GetKind(), own)
		}
		text := string(encode(o.Object))
		switch o.GetKind() {
		case "Service":
			for _, want := range []string{`"targetPort":61080`, `"protocol":"UDP"`, `"type":"LoadBalancer"`, `"externalTrafficPolicy":"Local"`, `"ipFamilyPolicy":"PreferDualStack"`} {
				if !strings.Contains(text, want) {
					t.Errorf("the Service lacks %s: %s", want, text)
				}
			}
		case "Deployment":
			for _, want := range []string{`"terminationGracePeriodSeconds":70`, `"--drain=60s"`, `"--log-level=debug"`, `"replicas":10`, `"drop":["ALL"]`, `"automountServiceAccountToken":false`} {
				if !strings.Contains(text, want) {
					t.Errorf("the Deployment lacks %s: %s", want, text)
				}
			}
		}
	}
	for _, kind := range []string{"ServiceAccount", "Deployment", "Service", "PodDisruptionBudget"} {
		if !seen[kind] {
			t.Errorf("no %s", kind)
		}
	}
	in.Ports = nil
	for _, o := range partsOf(gw, in, conf, PodOptions{}, nil) {
		if o.GetKind() == "Service" {
			t.Error("a Service without ports, which no API server takes")
		}
	}
	a, b := shortName(strings.Repeat("a", 70)+"x"), shortName(strings.Repeat("a", 70)+"y")
	if a == b || len(a) > 63 || shortName("web-weft") != "web-weft" || shortName("a.b") == shortName("a-b") {
		t.Errorf("%q %q", a, b)
	}
}

func TestAddressesOfAGateway(t *testing.T) {
	svc := func(typ corev1.ServiceType, ips ...string) *corev1.Service {
		s := &corev1.Service{Spec: corev1.ServiceSpec{Type: typ, ClusterIPs: []string{"10.0.0.1"}}}
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		return s
	}
	ports := []gatewayapi.Port{{Port: 80}}
	for name, c := range map[string]struct {
		svc    *corev1.Service
		wanted []string
		want   string
		reason gatewayv1.GatewayConditionReason
	}{
		"both families":  {svc(corev1.ServiceTypeLoadBalancer, "192.0.2.1", "2001:db8::1"), nil, "192.0.2.1 2001:db8::1", ""},
		"none yet":       {svc(corev1.ServiceTypeLoadBalancer), nil, "", gatewayv1.GatewayReasonAddressNotAssigned},
		"no Service":     {nil, nil, "", gatewayv1.GatewayReasonPending},
		"the one asked":  {svc(corev1.ServiceTypeLoadBalancer, "192.0.2.1", "2001:db8::1"), []string{"192.0.2.1"}, "192.0.2.1", ""},
		"another":        {svc(corev1.ServiceTypeLoadBalancer, "192.0.2.1"), []string{"192.0.2.9"}, "192.0.2.1", gatewayv1.GatewayReasonAddressNotUsable},
		"of the nodes":   {svc(corev1.ServiceTypeNodePort), nil, "192.0.2.11 192.0.2.12", ""},
		"of the cluster": {svc(corev1.ServiceTypeClusterIP), nil, "10.0.0.1", ""},
	} {
		addrs, problem := addressesOf(c.svc, &gatewayapi.Infrastructure{Ports: ports, Addresses: c.wanted}, []string{"192.0.2.11", "192.0.2.12"})
		var got []string
		for _, a := range addrs {
			got = append(got, a.IP.String())
		}
		var reason gatewayv1.GatewayConditionReason
		if problem != nil {
			reason = problem.Reason
		}
		if strings.Join(got, " ") != c.want || reason != c.reason {
			t.Errorf("%s: %v, %v", name, got, problem)
		}
	}
}

func TestFingerprint(t *testing.T) {
	d := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "1", Generation: 1}, Spec: corev1.ServiceSpec{ClusterIP: "x"}}
	same := d.DeepCopy()
	same.ResourceVersion, same.Generation, same.Status.Conditions = "2", 9, []metav1.Condition{{Type: "x"}}
	other := d.DeepCopy()
	other.Labels = map[string]string{"a": "b"}
	if fingerprint(d) != fingerprint(same) || fingerprint(d) == fingerprint(other) {
		t.Error("status and versions are none of anybody's changes; labels are")
	}
}
