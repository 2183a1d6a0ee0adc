// SPDX-License-Identifier: Apache-2.0

// Command services measures how weft and kube-proxy program Services, and what connections through them cost, on the
// same generated objects, side by side in one run. It needs root, and for kube-proxy the nft and iptables programs.
//
// kube-proxy is its own code, from k8s.io/kubernetes, in this process: the nftables and the iptables proxier with
// their defaults, fed as its informers would. weft is the agent's services part, fed as its watcher would. Each
// measurement has a process and a network namespace of its own. Results go to bench/results as JSON and Markdown;
// what counts in them is ratios, for a slow machine is slow for all.
package main
