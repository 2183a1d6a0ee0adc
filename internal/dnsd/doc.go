// SPDX-License-Identifier: Apache-2.0

// Package dnsd is the process behind `weft dns`: it assembles the pipeline from the API server to DNS on the wire,
// with its configuration file and its status port. It decides nothing about names itself.
//
// It imports kube, health, model, dnszone, hostnames and dnsserver.
package dnsd
