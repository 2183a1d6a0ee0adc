// SPDX-License-Identifier: Apache-2.0

package trafficpolicy

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
)

// Each file of testdata/golden is objects of a cluster; what the policies in it come to, in the tables of the Gateways and
// in their statuses, is in the file beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, in := range files {
		t.Run(filepath.Base(in), func(t *testing.T) {
			c, policies := readGolden(t, in)
			s, tables := New(), gatewayapi.New(gatewayapi.Options{})
			statuses := s.Apply(c, policies)
			tables.Apply(c)
			var b bytes.Buffer
			for _, gw := range slices.SortedFunc(maps.Keys(c.Gateways), model.Name.Compare) {
				section(t, &b, "tables of Gateway "+gw.String(), tables.Tables(gw))
			}
			for _, p := range slices.SortedFunc(maps.Keys(policies), model.Name.Compare) {
				fmt.Fprintf(&b, "== status of TrafficPolicy %s\n", p)
				for _, a := range statuses[p].Ancestors {
					fmt.Fprintf(&b, "ancestor %s %s\n", a.AncestorRef.Kind, strings.TrimSuffix(a.AncestorRef.Name+"/"+a.AncestorRef.SectionName, "/"))
					for _, cond := range a.Conditions {
						fmt.Fprintf(&b, "  %s=%s %s: %s\n", cond.Type, cond.Status, cond.Reason, cond.Message)
					}
				}
			}
			goldentest.Compare(t, strings.TrimSuffix(in, ".yaml")+".txt", b.String())
		})
	}
}

func section(t *testing.T, b *bytes.Buffer, title string, v any) {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(b, "== %s\n%s", title, text)
}

// readGolden reads manifests as the controller has them from the API server.
func readGolden(t *testing.T, path string) (*gatewayapi.Change, map[model.Name]*v1alpha1.TrafficPolicy) {
	t.Helper()
	ms, err := kube.ReadManifests(path)
	if err != nil {
		t.Fatal(err)
	}
	c := &gatewayapi.Change{Services: map[model.Name]*model.Service{}, Secrets: map[model.Name]*model.Secret{}}
	policies := map[model.Name]*v1alpha1.TrafficPolicy{}
	for _, m := range ms {
		switch o := m.Object.(type) {
		case *corev1.Service:
			n := model.Name{Namespace: o.Namespace, Name: o.Name}
			c.Services[n], err = kube.FromService(o)
		case *corev1.Secret:
			n := model.Name{Namespace: o.Namespace, Name: o.Name}
			c.Secrets[n], err = kube.FromSecret(o)
		case *unstructured.Unstructured:
			n := model.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
			if o.GetKind() == "TrafficPolicy" {
				policies[n] = &v1alpha1.TrafficPolicy{}
				err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, policies[n], true)
				break
			}
			var v *model.Object
			if v, err = kube.FromGatewayObject(o); err == nil && !c.SetObject(o.GetKind(), n, v) {
				err = fmt.Errorf("kind %s is not read here", o.GetKind())
			}
		default:
			err = fmt.Errorf("%T is not read here", o)
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return c, policies
}
