// SPDX-License-Identifier: Apache-2.0

// Package kube is the edge to the Kubernetes API: it watches objects and turns each into a value of package model,
// once (FromService and its siblings, which readers of manifests use too), and writes Events back.
//
// Nothing of an API object is kept behind this package. It imports client-go, the API types and model; no compile
// or apply package.
package kube
