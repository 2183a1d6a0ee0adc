// SPDX-License-Identifier: Apache-2.0

package route

import "strings"

// Framing tells of header fields that no edit may make: they say where messages end, or concern one connection (RFC 9110
// section 7.6.1), which is the gateway's to say. Host is one that only requests may be given.
func Framing(name string) bool {
	switch strings.ToLower(name) {
	case "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "proxy-connection", "expect", "host":
		return true
	}
	return false
}
