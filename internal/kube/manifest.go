// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/model"
)

// Manifest is one object of a manifest file.
type Manifest struct {
	File   string
	Line   int            // where the object's document begins, from 1
	Object runtime.Object // typed where client-go knows the kind, else *unstructured.Unstructured
}

// ReadManifests reads the objects of files and folders (all *.yaml, *.yml and *.json below them); "-" is stdin.
// Lists are taken apart. An error names file and line.
func ReadManifests(paths ...string) ([]Manifest, error) { return readFiles(paths, decode) }

// ReadRawManifests is ReadManifests with every object as it is written: *unstructured.Unstructured, with fields that
// no API knows.
func ReadRawManifests(paths ...string) ([]Manifest, error) { return readFiles(paths, decodeRaw) }

// decoder reads one JSON object, taking lists apart.
type decoder func(raw []byte) ([]runtime.Object, error)

func readFiles(paths []string, decode decoder) ([]Manifest, error) {
	var out []Manifest
	for _, p := range paths {
		if p == "-" {
			data, err := io.ReadAll(os.Stdin)
			if err != nil {
				return nil, fmt.Errorf("standard input: %w", err)
			}
			ms, err := parse("<stdin>", data, decode)
			if err != nil {
				return nil, err
			}
			out = append(out, ms...)
			continue
		}
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			ext := filepath.Ext(path)
			if d.IsDir() || (path != p && !slices.Contains([]string{".yaml", ".yml", ".json"}, ext)) {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			ms, err := parse(path, data, decode)
			out = append(out, ms...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ParseManifests reads the objects of one file's content, YAML documents or JSON.
func ParseManifests(file string, data []byte) ([]Manifest, error) { return parse(file, data, decode) }

func parse(file string, data []byte, decode decoder) ([]Manifest, error) {
	var out []Manifest
	for _, doc := range documents(data) {
		raw, err := yaml.YAMLToJSON(doc.text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: not YAML: %w", file, doc.line, err)
		}
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			continue
		}
		objs, err := decode(raw)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, doc.line, err)
		}
		for _, o := range objs {
			out = append(out, Manifest{File: file, Line: doc.line, Object: o})
		}
	}
	return out, nil
}

type document struct {
	text []byte
	line int
}

// documents splits a YAML stream at its "---" lines. A document's line is that of its first text, past blank lines
// and comments.
func documents(data []byte) []document {
	var out []document
	var cur document
	flush := func() {
		if len(cur.text) > 0 && cur.line > 0 {
			out = append(out, cur)
		}
		cur = document{}
	}
	line := 0
	for text := range bytes.Lines(data) {
		line++
		if t := bytes.TrimRight(text, " \t\r\n"); bytes.Equal(t, []byte("---")) || bytes.HasPrefix(t, []byte("--- ")) {
			flush()
			continue
		}
		if t := bytes.TrimSpace(text); cur.line == 0 && len(t) > 0 && t[0] != '#' {
			cur.line = line
		}
		cur.text = append(cur.text, text...)
	}
	flush()
	return out
}

// Typed gives an object client-go's type, where client-go knows its kind.
func Typed(u *unstructured.Unstructured) (runtime.Object, error) {
	raw, err := u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	objs, err := decode(raw)
	if err != nil {
		return nil, err
	}
	return objs[0], nil
}

// decodeRaw is a decoder that knows no kind.
func decodeRaw(raw []byte) ([]runtime.Object, error) {
	obj, _, err := unstructured.UnstructuredJSONScheme.Decode(raw, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("not a Kubernetes object: %w", err)
	}
	list, ok := obj.(*unstructured.UnstructuredList)
	if !ok {
		return []runtime.Object{obj}, nil
	}
	var out []runtime.Object
	for i := range list.Items {
		out = append(out, &list.Items[i])
	}
	return out, nil
}

// decode is a decoder that gives objects client-go's types.
func decode(raw []byte) ([]runtime.Object, error) {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		obj, _, err = unstructured.UnstructuredJSONScheme.Decode(raw, nil, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("not a Kubernetes object: %w", err)
	}
	if !meta.IsListType(obj) {
		return []runtime.Object{obj}, nil
	}
	items, err := meta.ExtractList(obj)
	if err != nil {
		return nil, err
	}
	var out []runtime.Object
	for _, it := range items {
		if u, ok := it.(*runtime.Unknown); ok {
			more, err := decode(u.Raw)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
			continue
		}
		out = append(out, it)
	}
	return out, nil
}

// ManifestError is why an object of a manifest can't be used, or not as it is written.
type ManifestError struct {
	Manifest
	Kind string
	Name model.Name
	Err  error
}

// Error is "FILE:LINE: KIND NAME: why", or without the place of what was read from a cluster.
func (e *ManifestError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("%s %s: %v", e.Kind, e.Name, e.Err)
	}
	return fmt.Sprintf("%s:%d: %s %s: %v", e.File, e.Line, e.Kind, e.Name, e.Err)
}

// Unwrap implements errors' interface.
func (e *ManifestError) Unwrap() error { return e.Err }

