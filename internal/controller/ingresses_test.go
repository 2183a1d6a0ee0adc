// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

const (
	ingressPath      = "/apis/networking.k8s.io/v1/namespaces/default/ingresses/"
	ingressClassPath = "/apis/networking.k8s.io/v1/ingressclasses/"
	frontPath        = "/api/v1/namespaces/weft/services/weft-ingress"
)

// startIngresses runs a controller that serves Ingresses.
func startIngresses(t *testing.T, f *fakeAPI, opts IngressOptions) *replica {
	t.Helper()
	return run(t, f, "one", func(record func(model.Event), log *slog.Logger) []*Role {
		return []*Role{NewIngresses(f.config(), opts, record, log)}
	})
}

// shown spells an Ingress's addresses.
func (f *fakeAPI) shown(name string) string {
	status, _ := f.get(ingressPath + name)["status"].(object)
	lb, _ := status["loadBalancer"].(object)
	list, _ := lb["ingress"].([]any)
	var out []string
	for _, x := range list {
		e := x.(object)
		if ip, ok := e["ip"]; ok {
			out = append(out, fmt.Sprint(ip))
		} else {
			out = append(out, fmt.Sprint(e["hostname"]))
		}
	}
	return strings.Join(out, ",")
}

func (f *fakeAPI) putIngress(name, class, annotations string) {
	f.put(ingressPath+name, fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"uid":"u-%[1]s","annotations":%[3]s},
		"spec":{"ingressClassName":%[2]q,"rules":[{"host":"%[1]s.test","http":{"paths":[{"path":"/","pathType":"Prefix","backend":{"service":{"name":"cart","port":{"number":80}}}}]}}]}}`, name, class, annotations))
}

func TestIngressAddresses(t *testing.T) {
	f := newFakeAPI(t)
	f.put(ingressClassPath+"weft", `{"apiVersion":"networking.k8s.io/v1","kind":"IngressClass","spec":{"controller":"weft.dev/ingress"}}`)
	f.put(ingressClassPath+"other", `{"apiVersion":"networking.k8s.io/v1","kind":"IngressClass","spec":{"controller":"example.com/other"}}`)
	front := func(kind, status string) {
		f.put(frontPath, fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"uid":"s"},"spec":{"type":%q,"clusterIP":"10.96.0.9","ports":[{"name":"http","port":80}]},"status":%s}`, kind, status))
	}
	front("LoadBalancer", `{}`)
	f.putIngress("a", "weft", `{"nginx.ingress.kubernetes.io/rewrite-targt":"/"}`)
	f.putIngress("b", "other", `{}`)
	server := configsync.NewServer(slog.New(slog.NewTextHandler(io.Discard, nil)))
	r := startIngresses(t, f, IngressOptions{Server: server, Service: model.Name{Namespace: "weft", Name: "weft-ingress"}})
	eventually(t, "tables are published", func() bool { return server.Served(IngressGateway).Published > 0 })
	eventually(t, "the mistake is told", func() bool { return strings.Contains(r.events(), "UnknownAnnotation") })
	if got := f.shown("a"); got != "" {
		t.Errorf("an address before the Service has one: %s", got)
	}
	front("LoadBalancer", `{"loadBalancer":{"ingress":[{"ip":"172.30.0.200"},{"ip":"fd00::1"},{"hostname":"lb.test"}]}}`)
	eventually(t, "a shows the Service's addresses", func() bool { return f.shown("a") == "lb.test,172.30.0.200,fd00::1" })
	f.putIngress("c", "weft", `{}`)
	eventually(t, "a new Ingress shows them", func() bool { return f.shown("c") == "lb.test,172.30.0.200,fd00::1" })
	if f.shown("b") != "" {
		t.Errorf("another controller's Ingress shows %s", f.shown("b"))
	}
	// A pod's node, where the Service is of no type that has addresses.
	f.put("/api/v1/nodes/n1", `{"apiVersion":"v1","kind":"Node","status":{"addresses":[{"type":"InternalIP","address":"172.30.0.11"}]}}`)
	f.put("/apis/discovery.k8s.io/v1/namespaces/weft/endpointslices/weft-ingress-1", `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice",
		"metadata":{"labels":{"kubernetes.io/service-name":"weft-ingress"}},"addressType":"IPv4","ports":[{"name":"http","port":8080}],
		"endpoints":[{"addresses":["10.244.0.5"],"nodeName":"n1","conditions":{"ready":true}},{"addresses":["10.244.0.6"],"nodeName":"gone","conditions":{"ready":true}}]}`)
	front("NodePort", `{"loadBalancer":{}}`)
	eventually(t, "a shows the node", func() bool { return f.shown("a") == "172.30.0.11" && f.shown("c") == "172.30.0.11" })
	// One that leaves takes no address along.
	f.putIngress("c", "other", `{}`)
	eventually(t, "c shows nothing", func() bool { return f.shown("c") == "" })
}

