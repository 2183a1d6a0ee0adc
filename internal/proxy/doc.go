// SPDX-License-Identifier: Apache-2.0

// Package proxy is a gateway's data plane: HTTP/1.1, HTTP/2, gRPC, TLS, TCP and UDP on the wire, over the tables of
// package route. It may import route, the standard library, golang.org/x/net (http2, dnsmessage), protobuf's wire format,
// the Prometheus client and go-htpasswd, and no other package that acts.
//
// One goroutine carries a request from its client to its endpoint and back (exchange.go, send.go), over HTTP/1.1
// (h1server.go, h1client.go) or a stream of HTTP/2 (h2server.go, h2client.go) on either side; trailers (but for those of
// requests to HTTP/2), informational answers and flow control go through. A connection of HTTP/2 (h2mux.go, h2control.go,
// h2out.go, h2stream.go) has one more goroutine, which reads its frames where they lie; exchanges write theirs into a
// common output, which the last of them puts on the wire. What peers may ask for nothing is counted (h2limits.go).
//
// A body that does not come at once is sent by a goroutine of its own while the answer is awaited; either side may be
// silent while the other is not (silence.go), and mirrors get what is read of it (mirror.go).
//
// What policies come to for a rule at a listener is merged once and remembered (policy.go): a plan, of which guards are
// passed before a backend is asked (policy_admit.go, limit.go, auth_basic.go, auth_external.go, auth_grpc.go, firewall.go),
// and a shape is given to answers (policy_response.go, errorpages.go). A rule without policies pays for none of it.
//
// Plain TCP is carried by relays (relay.go, relaypair.go, rawsocket.go), thousands of connections in one goroutine over
// raw sockets; tunnels through TLS, upgrades and passthrough by two goroutines each (tunnel.go; h2tunnel.go where a side
// is a stream), which hold no buffer while they wait; datagrams by one loop a port and one goroutine a client (udp.go), to
// where an endpoint's name leads if it has one (udpnames.go).
//
// Sockets are read and written by calls that the scheduler is not told of (socket.go, rawsocket.go): with them a core has one
// thread, as in proxies that are loops around epoll.
//
// Tables are swapped atomically, for each host (tables.go): a change touches no connection. Parsers are strict (RFC
// 9112, RFC 9113): what two servers could read in two ways is refused.
package proxy
