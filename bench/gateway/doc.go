// SPDX-License-Identifier: Apache-2.0

// Command gateway measures `weft gateway` side by side with nginx and HAProxy: CPU time of the proxy for each request,
// message or connection, from the scheduler's accounting; and how long small requests take at a fixed rate (latency.go).
// Each proxy has core 0 for itself while it is measured; clients and endpoints have core 1. Rounds take turns, so that what
// else the machine does hits all alike; medians and ratios go to bench/results/gateway.{json,md}. Everything listens on the
// loopback. It runs in the repository's tree and may import internal/route, for weft's tables, and the standard library.
//
// All three do the same: they keep connections to the endpoint, and set Host, X-Forwarded-For, -Proto, -Host, -Port and
// X-Request-Id. None writes an access log.
package main
