// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

const shop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: x}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: web, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: report}}, spec: {hostNetwork: true, containers: [{name: c, image: x}]}}}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: grpc, port: 90, targetPort: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: fixed, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: placed}
spec: {containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.244.0.1}]}
`

func load(t *testing.T, o Options, text string) (*Cluster, error) {
	t.Helper()
	ms, err := kube.ParseManifests("in.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return FromManifests(o, ms)
}

func name(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

func TestCluster(t *testing.T) {
	c, err := load(t, Options{}, shop)
	if err != nil {
		t.Fatal(err)
	}
	var pods []string
	for _, n := range sorted(c.Delta.Pods) {
		pods = append(pods, fmt.Sprint(n, c.Delta.Pods[n].IPs))
	}
	want := []string{
		"default/placed [10.244.0.1]", // an address that somebody has is given to no other
		"shop/db-0 [10.244.0.2]", "shop/web [10.244.0.3]",
		"shop/web-cronjob [192.0.2.10]", // on its node's network; a name that is taken gets its kind
	}
	if !slices.Equal(pods, want) {
		t.Errorf("pods %v, want %v", pods, want)
	}
	if c.Assumed[netip.MustParseAddr("10.244.0.1")] || !c.Assumed[netip.MustParseAddr("10.244.0.3")] {
		t.Errorf("assumed: %v", c.Assumed)
	}
	if got := c.Workloads[Workload{"statefulset", name("shop/db")}]; !slices.Equal(got, []model.Name{name("shop/db-0")}) {
		t.Errorf("pods of the StatefulSet: %v", got)
	}
	if ips := c.Delta.Services[name("shop/web")].ClusterIPs; len(ips) != 1 || ips[0] == netip.MustParseAddr("10.96.0.1") {
		t.Errorf("cluster IPs of web: %v", ips)
	}
	var slicesOf []string
	for _, n := range sorted(c.Delta.EndpointSlices) {
		s := c.Delta.EndpointSlices[n]
		slicesOf = append(slicesOf, fmt.Sprint(s.Service, s.Endpoints[0].Addresses, s.Ports))
	}
	// The pod has no port named grpc, so it is no endpoint for that one.
	if want := []string{"fixed[10.244.0.2] [{ TCP 5432 }]", "web[10.244.0.3] [{http TCP 8080 }]"}; !slices.Equal(slicesOf, want) {
		t.Errorf("slices %v, want %v", slicesOf, want)
	}
	if c.Delta.Namespaces["shop"].Labels["kubernetes.io/metadata.name"] != "shop" {
		t.Errorf("namespaces: %v", c.Delta.Namespaces)
	}
}

func TestBothFamilies(t *testing.T) {
	c, err := load(t, Options{
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/30"), netip.MustParsePrefix("fd00::/64")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd01::/64")},
	}, shop)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.Delta.Pods[name("shop/web")].IPs); got != "[10.1.0.2 fd00::2]" {
		t.Errorf("addresses of web: %s", got)
	}
	if n := len(c.Delta.EndpointSlices); n != 4 {
		t.Errorf("%d slices, want one for each endpoint and family", n)
	}
}

// What can't be used is named; the rest is there.
func TestProblems(t *testing.T) {
	c, err := load(t, Options{}, shop+`
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bad, namespace: shop}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}
`)
	if err == nil || !strings.Contains(err.Error(), "in.yaml:41: NetworkPolicy shop/bad: spec.ingress[0].from[0].ipBlock.cidr") {
		t.Errorf("err = %v", err)
	}
	if c == nil || len(c.Delta.Pods) != 4 || c.Delta.NetworkPolicies[name("shop/bad")] == nil {
		t.Errorf("the rest: %+v", c)
	}
}
