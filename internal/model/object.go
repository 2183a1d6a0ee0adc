// SPDX-License-Identifier: Apache-2.0

package model

// ObjectKey names an API object whatever its kind.
type ObjectKey struct {
	Kind, Namespace, Name string // Namespace is "" for kinds of the cluster
}

// Object is an API object in its API's own Go type, for kinds whose compile package speaks that API, as those of
// Gateway API and Ingress do: "HTTPRoute" is a *gatewayv1.HTTPRoute. It has no managedFields, but of a ListenerSet one
// that says whether weft wrote its status. It is shared, and never changes.
type Object struct {
	Value any
	// Unknown are the fields of its spec that the Go type does not have or can't hold, such as those of a later release
	// of the API, by their path ("spec.listeners[0].filters"), as JSON has them. They may restrict what the rest allows:
	// who compiles the object must understand or refuse them, never pass over them.
	Unknown map[string]any
}
