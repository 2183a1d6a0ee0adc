// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// world reads manifests as what the Ingress compiler takes. Secrets and Services that are not there are assumed.
func world(t *testing.T, file string) *ingress.Changes {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ms, err := kube.ParseManifests(file, data)
	if err != nil {
		t.Fatal(err)
	}
	d, err := kube.FromManifests(ms, "default")
	if err != nil {
		t.Fatal(err)
	}
	in := &ingress.Changes{Ingresses: d.Ingresses, Classes: d.IngressClasses, Services: d.Services, EndpointSlices: d.EndpointSlices, Secrets: d.Secrets, ConfigMaps: d.ConfigMaps}
	if err := AssumeSecrets(in); err != nil {
		t.Fatal(err)
	}
	AssumeServices(in)
	return in
}

func TestFromIngresses(t *testing.T) {
	files, err := filepath.Glob("testdata/ingress/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c := FromIngresses(IngressOptions{
				Gateway: model.Name{Namespace: "infra", Name: "ingress"}, GatewayClass: "weft", NewNamespace: strings.Contains(file, "lost"),
				Compile: ingress.Options{Controllers: []string{ingress.NginxController}},
			}, world(t, file))
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", c.Objects, c.Notes)
		})
	}
}

// TestBecame has an answer for every group of annotations that are honoured.
func TestBecame(t *testing.T) {
	var groups []string
	for _, a := range ingress.Annotations() {
		if a.Verdict == ingress.Honoured && !slices.Contains(groups, a.Group) {
			groups = append(groups, a.Group)
		}
	}
	for _, g := range groups {
		if became[g] == "" {
			t.Errorf("no word on annotations of group %q", g)
		}
	}
	if len(groups) < 10 {
		t.Errorf("only %v", groups)
	}
}
