// SPDX-License-Identifier: Apache-2.0

// Package route decides which requests and connections that reach a gateway go to which backends. Its tables
// (table.go) are plain values that travel from the controller to the gateways; the index over them (table_index.go,
// table_match.go) answers which rule wins for a request, and why the others lose.
//
// It imports package model and the standard library only, does no I/O, has no clock and starts no goroutine.
package route
