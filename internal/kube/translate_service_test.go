// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// TestSourceRanges: what can't be read, or is spelt unusually, must not widen whom a load balancer admits.
func TestSourceRanges(t *testing.T) {
	for in, want := range map[string][]netip.Prefix{
		"[010.0.0.0/8]":                {{}}, // leading zeros: octal to some, decimal to others
		"['::ffff:10.1.0.0/104']":      {netip.MustParsePrefix("10.0.0.0/8")},
		"['::ffff:0.0.0.0/96', bogus]": {netip.MustParsePrefix("0.0.0.0/0"), {}},
		"['fd00::1/8', ' 10.0.0.1/8']": {netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("10.0.0.0/8")},
	} {
		d, err := translate(t, "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, loadBalancerSourceRanges: "+in+"}}")
		got := d.Services[model.Name{Namespace: "default", Name: "web"}].LoadBalancer.SourceRanges
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
		if slices.Contains(want, netip.Prefix{}) != (err != nil && strings.Contains(err.Error(), "not a CIDR")) {
			t.Errorf("%s: error %v", in, err)
		}
	}
}

// TestUnreadableLoadBalancerIP: a wish that can't be read is not the same as none.
func TestUnreadableLoadBalancerIP(t *testing.T) {
	d, err := translate(t, "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, loadBalancerIP: 203.0.113.x}}")
	lb := d.Services[model.Name{Namespace: "default", Name: "web"}].LoadBalancer
	if err == nil || lb.RequestedIP.IsValid() || lb.UnreadableIP != "203.0.113.x" {
		t.Errorf("%+v, error %v", lb, err)
	}
}

func TestHeadlessSlice(t *testing.T) {
	for labels, want := range map[string]bool{
		"{kubernetes.io/service-name: db, service.kubernetes.io/headless: ''}": true,
		"{kubernetes.io/service-name: db}":                                     false,
	} {
		d, err := translate(t, "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-1, labels: "+labels+"}, addressType: IPv4, endpoints: []}")
		if err != nil {
			t.Fatal(err)
		}
		if got := d.EndpointSlices[model.Name{Namespace: "default", Name: "db-1"}].Headless; got != want {
			t.Errorf("%s: headless %v, want %v", labels, got, want)
		}
	}
}

func TestNodeToBeDeleted(t *testing.T) {
	for taints, want := range map[string]bool{"[]": false, "[{key: other, effect: NoSchedule}]": false,
		"[{key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}]": true} {
		d, err := translate(t, "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {taints: "+taints+"}}")
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Nodes["n1"].ToBeDeleted; got != want {
			t.Errorf("%s: to be deleted %v, want %v", taints, got, want)
		}
	}
}
