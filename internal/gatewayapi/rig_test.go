// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// readObjects reads a file of manifests. A Secret or ConfigMap whose data begins with "file:" has that file of testdata.
// Two kinds are of the tests: Feedback and Parameters, whose spec is the value of that name.
func readObjects(t testing.TB, path string) *Change {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := emptyChange()
	for i, doc := range strings.Split("\n"+string(text), "\n---\n") {
		raw, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatalf("%s: document %d: %v", path, i, err)
		}
		if string(raw) == "null" {
			continue
		}
		if err := c.addJSON(t, raw, strings.Contains(path, "later")); err != nil {
			t.Fatalf("%s: document %d: %v", path, i, err)
		}
	}
	return c
}

func emptyChange() *Change {
	return &Change{
		GatewayClasses: map[string]*gwv1.GatewayClass{}, Gateways: map[model.Name]*gwv1.Gateway{},
		ListenerSets: map[model.Name]*gwv1.ListenerSet{}, HTTPRoutes: map[model.Name]*gwv1.HTTPRoute{},
		GRPCRoutes: map[model.Name]*gwv1.GRPCRoute{}, TLSRoutes: map[model.Name]*gwv1.TLSRoute{},
		TCPRoutes: map[model.Name]*gwv1.TCPRoute{}, UDPRoutes: map[model.Name]*gwv1.UDPRoute{},
		BackendTLSPolicies: map[model.Name]*gwv1.BackendTLSPolicy{}, ReferenceGrants: map[model.Name]*gwv1.ReferenceGrant{},
		Services: map[model.Name]*model.Service{}, EndpointSlices: map[model.Name]*model.EndpointSlice{},
		Namespaces: map[string]*model.Namespace{}, Secrets: map[model.Name]*model.Secret{}, ConfigMaps: map[model.Name]*model.ConfigMap{},
		ClusterTrustBundles: map[string]*model.ClusterTrustBundle{},
		Parameters:          map[model.Name]*Parameters{}, Attachments: map[Target]*Attachment{}, Policies: map[string]*Policy{},
		Feedback: map[model.Name]*Feedback{}, Unknown: map[model.ObjectKey]map[string]any{},
	}
}

// object reads one object strictly: a field that the API does not have is a mistake of the test.
func object[T any](raw []byte) (*T, error) {
	var v T
	return &v, yaml.UnmarshalStrict(raw, &v)
}

