// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// shop is a Service of every kind at once, with its endpoints; options change both.
type shop struct {
	service   *model.Service
	endpoints []model.Endpoint
}

func newShop() *shop {
	ports := func(proto model.Protocol, name string) model.ServicePort {
		return model.ServicePort{Name: name, Protocol: proto, Port: 80, NodePort: 30080}
	}
	return &shop{
		service: &model.Service{
			Meta: model.Meta{Name: model.Name{Namespace: "shop", Name: "web"}}, Type: model.LoadBalancer,
			ClusterIPs: addrs("10.96.0.80", "fd00:96::80"), Families: []model.Family{model.IPv4, model.IPv6},
			ExternalIPs: addrs("198.51.100.1", "fd00:198::1"),
			Ingress:     []model.LoadBalancerIngress{{IP: addrs("203.0.113.1")[0]}, {IP: addrs("fd00:203::1")[0]}},
			Ports:       []model.ServicePort{ports(model.TCP, "tcp"), ports(model.UDP, "udp")},
		},
		endpoints: []model.Endpoint{endpoint("a1"), endpoint("c2")},
	}
}

// endpoint is a ready one; a1 and b1 are on node1, c2 on node2.
func endpoint(pod string) model.Endpoint {
	return model.Endpoint{Ready: true, Serving: true, OfPod: true, Pod: pod, Node: "node" + pod[1:], Zone: map[string]string{"1": "east", "2": "west"}[pod[1:]]}
}

// pods are the pods of that name, and the absence of the others.
func pods(names ...string) map[model.Name]*model.Pod {
	out := make(map[model.Name]*model.Pod)
	for _, name := range []string{"a1", "b1", "c2"} {
		n := model.Name{Namespace: "shop", Name: name}
		out[n] = nil
		if slices.Contains(names, name) {
			v4, v6 := podAddrs(podHost(name))
			out[n] = &model.Pod{Meta: model.Meta{Name: n}, Node: "node" + name[1:], IPs: addrs(v4, v6)}
		}
	}
	return out
}

func podHost(pod string) (node, host int) {
	return map[string]int{"a1": 0, "b1": 0, "c2": 1}[pod], map[string]int{"a1": 2, "b1": 3, "c2": 2}[pod]
}

// delta is the Service and its EndpointSlices.
func (s *shop) delta() *model.Delta {
	d := &model.Delta{Services: map[model.Name]*model.Service{s.service.Name: s.service}, EndpointSlices: map[model.Name]*model.EndpointSlice{}}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		n := model.Name{Namespace: "shop", Name: fmt.Sprintf("%s-%s", s.service.Name.Name, f)}
		slice := &model.EndpointSlice{Meta: model.Meta{Name: n}, Service: s.service.Name.Name, Family: f,
			Ports: []model.EndpointPort{{Name: "tcp", Protocol: model.TCP, Port: 8080}, {Name: "udp", Protocol: model.UDP, Port: 8080}}}
		for _, ep := range s.endpoints {
			v4, v6 := podAddrs(podHost(ep.Pod))
			ep.Addresses = addrs(v4)
			if f == model.IPv6 {
				ep.Addresses = addrs(v6)
			}
			slice.Endpoints = append(slice.Endpoints, ep)
		}
		d.EndpointSlices[n] = slice
	}
	return d
}

// target is a kind of frontend, as a client in the cluster or beyond addresses it.
var targets = map[string]map[model.Family]string{
	"cluster IP":  {model.IPv4: "10.96.0.80:80", model.IPv6: "[fd00:96::80]:80"},
	"external IP": {model.IPv4: "198.51.100.1:80", model.IPv6: "[fd00:198::1]:80"},
	"LB IP":       {model.IPv4: "203.0.113.1:80", model.IPv6: "[fd00:203::1]:80"},
	"node port":   {model.IPv4: "192.168.1.1:30080", model.IPv6: "[fd00:192::1]:30080"},
	"loopback":    {model.IPv4: "127.0.0.1:30080", model.IPv6: "[::1]:30080"},
}

// client is who asks: a pod that is an endpoint itself, one that is not, the node, a pod of the other node, the
// other node, and someone beyond the cluster.
func (c *cluster) client(name string) *space {
	switch name {
	case "endpoint":
		return c.pod["a1"]
	case "pod":
		return c.pod["b1"]
	case "node":
		return c.node[0]
	case "other pod":
		return c.pod["c2"]
	case "other node":
		return c.node[1]
	}
	return c.outside
}

// row is one line of the matrix: a client, a frontend, and who may answer it; sees is the source address that the
// servers get: "own" (the client's), "node" (node1's, or of the hairpin) or "any".
type row struct {
	client, target string
	answers        []string
	sees           string
}

