// SPDX-License-Identifier: Apache-2.0

// Package configsync carries tables from the controller to the pods of each gateway: over mutual TLS, incrementally,
// with every revision confirmed once it is served. A pod gets what its client certificate says it is, and nothing
// else; it needs no access to the Kubernetes API, serves on when the controller is away, and starts anew from what it
// kept in memory-backed storage.
//
// The leading controller alone listens. Pods look up all controllers by one name and try each until one answers, so
// that nobody has to be told who leads.
//
// It imports route and the standard library.
package configsync