// addJSON adds an object; later says that a field which the types do not have is no mistake.
func (c *Change) addJSON(t testing.TB, raw []byte, later bool) error {
	var head struct {
		Kind     string
		Metadata struct{ Namespace, Name string }
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	n := model.Name{Namespace: head.Metadata.Namespace, Name: head.Metadata.Name}
	if NewObject(head.Kind) != nil {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(raw); err != nil {
			return err
		}
		o, err := kube.FromGatewayObject(u)
		if err != nil {
			return err
		}
		c.SetObject(head.Kind, n, o)
		if len(o.Unknown) == 0 {
			delete(c.Unknown, model.ObjectKey{Kind: head.Kind, Namespace: n.Namespace, Name: n.Name})
		} else if !later {
			return fmt.Errorf("unknown fields: %v", o.Unknown)
		}
		return nil
	}
	var err error
	switch head.Kind {
	case "Service":
		var o *corev1.Service
		if o, err = object[corev1.Service](raw); err == nil {
			c.Services[n], err = kube.FromService(o)
		}
	case "EndpointSlice":
		var o *discoveryv1.EndpointSlice
		if o, err = object[discoveryv1.EndpointSlice](raw); err == nil {
			c.EndpointSlices[n], err = kube.FromEndpointSlice(o)
		}
	case "Namespace":
		var o *corev1.Namespace
		if o, err = object[corev1.Namespace](raw); err == nil {
			c.Namespaces[n.Name], err = kube.FromNamespace(o)
		}
	case "Secret":
		var o *corev1.Secret
		if o, err = object[corev1.Secret](raw); err == nil {
			s := &model.Secret{Meta: model.Meta{Name: n}, Type: string(o.Type), Data: map[string][]byte{}}
			for k, v := range o.StringData {
				s.Data[k] = []byte(fileOr(t, v))
			}
			c.Secrets[n] = s
		}
	case "ConfigMap":
		var o *corev1.ConfigMap
		if o, err = object[corev1.ConfigMap](raw); err == nil {
			m := &model.ConfigMap{Meta: model.Meta{Name: n}, Data: map[string]string{}}
			for k, v := range o.Data {
				m.Data[k] = fileOr(t, v)
			}
			c.ConfigMaps[n] = m
		}
	case "ClusterTrustBundle":
		var o *certificatesv1.ClusterTrustBundle
		if o, err = object[certificatesv1.ClusterTrustBundle](raw); err == nil {
			c.ClusterTrustBundles[n.Name], err = kube.FromClusterTrustBundle(o)
			c.ClusterTrustBundles[n.Name].PEM = fileOr(t, o.Spec.TrustBundle)
		}
	case "Feedback":
		var o struct{ Spec Feedback }
		err = json.Unmarshal(raw, &o)
		c.Feedback[n] = &o.Spec
	case "Parameters":
		var o struct{ Spec Parameters }
		err = json.Unmarshal(raw, &o)
		c.Parameters[n] = &o.Spec
	case "Attachment":
		var o struct {
			Spec struct {
				Kind, Section string
				Policies      []string
			}
		}
		err = json.Unmarshal(raw, &o)
		c.Attachments[Target{Kind: o.Spec.Kind, Name: n, Section: o.Spec.Section}] = &Attachment{Policies: o.Spec.Policies}
	case "Policy":
		var o struct{ Spec Policy }
		err = json.Unmarshal(raw, &o)
		c.Policies[n.Name] = &o.Spec
	default:
		t.Fatalf("kind %s", head.Kind)
	}
	return err
}

func fileOr(t testing.TB, v string) string {
	name, ok := strings.CutPrefix(v, "file:")
	if !ok {
		return v
	}
	text, err := os.ReadFile("testdata/" + strings.TrimSpace(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// told keeps what a State told over time, as those do who write it: the newest value of everything.
type told struct {
	tables   map[model.Name]map[route.Ref]any
	infra    map[model.Name]*Infrastructure
	classes  map[string]*gwv1.GatewayClassStatus
	gateways map[model.Name]*gwv1.GatewayStatus
	sets     map[model.Name]*gwv1.ListenerSetStatus
	routes   map[RouteID][]gwv1.RouteParentStatus
	policies map[model.Name][]gwv1.PolicyAncestorStatus
	inUse    map[string]bool
}

func newTold() *told {
	return &told{
		tables: map[model.Name]map[route.Ref]any{}, infra: map[model.Name]*Infrastructure{},
		classes: map[string]*gwv1.GatewayClassStatus{}, gateways: map[model.Name]*gwv1.GatewayStatus{},
		sets: map[model.Name]*gwv1.ListenerSetStatus{}, routes: map[RouteID][]gwv1.RouteParentStatus{},
		policies: map[model.Name][]gwv1.PolicyAncestorStatus{}, inUse: map[string]bool{},
	}
}

func (t *told) take(o *Output) {
	for name, c := range o.Gateways {
		if c.Gone {
			delete(t.tables, name)
			delete(t.infra, name)
			delete(t.gateways, name)
			continue
		}
		if c.Infrastructure != nil {
			t.infra[name] = c.Infrastructure
		}
		if c.Update != nil {
			if t.tables[name] == nil {
				t.tables[name] = map[route.Ref]any{}
			}
			apply(t.tables[name], c.Update)
		}
	}
	maps.Copy(t.classes, o.ClassStatuses)
	maps.Copy(t.gateways, o.GatewayStatuses)
	maps.Copy(t.sets, o.ListenerSetStatuses)
	maps.Copy(t.routes, o.RouteStatuses)
	maps.Copy(t.policies, o.PolicyStatuses)
	maps.Copy(t.inUse, o.ClassesInUse)
}

// apply merges an update into tables by reference.
func apply(tables map[route.Ref]any, u *route.Update) {
	for _, r := range u.Removed {
		delete(tables, r)
	}
	for i := range u.Listeners {
		tables[route.Ref{Kind: route.KindListener, Key: u.Listeners[i].Key}] = u.Listeners[i]
	}
	for i := range u.Routes {
		tables[route.Ref{Kind: route.KindRoute, Key: u.Routes[i].Key}] = u.Routes[i]
	}
	for i := range u.Backends {
		tables[route.Ref{Kind: route.KindBackend, Key: u.Backends[i].Key}] = u.Backends[i]
	}
	for i := range u.Endpoints {
		tables[route.Ref{Kind: route.KindEndpointSet, Key: u.Endpoints[i].Key}] = u.Endpoints[i]
	}
	for i := range u.Certificates {
		tables[route.Ref{Kind: route.KindCertificate, Key: u.Certificates[i].Key}] = u.Certificates[i]
	}
	for i := range u.Policies {
		tables[route.Ref{Kind: route.KindPolicy, Key: u.Policies[i].Key}] = u.Policies[i]
	}
}

func sortedNames[K interface {
	comparable
	String() string
}, V any](m map[K]V) []string {
	var out []string
	for k := range maps.Keys(m) {
		out = append(out, k.String())
	}
	slices.Sort(out)
	return out
}
