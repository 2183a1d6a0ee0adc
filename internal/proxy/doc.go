// SPDX-License-Identifier: Apache-2.0

// Package proxy is a gateway's data plane: HTTP/1.1, HTTP/2, gRPC, TLS, TCP and UDP on the wire, over the tables of
// package route. It may import route, the standard library, golang.org/x/net/http2 and the Prometheus client, and no
// other package that acts.
//
// One goroutine carries an HTTP/1.1 request from its client to its endpoint and back (h1server.go, forward.go,
// h1client.go); requests of HTTP/2 come in through the same exchange (h2server.go). Tables are swapped atomically, for
// each host (tables.go): a change touches no connection. Parsers are strict (RFC 9112): what two servers could read
// in two ways is refused.
package proxy