// Placed puts objects that name no namespace, and are of a kind that is in one, into the given one, as kubectl does.
// The manifests given stay as they are.
func Placed(ms []Manifest, namespace string) []Manifest {
	out := slices.Clone(ms)
	for i := range out {
		acc, err := meta.Accessor(out[i].Object)
		if err != nil || acc.GetNamespace() != "" || !namespaced(out[i].Object) {
			continue
		}
		obj := out[i].Object.DeepCopyObject()
		if acc, err = meta.Accessor(obj); err == nil {
			acc.SetNamespace(namespace)
			out[i].Object = obj
		}
	}
	return out
}

// FromManifests translates the objects of the kinds that model knows, as the API server would have stored them:
// an object without a namespace goes to the given one. Other kinds are passed over. The error joins ManifestErrors
// of what could not be used; the Delta holds the rest.
func FromManifests(ms []Manifest, namespace string) (*model.Delta, error) {
	d := &model.Delta{Complete: true}
	var bad []error
	for _, m := range Placed(ms, namespace) {
		acc, err := meta.Accessor(m.Object)
		if err != nil {
			continue
		}
		obj := m.Object
		name := model.Name{Namespace: acc.GetNamespace(), Name: acc.GetName()}
		switch o := obj.(type) {
		case *corev1.Service:
			err = into(&d.Services, name, o, FromService)
		case *discoveryv1.EndpointSlice:
			err = into(&d.EndpointSlices, name, o, FromEndpointSlice)
		case *corev1.Pod:
			err = into(&d.Pods, name, o, FromPod)
		case *corev1.Node:
			err = into(&d.Nodes, name.Name, o, FromNode)
		case *corev1.Namespace:
			err = into(&d.Namespaces, name.Name, o, FromNamespace)
		case *networkingv1.ServiceCIDR:
			err = into(&d.ServiceCIDRs, name.Name, o, FromServiceCIDR)
		case *networkingv1.NetworkPolicy:
			err = into(&d.NetworkPolicies, name, o, FromNetworkPolicy)
		case *networkingv1.Ingress:
			err = into(&d.Ingresses, name, o, FromIngress)
		case *networkingv1.IngressClass:
			err = into(&d.IngressClasses, name.Name, o, FromIngressClass)
		case *corev1.Secret:
			err = into(&d.Secrets, name, o, FromSecret)
		case *corev1.ConfigMap:
			err = into(&d.ConfigMaps, name, o, FromConfigMap)
		case *unstructured.Unstructured:
			switch o.GroupVersionKind() {
			case clusterNetworkPolicyKind:
				err = into(&d.ClusterNetworkPolicies, name.Name, o, clusterNetworkPolicyFrom)
			case addressPoolKind:
				err = into(&d.AddressPools, name.Name, o, addressPoolFrom)
			}
		default:
			if IsClusterTrustBundle(o) {
				err = into(&d.ClusterTrustBundles, name.Name, o, FromClusterTrustBundle)
			}
		}
		if err != nil {
			bad = append(bad, &ManifestError{m, obj.GetObjectKind().GroupVersionKind().Kind, name, err})
		}
	}
	return d, errors.Join(bad...)
}

// clusterScoped are the kinds that are in no namespace, by API group, of those that have to do with the network and
// with what people keep beside it.
var clusterScoped = map[string][]string{
	"":                             {"Namespace", "Node", "PersistentVolume"},
	"networking.k8s.io":            {"IngressClass", "ServiceCIDR", "IPAddress"},
	"policy.networking.k8s.io":     {"ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"},
	"gateway.networking.k8s.io":    {"GatewayClass"},
	"weft.dev":                     {"AddressPool"},
	"rbac.authorization.k8s.io":    {"ClusterRole", "ClusterRoleBinding"},
	"storage.k8s.io":               {"StorageClass", "CSIDriver", "CSINode", "VolumeAttachment"},
	"scheduling.k8s.io":            {"PriorityClass"},
	"node.k8s.io":                  {"RuntimeClass"},
	"apiextensions.k8s.io":         {"CustomResourceDefinition"},
	"apiregistration.k8s.io":       {"APIService"},
	"admissionregistration.k8s.io": {"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"},
	"certificates.k8s.io":          {"CertificateSigningRequest", "ClusterTrustBundle"},
	"cilium.io":                    {"CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup"},
	"crd.projectcalico.org":        {"GlobalNetworkPolicy", "GlobalNetworkSet", "IPPool", "Tier"},
	"projectcalico.org":            {"GlobalNetworkPolicy", "GlobalNetworkSet", "StagedGlobalNetworkPolicy", "IPPool", "Tier"},
	"crd.antrea.io":                {"ClusterNetworkPolicy", "ClusterGroup", "Tier"},
}

// namespaced tells whether an object is of a kind that is in a namespace, as all are that are not known to be in none.
func namespaced(o runtime.Object) bool {
	gvk := o.GetObjectKind().GroupVersionKind()
	if gvk.Kind == "" { // made, not read
		if kinds, _, err := scheme.Scheme.ObjectKinds(o); err == nil && len(kinds) > 0 {
			gvk = kinds[0]
		}
	}
	return !slices.Contains(clusterScoped[gvk.Group], gvk.Kind)
}

func into[K comparable, O, T any](m *map[K]*T, k K, o O, from func(O) (*T, error)) error {
	v, err := from(o)
	if v != nil {
		set(m, k, v)
	}
	return err
}
