// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"fmt"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy/policytest"
)

func labels(s string) map[string]string {
	out := map[string]string{}
	for _, kv := range strings.Split(s, ",") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return out
}

func sel(s string) *model.Selector {
	m := model.MatchLabels(labels(s))
	return &m
}

func named(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

func podObject(name, podLabels, addrs string) *model.Pod {
	return &model.Pod{
		Meta: model.Meta{Name: named(name), UID: "uid-" + name, Labels: labels(podLabels)},
		Node: "n1", IPs: policytest.Addrs(addrs), Ports: []model.ContainerPort{{Name: "http", Protocol: model.TCP, Port: 80}},
	}
}

func namespace(name, nsLabels string) *model.Namespace {
	return &model.Namespace{Meta: model.Meta{Name: model.Name{Name: name}, Labels: labels(nsLabels)}}
}

// nothing is the absence of a NetworkPolicy.
type nothing model.Name

func delta(objects ...any) *model.Delta {
	d := &model.Delta{
		Complete: true, Pods: map[model.Name]*model.Pod{}, Namespaces: map[string]*model.Namespace{},
		NetworkPolicies: map[model.Name]*model.NetworkPolicy{}, ClusterNetworkPolicies: map[string]*model.ClusterNetworkPolicy{},
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *model.Pod:
			d.Pods[o.Name] = o
		case *model.Namespace:
			d.Namespaces[o.Name.Name] = o
		case *model.NetworkPolicy:
			d.NetworkPolicies[o.Name] = o
		case *model.ClusterNetworkPolicy:
			d.ClusterNetworkPolicies[o.Name.Name] = o
		case nothing:
			d.NetworkPolicies[model.Name(o)] = nil
		default:
			panic(fmt.Sprintf("delta: %T", o))
		}
	}
	return d
}
