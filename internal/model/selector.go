// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Selector is meta/v1 LabelSelector: every requirement must hold. One with no requirements selects everything;
// where the API tells an absent selector from an empty one, the field is a *Selector.
type Selector []Requirement

// Requirement is one term of a Selector. matchLabels become In with one value.
type Requirement struct {
	Key    string
	Op     SelectorOp
	Values []string // sorted; In and NotIn only
}

// SelectorOp is meta/v1 LabelSelectorOperator.
type SelectorOp uint8

// The operators of a label selector. NotIn holds, as in the API, where the key is absent.
const (
	In SelectorOp = iota
	NotIn
	Exists
	DoesNotExist
)

// MatchLabels is the selector that wants each of these labels.
func MatchLabels(m map[string]string) Selector {
	s := make(Selector, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, Requirement{Key: k, Op: In, Values: []string{m[k]}})
	}
	return s
}

// Matches tells whether the labels satisfy every requirement.
func (s Selector) Matches(labels map[string]string) bool {
	for i := range s {
		if !s[i].Matches(labels) {
			return false
		}
	}
	return true
}

// Matches tells whether the labels satisfy this requirement.
func (r Requirement) Matches(labels map[string]string) bool {
	v, ok := labels[r.Key]
	switch r.Op {
	case In:
		return ok && slices.Contains(r.Values, v)
	case NotIn:
		return !ok || !slices.Contains(r.Values, v)
	case Exists:
		return ok
	case DoesNotExist:
		return !ok
	}
	return false
}

// String spells the selector as kubectl's --selector does; the empty selector is "<everything>".
func (s Selector) String() string {
	if len(s) == 0 {
		return "<everything>"
	}
	terms := make([]string, len(s))
	for i, r := range s {
		switch {
		case r.Op == In && len(r.Values) == 1:
			terms[i] = r.Key + "=" + r.Values[0]
		case r.Op == In:
			terms[i] = fmt.Sprintf("%s in (%s)", r.Key, strings.Join(r.Values, ","))
		case r.Op == NotIn:
			terms[i] = fmt.Sprintf("%s notin (%s)", r.Key, strings.Join(r.Values, ","))
		case r.Op == Exists:
			terms[i] = r.Key
		default:
			terms[i] = "!" + r.Key
		}
	}
	return strings.Join(terms, ",")
}
