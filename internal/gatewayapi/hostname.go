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

// hostSet is a set of hostnames that answers in time proportional to a name's labels whether it has a host in common
// with another name.
type hostSet struct {
	any   bool
	exact set[string]
	wild  set[string] // without "*."
	under set[string] // every domain that an exact name or a wildcard of the set lies below
}

func newHostSet() *hostSet {
	return &hostSet{exact: set[string]{}, wild: set[string]{}, under: set[string]{}}
}

func (h *hostSet) add(name string) {
	if name == "" {
		h.any = true
		return
	}
	domain, wild := strings.CutPrefix(name, "*.")
	if wild {
		h.wild.add(domain)
		h.under.add(domain)
	} else {
		h.exact.add(name)
	}
	for rest := range parents(domain) {
		h.under.add(rest)
	}
}

func (h *hostSet) empty() bool { return !h.any && len(h.exact) == 0 && len(h.wild) == 0 }

// meets tells whether some host is both in the set and one that the name stands for.
func (h *hostSet) meets(name string) bool {
	if h.any || name == "" {
		return !h.empty()
	}
	domain, wild := strings.CutPrefix(name, "*.")
	if wild && (h.under.has(domain) || h.wild.has(domain)) || !wild && h.exact.has(name) {
		return true
	}
	for rest := range parents(domain) {
		if h.wild.has(rest) {
			return true
		}
	}
	return false
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