func (c *cluster) check(t *testing.T, r row, network string, f model.Family) {
	t.Helper()
	addr := targets[r.target][f]
	from := c.client(r.client)
	left := slices.Clone(r.answers)
	// Endpoints are drawn at random: ask until each has answered.
	for range 60 {
		server, client := from.ask(network, addr)
		if !slices.Contains(r.answers, server) {
			t.Errorf("%s %s: %s to %s %s: %s answered, want one of %v", network, f, r.client, r.target, addr, server, r.answers)
			return
		}
		left = slices.DeleteFunc(left, func(s string) bool { return s == server })
		if client != "" && !c.seen(r, f, server, client) {
			t.Errorf("%s %s: %s to %s: %s saw %s, want the %s address", network, f, r.client, r.target, server, client, r.sees)
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%s %s: %s to %s: %v never answered", network, f, r.client, r.target, left)
}

func (c *cluster) seen(r row, f model.Family, server, client string) bool {
	own := map[string]map[model.Family]string{
		"endpoint":   {model.IPv4: "10.244.1.2", model.IPv6: "fd00:244:1::2"},
		"pod":        {model.IPv4: "10.244.1.3", model.IPv6: "fd00:244:1::3"},
		"node":       {model.IPv4: "192.168.1.1", model.IPv6: "fd00:192::1"},
		"other pod":  {model.IPv4: "10.244.2.2", model.IPv6: "fd00:244:2::2"},
		"other node": {model.IPv4: "192.168.1.2", model.IPv6: "fd00:192::2"},
		"outside":    {model.IPv4: "192.168.1.100", model.IPv6: "fd00:192::100"},
	}[r.client][f]
	isOwn := client == own
	if r.client == "endpoint" && server == "a1" {
		return !isOwn // a pod that reaches itself must not see its own address
	}
	switch r.sees {
	case "own":
		return isOwn
	case "node":
		return !isOwn || r.client == "node"
	}
	return true
}

func TestServiceMatrix(t *testing.T) {
	c := newCluster(t)
	c.start(t)
	cluster := []string{"a1", "c2"}
	policies := []struct {
		name  string
		local bool
		rows  []row
	}{
		{"Cluster", false, []row{
			{"endpoint", "cluster IP", cluster, "own"},
			{"pod", "cluster IP", cluster, "own"},
			{"node", "cluster IP", cluster, "any"},
			{"outside", "cluster IP", cluster, "node"},
			{"endpoint", "external IP", cluster, "node"},
			{"pod", "external IP", cluster, "node"},
			{"node", "external IP", cluster, "any"},
			{"outside", "external IP", cluster, "node"},
			{"endpoint", "LB IP", cluster, "node"},
			{"pod", "LB IP", cluster, "node"},
			{"node", "LB IP", cluster, "any"},
			{"outside", "LB IP", cluster, "node"},
			{"endpoint", "node port", cluster, "node"},
			{"pod", "node port", cluster, "node"},
			{"node", "node port", cluster, "any"},
			{"node", "loopback", cluster, "any"},
			{"other pod", "cluster IP", cluster, "node"},
			{"other pod", "external IP", cluster, "node"},
			{"other pod", "LB IP", cluster, "node"},
			{"other pod", "node port", cluster, "node"},
			{"other node", "cluster IP", cluster, "node"},
			{"other node", "external IP", cluster, "node"},
			{"other node", "LB IP", cluster, "node"},
			{"other node", "node port", cluster, "node"},
			{"outside", "node port", cluster, "node"},
		}},
		{"Local", true, []row{
			{"endpoint", "cluster IP", cluster, "own"},
			{"pod", "cluster IP", cluster, "own"},
			{"node", "cluster IP", cluster, "any"},
			{"outside", "cluster IP", cluster, "node"}, // the policy is for external frontends
			{"endpoint", "external IP", cluster, "own"},
			{"pod", "external IP", cluster, "own"},
			{"node", "external IP", cluster, "any"},
			{"outside", "external IP", []string{"a1"}, "own"},
			{"endpoint", "LB IP", cluster, "own"},
			{"pod", "LB IP", cluster, "own"},
			{"node", "LB IP", cluster, "any"},
			{"outside", "LB IP", []string{"a1"}, "own"},
			{"endpoint", "node port", cluster, "own"},
			{"pod", "node port", cluster, "own"},
			{"node", "node port", cluster, "any"},
			{"node", "loopback", cluster, "any"},
			{"other pod", "external IP", []string{"a1"}, "own"},
			{"other pod", "LB IP", []string{"a1"}, "own"},
			{"other node", "external IP", []string{"a1"}, "own"},
			{"other node", "LB IP", []string{"a1"}, "own"},
			{"other pod", "node port", []string{"a1"}, "own"},
			{"other node", "node port", []string{"a1"}, "own"},
			{"outside", "node port", []string{"a1"}, "own"},
		}},
	}
	for _, p := range policies {
		for _, network := range []string{"tcp", "udp"} {
			for _, f := range []model.Family{model.IPv4, model.IPv6} {
				t.Run(fmt.Sprintf("%s/%s/%s", p.name, network, f), func(t *testing.T) {
					s := newShop()
					s.service.ExternalLocal = p.local
					c.update(t, s.delta())
					for _, r := range p.rows {
						c.check(t, r, network, f)
					}
				})
			}
		}
	}
	if t.Failed() {
		t.Log(c.log)
	}
}
