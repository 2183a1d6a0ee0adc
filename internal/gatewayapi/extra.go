// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// extra are fields of an object that the API's Go types do not have, by their path within it: those of later releases.
// What is understood of them is taken out; what is left is refused where it stands, since it may restrict what the rest
// of the object allows.
type extra map[string]any

// laterFields are those of release 1.7 that are read, by kind; their places in lists are left out.
var laterFields = map[string][]string{
	"Gateway":     {"spec.listeners[].filters", "spec.addresses[].routability"},
	"ListenerSet": {"spec.listeners[].filters"},
	"HTTPRoute": {"spec.rules[].sessionPersistence.cookie", "spec.rules[].sessionPersistence.header",
		"spec.rules[].filters[].externalAuth.forwardBody.maxSize", "spec.rules[].backendRefs[].filters[].externalAuth.forwardBody.maxSize"},
	"GRPCRoute": {"spec.rules[].sessionPersistence.cookie", "spec.rules[].sessionPersistence.header"},
}

var places = regexp.MustCompile(`\[[0-9]+\]`)

// ReadsLater tells whether a field that the API's Go types do not have, or can't hold, is one of a later release that is read
// all the same. What it holds may still be refused.
func ReadsLater(kind, path string) bool {
	return slices.Contains(laterFields[kind], places.ReplaceAllString(path, "[]"))
}

// under gives the fields within a part of the object, such as "spec.rules[0]", by their path within that part; nil is
// none. They are a copy: what is taken out of it stays where it was.
func (x extra) under(part string) extra {
	var out extra
	for path, v := range x {
		rest, ok := strings.CutPrefix(path, part)
		if !ok || rest != "" && rest[0] != '.' && rest[0] != '[' {
			continue
		}
		if out == nil {
			out = extra{}
		}
		out[strings.TrimPrefix(rest, ".")] = v
	}
	return out
}

// without gives the paths of the fields outside of parts whose paths begin with one of the given texts, in order and as
// messages have them.
func (x extra) without(parts ...string) (out []string) {
	for _, path := range slices.Sorted(maps.Keys(x)) {
		if !slices.ContainsFunc(parts, func(p string) bool { return strings.HasPrefix(path, p) }) {
			out = append(out, strings.TrimPrefix(path, "spec."))
		}
	}
	return out
}

// within gives the paths of the fields whose paths begin with a text, in order and as messages have them.
func (x extra) within(part string) (out []string) {
	for _, path := range slices.Sorted(maps.Keys(x)) {
		if strings.HasPrefix(path, part) {
			out = append(out, strings.TrimPrefix(path, "spec."))
		}
	}
	return out
}

// take reads a field into a value of weft's own, all of it, and takes it out. found tells whether it is there and was
// understood.
func (x extra) take(path string, into any) (found bool) {
	v, there := x[path]
	if !there {
		return false
	}
	raw, err := json.Marshal(v)
	if err != nil || strictly(raw, into) != nil {
		return false
	}
	delete(x, path)
	return true
}

// strictly reads JSON, of which nothing may be unknown.
func strictly(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// notKnown says what is wrong with fields that are left; "" when there are none.
func notKnown(paths []string) string {
	switch len(paths) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%s is a field, or has a value, that weft does not know: remove it", paths[0])
	}
	return strings.Join(paths, ", ") + " are fields, or have values, that weft does not know: remove them"
}
