// SPDX-License-Identifier: Apache-2.0

// Package model holds the values that everything in weft speaks: small, immutable once built, free of
// Kubernetes types.
//
// The edge (package kube, or a reader of manifests) translates each API object into one of these values,
// once. Compile packages take them, and only them, and decide; apply packages carry out what was decided.
//
// A value received from anyone is read-only: slices and maps are shared, never written to after the value was
// built. Change means a new value.
//
// It imports only the standard library.
package model
