// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"testing"

	"github.com/weft-net/weft/internal/model"
)

// TestClusterDNS takes the Service of kube-system for the cluster's DNS, whoever else puts its label on one.
func TestClusterDNS(t *testing.T) {
	services := map[model.Name]*model.Service{}
	add := func(namespace, name string) {
		n := model.Name{Namespace: namespace, Name: name}
		services[n] = &model.Service{Meta: model.Meta{Name: n, Labels: map[string]string{"k8s-app": "kube-dns"}}}
	}
	find := func() string {
		w, err := NewWorld(&model.Delta{Complete: true, Services: services}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s := w.ClusterDNS(); s != nil {
			return s.Name.Name
		}
		return ""
	}
	if got := find(); got != "" {
		t.Errorf("%s of an empty cluster", got)
	}
	add("a-tenant", "theirs")
	if got := find(); got != "theirs" {
		t.Errorf("%q, of a cluster whose DNS is elsewhere", got)
	}
	add("kube-system", "weft-dns")
	if got := find(); got != "weft-dns" {
		t.Errorf("%q is taken for the cluster's DNS", got)
	}
}
