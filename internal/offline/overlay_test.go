// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"fmt"
	"testing"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// A cluster with manifests applied to it is the cluster, changed where they say so.
func TestOverlay(t *testing.T) {
	base, err := load(t, Options{}, `
apiVersion: v1
kind: Pod
metadata: {name: web-5d-x, namespace: shop, labels: {app: web, old: "yes", pod-template-hash: 5d}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {podIPs: [{ip: 10.1.0.7}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: kept, namespace: shop}
spec: {podSelector: {}}
`)
	if err != nil {
		t.Fatal(err)
	}
	web := Workload{"deployment", name("shop/web")}
	base.Workloads[web] = []model.Name{name("shop/web-5d-x")}
	ms, err := kube.ParseManifests("in.yaml", []byte(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {metadata: {labels: {app: web, color: green}}, spec: {containers: [{name: c, image: x}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: new}
spec: {template: {metadata: {labels: {app: new}}, spec: {containers: [{name: c, image: x}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 81}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tier: one}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: added}
spec: {podSelector: {}}
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Overlay(base, Options{Namespace: "shop"}, ms)
	if err != nil {
		t.Fatal(err)
	}
	p := c.Delta.Pods[name("shop/web-5d-x")]
	if got := fmt.Sprint(p.Labels, p.IPs, " ", p.Node); got != "map[app:web color:green pod-template-hash:5d] [10.1.0.7] n1" {
		t.Error(got)
	}
	if n := len(c.Delta.Pods); n != 3 || len(c.Workloads[Workload{"deployment", name("shop/new")}]) != 1 {
		t.Errorf("%d pods, %v", n, c.Workloads)
	}
	s := c.Delta.Services[name("shop/web")]
	if fmt.Sprint(s.ClusterIPs, s.Ports[0].Port) != "[10.96.0.9] 81" {
		t.Errorf("%+v", s)
	}
	if got := fmt.Sprint(c.Delta.Namespaces["shop"].Labels); got != "map[kubernetes.io/metadata.name:shop team:shop tier:one]" {
		t.Error(got)
	}
	if c.Delta.NetworkPolicies[name("shop/kept")] == nil || c.Delta.NetworkPolicies[name("shop/added")] == nil {
		t.Errorf("%v", c.Delta.NetworkPolicies)
	}
	if base.Delta.Pods[name("shop/web-5d-x")].Labels["old"] == "" || base.Delta.NetworkPolicies[name("shop/added")] != nil || len(base.Delta.Pods) != 2 {
		t.Error("the cluster was changed")
	}
}
