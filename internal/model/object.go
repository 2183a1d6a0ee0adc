// SPDX-License-Identifier: Apache-2.0

package model

// ObjectKey names an API object whatever its kind.
type ObjectKey struct {
	Kind, Namespace, Name string // Namespace is "" for kinds of the cluster
}

// Object is an API object in its API's own Go type, for kinds whose compile package speaks that API, as those of
// Gateway API and Ingress do: "HTTPRoute" is a *gatewayv1.HTTPRoute. It has no managedFields, is shared, and never
// changes.
type Object struct {
	Value any
}
