// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"slices"
	"strings"
)

// intersectHostnames gives the hosts that a route's hostnames have in common with a listener's, in the more specific form
// of the two, and the route's own hostnames that do; "" is any. No hostnames of a route are any. The results are empty
// when they have nothing in common.
func intersectHostnames(listener string, routes []string) (common, own []string) {
	if len(routes) == 0 {
		return []string{listener}, []string{""}
	}
	for _, h := range routes {
		m, ok := intersectHostname(listener, h)
		if !ok {
			continue
		}
		if !slices.Contains(own, h) {
			own = append(own, h)
		}
		if !slices.Contains(common, m) {
			common = append(common, m)
		}
	}
	return common, own
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
