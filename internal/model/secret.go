// SPDX-License-Identifier: Apache-2.0

package model

import "fmt"

// Secret is core/v1 Secret. Only those parts of weft that serve certificates or check passwords follow Secrets.
type Secret struct {
	Meta
	Type string // as the API has it: "kubernetes.io/tls", "Opaque"
	Data map[string][]byte
}

// String leaves the data out, so that no log can tell it.
func (s Secret) String() string { return "secret " + s.Name.String() }

// Format makes every verb safe, %#v included.
func (s Secret) Format(w fmt.State, _ rune) { fmt.Fprint(w, s.String()) }

// ClusterTrustBundle is certificates.k8s.io ClusterTrustBundle.
type ClusterTrustBundle struct {
	Name string
	// PEM has the CA certificates, as whoever wrote the object wrote them: in no order that means anything.
	PEM string
}

// ConfigMap is core/v1 ConfigMap.
type ConfigMap struct {
	Meta
	Data map[string]string
}
