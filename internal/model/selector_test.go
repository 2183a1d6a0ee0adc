// SPDX-License-Identifier: Apache-2.0

package model

import "testing"

func TestSelector(t *testing.T) {
	blue := map[string]string{"color": "blue", "size": "9"}
	for _, c := range []struct {
		name   string
		sel    Selector
		labels map[string]string
		want   bool
	}{
		{"<everything>", nil, blue, true},
		{"<everything>", Selector{}, nil, true},
		{"color=blue", MatchLabels(map[string]string{"color": "blue"}), blue, true},
		{"color=blue,size=9", MatchLabels(map[string]string{"size": "9", "color": "blue"}), blue, true},
		{"color=red", MatchLabels(map[string]string{"color": "red"}), blue, false},
		{"color in (blue,red)", Selector{{"color", In, []string{"blue", "red"}}}, blue, true},
		{"color in (blue,red)", Selector{{"color", In, []string{"blue", "red"}}}, nil, false},
		{"color notin (red)", Selector{{"color", NotIn, []string{"red"}}}, blue, true},
		{"color notin (red)", Selector{{"color", NotIn, []string{"red"}}}, nil, true},
		{"color notin (blue)", Selector{{"color", NotIn, []string{"blue"}}}, blue, false},
		{"size", Selector{{"size", Exists, nil}}, blue, true},
		{"size", Selector{{"size", Exists, nil}}, nil, false},
		{"!size", Selector{{"size", DoesNotExist, nil}}, nil, true},
		{"!size", Selector{{"size", DoesNotExist, nil}}, blue, false},
	} {
		if got := c.sel.Matches(c.labels); got != c.want {
			t.Errorf("%s on %v: %v, want %v", c.name, c.labels, got, c.want)
		}
		if got := c.sel.String(); got != c.name {
			t.Errorf("spelt %q, want %q", got, c.name)
		}
	}
}
