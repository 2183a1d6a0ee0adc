// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"
	"strings"
)

// intersectHostnames gives those of a route's hostnames that lie within a listener's, in the more specific form of the
// two; "" is any. No hostnames of a route are any. The result is empty when they have nothing in common.
func intersectHostnames(listener string, routes []string) (out []string) {
	if len(routes) == 0 {
		return []string{listener}
	}
	for _, h := range routes {
		if m, ok := intersectHostname(listener, h); ok && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

func intersectHostname(a, b string) (string, bool) {
	switch {
	case covers(a, b):
		return b, true
	case covers(b, a):
		return a, true
	}
	return "", false
}

// covers tells whether every host that narrow stands for is one that wide stands for.
func covers(wide, narrow string) bool {
	if wide == "" || wide == narrow {
		return true
	}
	suffix, wild := strings.CutPrefix(wide, "*")
	// "*.example.com" has "a.b.example.com" and "*.b.example.com", not "example.com".
	return wild && narrow != "" && strings.HasSuffix(narrow, suffix) && len(narrow) > len(suffix)
}

// parents yields the domains above one: of "a.b.c" they are "b.c" and "c".
func parents(domain string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for {
			i := strings.IndexByte(domain, '.')
			if i < 0 {
				return
			}
			domain = domain[i+1:]
			if !yield(domain) {
				return
			}
		}
	}
}
