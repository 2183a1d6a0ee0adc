// SPDX-License-Identifier: Apache-2.0

// Package convert rewrites manifests as what today's API servers accept: older versions and informal shapes of Gateway
// API and Ingress objects (Upgrade), and Ingresses as Gateway API objects (FromIngresses), whose tables it compares with
// the Ingresses' own (Verify). Objects in, objects and a report out. It imports ingress, gatewayapi, trafficpolicy,
// route, model, the types of the APIs and the standard library.
package convert

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Object is one object of a manifest.
type Object struct {
	// Source is where it was read, "file:line", or "" for an object that the conversion made.
	Source string
	*unstructured.Unstructured
}

// Note is one line of a conversion's report.
type Note struct {
	Source string `json:"source,omitempty"` // of the object; "file:line"
	Object string `json:"object"`           // "HTTPRoute shop/cart"
	Field  string `json:"field,omitempty"`  // "spec.rules[0].matches[1].method"
	Text   string `json:"text"`             // what became of it
	// Decide says that a person must decide: the outcome may not be what was meant.
	Decide bool `json:"decide,omitempty"`
}

// String writes the note as one line that editors can jump by.
func (n Note) String() string {
	var b strings.Builder
	if n.Source != "" {
		b.WriteString(n.Source + ": ")
	}
	b.WriteString(n.Object)
	if n.Field != "" {
		b.WriteString(": " + n.Field)
	}
	if n.Decide {
		b.WriteString(": DECIDE")
	}
	return b.String() + ": " + n.Text
}

// Of tells whether the note is on an object.
func (n Note) Of(o Object) bool { return n.Object == o.name() }

// name is the object's kind, namespace and name for people.
func (o Object) name() string {
	if ns := o.GetNamespace(); ns != "" {
		return fmt.Sprintf("%s %s/%s", o.GetKind(), ns, o.GetName())
	}
	return o.GetKind() + " " + o.GetName()
}

// tree is a part of an object as JSON has it.
type tree = map[string]any

// sub is the object at a field, or nil.
func sub(t tree, path ...string) tree {
	for _, field := range path {
		t, _ = t[field].(tree)
	}
	return t
}

// made is the object at a field, made where it is missing.
func made(t tree, path ...string) tree {
	for _, field := range path {
		next, ok := t[field].(tree)
		if !ok {
			next = tree{}
			t[field] = next
		}
		t = next
	}
	return t
}

// items are the objects of a list; elements that are none are left out, with their index kept.
func items(t tree, field string) map[int]tree {
	list, _ := t[field].([]any)
	out := make(map[int]tree, len(list))
	for i, e := range list {
		if m, ok := e.(tree); ok {
			out[i] = m
		}
	}
	return out
}

func text(t tree, field string) string {
	s, _ := t[field].(string)
	return s
}

func texts(t tree, field string) []string {
	list, _ := t[field].([]any)
	var out []string
	for _, e := range list {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
