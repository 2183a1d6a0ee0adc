// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"

	"github.com/weft-net/weft/internal/model"
)

// clusterTrustBundleKind is in all versions that API servers of Kubernetes 1.27 and later may serve, if they are told to;
// what matters of them is in the same place. KEP-3257.
var clusterTrustBundleKind = objectKind{kind: "ClusterTrustBundle", resource: "clustertrustbundles", group: "certificates.k8s.io",
	versions: []string{"v1", "v1beta1", "v1alpha1"}}

// IsClusterTrustBundle tells whether an object is one, in whichever version.
func IsClusterTrustBundle(o runtime.Object) bool {
	gvk := o.GetObjectKind().GroupVersionKind()
	return gvk.Group == clusterTrustBundleKind.group && gvk.Kind == clusterTrustBundleKind.kind
}

// FromClusterTrustBundle translates a ClusterTrustBundle of whichever version, and whichever Go type.
func FromClusterTrustBundle(o runtime.Object) (*model.ClusterTrustBundle, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	pem, found, err := unstructured.NestedString(content, "spec", "trustBundle")
	if err == nil && !found {
		err = errors.New("it has no spec.trustBundle")
	}
	name, _, _ := unstructured.NestedString(content, "metadata", "name")
	return &model.ClusterTrustBundle{Name: name, PEM: pem}, err
}

// clusterTrustBundleFeed follows ClusterTrustBundles. Where the API server does not serve them there are none.
func clusterTrustBundleFeed(w *Watcher, c dynamic.Interface, silence time.Duration) runner {
	k := clusterTrustBundleKind
	return &feed[*unstructured.Unstructured, model.ClusterTrustBundle]{
		w: w, apiVersion: k.group + "/" + k.versions[0], kindName: k.kind, silence: silence, optional: true,
		example: &unstructured.Unstructured{}, // without a version: whichever comes
		lw:      k.lister(c),
		from: func(u *unstructured.Unstructured) (*model.ClusterTrustBundle, error) {
			return FromClusterTrustBundle(u)
		},
		put: func(d *model.Delta, n model.Name, v *model.ClusterTrustBundle) {
			note(d, &d.ClusterTrustBundles, n.Name, v)
		},
	}
}
