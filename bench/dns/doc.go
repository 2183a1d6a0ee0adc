// SPDX-License-Identifier: Apache-2.0

// Command dns measures `weft dns` side by side with CoreDNS (its kubernetes plugin and the Corefile that kubeadm
// installs) and with Knot DNS on the same names: CPU time for each query from process accounting, throughput and
// latency with dnsperf, memory, and how soon a change is in the answers. Each server has one core for itself,
// dnsperf the other.
//
// weft and CoreDNS watch the same cluster: an API server of this program's own that lists and watches Services,
// EndpointSlices and Namespaces, with nothing behind it.
package main
