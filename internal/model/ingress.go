// SPDX-License-Identifier: Apache-2.0

package model

// Ingress is networking.k8s.io/v1 Ingress.
type Ingress struct {
	Meta           // Annotations: all of nginx.ingress.kubernetes.io, weft.dev and kubernetes.io/ingress.class
	Class   string // spec.ingressClassName; "" is unset
	Default *IngressBackend
	TLS     []IngressTLS
	Rules   []IngressRule
	// Status is status.loadBalancer.ingress.
	Status []IngressAddress
}

// IngressTLS is one entry of an Ingress's spec.tls.
type IngressTLS struct {
	Hosts  []string // as written; none: all hosts of the Ingress
	Secret string   // of the same namespace; "" is the controller's default certificate
}

// IngressRule is one entry of an Ingress's spec.rules.
type IngressRule struct {
	Host  string // lower case; "" is every host, "*.example.com" those of one more label
	Paths []IngressPath
}

// IngressPathType is networking.k8s.io/v1 PathType.
type IngressPathType string

// The ways in which an Ingress's path is compared.
const (
	IngressExact                  IngressPathType = "Exact"
	IngressPrefix                 IngressPathType = "Prefix"
	IngressImplementationSpecific IngressPathType = "ImplementationSpecific"
)

// IngressPath is one path of a rule.
type IngressPath struct {
	Path    string // "" is "/"
	Type    IngressPathType
	Backend IngressBackend
}

// IngressBackend is where an Ingress sends requests: a port of a Service of the same namespace, by its number or
// name, or another object.
type IngressBackend struct {
	Service  string
	Port     uint16 // 0: PortName
	PortName string
	Resource string // "Kind/name" of a resource backend; Service is then ""
}

// IngressAddress is one entry of an Ingress's status.loadBalancer.ingress.
type IngressAddress struct {
	IP       string // "" when only a hostname is given
	Hostname string
}

// IngressClass is networking.k8s.io/v1 IngressClass.
type IngressClass struct {
	Meta
	Controller string
	Default    bool // the ingressclass.kubernetes.io/is-default-class annotation
	Parameters *IngressParameters
}

// IngressParameters is spec.parameters of an IngressClass.
type IngressParameters struct {
	Group     string // "" is the core group
	Kind      string
	Name      string
	Namespace string // "" when scope is Cluster
}
