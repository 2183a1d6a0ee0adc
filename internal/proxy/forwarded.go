// SPDX-License-Identifier: Apache-2.0

package proxy

import "strings"

// Forwarded (RFC 7239) says in one field what X-Forwarded-For, -Host and -Proto say in three.

// forwardedField makes the Forwarded field for backends: what a trusted proxy wrote, and this gateway's element.
func (x *exchange) forwardedField(had []byte) field {
	var b []byte
	if had != nil {
		b = append(append(b, had...), ", "...)
	}
	b = append(b, "for="...)
	if a := x.peer.remote.Addr(); a.Is6() {
		b = append(append(append(b, `"[`...), x.peer.addr...), `]"`...)
	} else {
		b = append(b, x.peer.addr...)
	}
	if x.authority != "" {
		b = appendParameter(append(b, ";host="...), x.authority)
	}
	b = append(append(b, ";proto="...), x.peer.scheme...)
	return field{raw("Forwarded"), b, fForwarded}
}

// appendParameter writes a token as it is, and quotes everything else.
func appendParameter(b []byte, v string) []byte {
	for i := range len(v) {
		if !isToken[v[i]] {
			b = append(b, '"')
			for _, c := range []byte(v) {
				if c == '"' || c == '\\' {
					b = append(b, '\\')
				}
				b = append(b, c)
			}
			return append(b, '"')
		}
	}
	return append(b, v...)
}

// forwardedFor gives the clients that a Forwarded field names, as X-Forwarded-For would: "unknown" stands for those
// that it does not tell.
func forwardedFor(value string) string {
	var out []string
	for value != "" {
		var element string
		element, value = cutUnquoted(value, ',')
		client := "unknown"
		for element != "" {
			var pair string
			pair, element = cutUnquoted(element, ';')
			if k, v, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && strings.EqualFold(k, "for") {
				client = strings.Trim(strings.TrimSpace(v), `"`)
			}
		}
		if a, ok := parseAddr(client); ok {
			client = a.String()
		} else {
			client = "unknown"
		}
		out = append(out, client)
	}
	return strings.Join(out, ", ")
}

// cutUnquoted cuts at the first separator that is not within quotes.
func cutUnquoted(s string, sep byte) (before, after string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == sep && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}
