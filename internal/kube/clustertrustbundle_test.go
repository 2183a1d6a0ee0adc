// SPDX-License-Identifier: Apache-2.0

package kube

import "testing"

// A ClusterTrustBundle is read alike in every version.
func TestClusterTrustBundle(t *testing.T) {
	for _, version := range []string{"v1", "v1beta1", "v1alpha1"} {
		ms, err := ParseManifests("bundle.yaml", []byte("apiVersion: certificates.k8s.io/"+version+`
kind: ClusterTrustBundle
metadata: {name: "example.com:ca:a"}
spec: {trustBundle: roots}
`))
		if err != nil {
			t.Fatal(err)
		}
		d, err := FromManifests(ms, "default")
		if b := d.ClusterTrustBundles["example.com:ca:a"]; err != nil || b == nil || b.Name != "example.com:ca:a" || b.PEM != "roots" {
			t.Errorf("%s: %+v, %v", version, b, err)
		}
	}
}
