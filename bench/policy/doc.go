// SPDX-License-Identifier: Apache-2.0

// Package policy measures what policies cost: new connections and bulk traffic through a node whose kernel holds 1 to
// 10,000 policies and 10,000 pods, in alternation with none in the same run, and how long a change takes to be in the
// kernel. It measures kube-router with the same objects on the same links; the program in kuberouter runs that. It is a
// test because it needs the tests' namespaces; `make bench-policy` runs it. Results go to bench/results as JSON and
// Markdown; what counts in them is ratios, for a slow machine is slow for all.
package policy
