// SPDX-License-Identifier: Apache-2.0

// Package corefile turns a Corefile, CoreDNS's configuration, into the configuration of `weft dns`, and says of each
// line that does not come over what to do instead. It does no I/O. It imports dnsserver for the configuration,
// dnszone for names, and the standard library.
package corefile