// Where the gateway's Service can't have an address, each Ingress's Events say why.
func TestIngressesWithoutAddress(t *testing.T) {
	f := newFakeAPI(t)
	f.put(ingressClassPath+"weft", `{"apiVersion":"networking.k8s.io/v1","kind":"IngressClass","spec":{"controller":"weft.dev/ingress"}}`)
	front := func(status string) {
		f.put(frontPath, `{"apiVersion":"v1","kind":"Service","metadata":{"uid":"s"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.9","ports":[{"name":"http","port":80}]},"status":`+status+`}`)
	}
	const told = "NoAddress: Ingresses are reached at Service weft/weft-ingress, which has no address: there is no AddressPool: make one"
	front(`{}`)
	f.putIngress("a", "weft", `{}`)
	f.putIngress("other", "other", `{}`)
	server := configsync.NewServer(slog.New(slog.DiscardHandler))
	r := startIngresses(t, f, IngressOptions{Server: server, Service: model.Name{Namespace: "weft", Name: "weft-ingress"}})
	eventually(t, "tables are published", func() bool { return server.Served(IngressGateway).Published > 0 })
	front(`{"conditions":[{"type":"weft.dev/AddressAssigned","status":"False","reason":"NoAddressPool","message":"there is no AddressPool: make one"}]}`)
	eventually(t, "a is told of", func() bool { return strings.Contains(r.events(), "Ingress default/a "+told) })
	f.putIngress("b", "weft", `{}`)
	eventually(t, "so is a new one", func() bool { return strings.Contains(r.events(), "Ingress default/b "+told) })
	front(`{"loadBalancer":{"ingress":[{"ip":"172.30.0.200"}]},"conditions":[{"type":"weft.dev/AddressAssigned","status":"True","reason":"AddressAssigned","message":"172.30.0.200"}]}`)
	eventually(t, "they show the address", func() bool { return f.shown("a") == "172.30.0.200" && f.shown("b") == "172.30.0.200" })
	if n := strings.Count(r.events(), "NoAddress"); n != 2 {
		t.Errorf("told %d times: %s", n, r.events())
	}
}

func TestFixedIngressAddresses(t *testing.T) {
	f := newFakeAPI(t)
	f.putIngress("a", "", `{"kubernetes.io/ingress.class":"nginx"}`)
	startIngresses(t, f, IngressOptions{
		Options: ingress.Options{Controllers: []string{ingress.NginxController}}, Server: configsync.NewServer(slog.New(slog.NewTextHandler(io.Discard, nil))),
		Addresses: []string{"203.0.113.1", "front.test"},
	})
	eventually(t, "a shows what it was told to", func() bool { return f.shown("a") == "203.0.113.1,front.test" })
}

// Of the addresses that Ingresses show those go that weft wrote.
func TestCleanupIngresses(t *testing.T) {
	f := newFakeAPI(t)
	put := func(name, manager, subresource, fields, ingress string) {
		f.put(ingressPath+name, fmt.Sprintf(`{"metadata":{"managedFields":[{"manager":%q,"operation":"Update","subresource":%q,"fieldsType":"FieldsV1","fieldsV1":%s}]},
			"status":{"loadBalancer":{"ingress":%s}}}`, manager, subresource, fields, ingress))
	}
	const addresses, lb = `[{"ip":"192.0.2.1"}]`, `{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}`
	put("ours", "weft-controller", "status", lb, addresses)
	put("empty", "weft-controller", "status", lb, `[]`)
	put("theirs", "other", "status", lb, addresses)
	put("taken-over", "weft-controller", "", `{"f:metadata":{}}`, addresses)
	for want := 1; want >= 0; want-- {
		if n, err := CleanupIngresses(t.Context(), f.config()); n != want || err != nil {
			t.Errorf("%d Ingresses, want %d: %v", n, want, err)
		}
	}
	if got := f.shown("ours") + "|" + f.shown("theirs") + "|" + f.shown("taken-over"); got != "|192.0.2.1|192.0.2.1" {
		t.Errorf("left: %s", got)
	}
}
