// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/policy"
)

// Difference is connections that a change opens or closes.
type Difference struct {
	From   []string `json:"from"` // workloads, or parts of the world outside, of all of which the same is true
	To     []string `json:"to"`
	Opened []string `json:"opened,omitempty"` // ports: "TCP 80-90", "TCP", "all", "all but UDP 53"
	Closed []string `json:"closed,omitempty"`
}

// String is one line for what is opened, and one for what is closed.
func (d Difference) String() string {
	var out []string
	for _, x := range []struct {
		sign  string
		ports []string
	}{{"+", d.Opened}, {"-", d.Closed}} {
		if len(x.ports) > 0 {
			out = append(out, fmt.Sprintf("%s %s → %s: %s", x.sign, some(d.From), some(d.To), strings.Join(x.ports, ", ")))
		}
	}
	return strings.Join(out, "\n")
}

// Changes is what becomes of connections.
type Changes struct {
	Differences []Difference `json:"differences"`
	Added       []string     `json:"added,omitempty"`   // workloads that only the world after the change has: nothing is said of them
	Removed     []string     `json:"removed,omitempty"` // those that only the world before it had
}

// counterpart is an end as it is before and after a change. Pods of one workload may be several ends on either side.
type counterpart struct {
	name          string
	before, after []*end
}

func reachOf(from, to []*end) reach {
	var out reach
	for i, a := range from {
		for j, b := range to {
			if r := a.reach(b); i == 0 && j == 0 {
				out = r
			} else {
				out = out.union(r)
			}
		}
	}
	return out
}

// changed is what a change does to connections from one end to another.
type changed struct{ opened, closed reach }

// String is equal for equal changes, and "" for none.
func (c *changed) String() string {
	if c == nil {
		return ""
	}
	return fmt.Sprint(c.opened, c.closed)
}

// change is nil if nothing is opened or closed. A family that only one of the worlds has is left out.
func (c *counterpart) change(to *counterpart) *changed {
	free := func(ends []*end, g func(*end) *policy.Guard) bool {
		return !slices.ContainsFunc(ends, func(e *end) bool { return g(e) != nil && !g(e).Open() })
	}
	out, in := func(e *end) *policy.Guard { return e.egress }, func(e *end) *policy.Guard { return e.ingress }
	if free(c.before, out) && free(c.after, out) && free(to.before, in) && free(to.after, in) {
		return nil
	}
	before, after := reachOf(c.before, to.before), reachOf(c.after, to.after)
	for f := range families {
		if before.has[f] != after.has[f] {
			before.ports[f], after.ports[f], before.has[f], after.has[f] = nil, nil, false, false
		}
	}
	d := &changed{after.minus(before), before.minus(after)}
	if d.opened.empty() && d.closed.empty() {
		return nil
	}
	return d
}

// Diff tells which connections from or to the workloads of some namespaces (all, if none are given) are opened or closed
// by a change, among all workloads that are there before and after it, and the world outside.
func Diff(before, after *World, namespaces ...string) *Changes {
	cuts := slices.Concat(before.blocks(nil), after.blocks(nil))
	slices.SortFunc(cuts, comparePrefixes)
	cuts = slices.Compact(cuts)
	out := &Changes{Differences: []Difference{}}
	meant := func(e *end) bool {
		return len(namespaces) == 0 || e.pod != nil && slices.Contains(namespaces, e.pod.Namespace)
	}
	pods := counterparts(out, before.ends(nil, cuts), after.ends(nil, cuts), meant)
	parts := outside(regions(cuts, before, after), before, after)
	parts = merge(before.inUse(parts), func(e *end, f int) string {
		one := &end{}
		one.addrs[f] = e.addrs[f]
		o := &counterpart{before: []*end{one}, after: []*end{one}}
		var b strings.Builder
		for _, p := range pods {
			fmt.Fprintln(&b, p.change(o), o.change(p))
		}
		return b.String()
	})
	nameRest(parts)
	all := pods
	for _, e := range parts {
		all = append(all, &counterpart{name: e.name, before: []*end{e}, after: []*end{e}})
	}
	for _, to := range all {
		for _, from := range all {
			if !meant(from.after[0]) && !meant(to.after[0]) {
				continue
			}
			if c := from.change(to); c != nil {
				out.Differences = append(out.Differences, Difference{
					From: []string{from.name}, To: []string{to.name}, Opened: changedTexts(c.opened), Closed: changedTexts(c.closed),
				})
			}
		}
	}
	out.Differences = joined(out.Differences, func(d *Difference) (join *[]string, same []string) { return &d.From, d.To })
	out.Differences = joined(out.Differences, func(d *Difference) (join *[]string, same []string) { return &d.To, d.From })
	return out
}

// joined puts differences together that are the same but for one side.
func joined(in []Difference, sides func(d *Difference) (join *[]string, same []string)) []Difference {
	var out []Difference
	byKey := map[string]int{}
	for _, d := range in {
		join, same := sides(&d)
		key := fmt.Sprintf("%q %q %q", same, d.Opened, d.Closed)
		if i, ok := byKey[key]; ok {
			into, _ := sides(&out[i])
			*into = append(*into, *join...)
			continue
		}
		byKey[key] = len(out)
		out = append(out, d)
	}
	return out
}

// nameRest names the root by what is not in it, where other parts have something else said of them.
func nameRest(parts []*end) {
	var others []string
	for _, e := range parts {
		if !e.root {
			others = append(others, e.names...)
		}
	}
	for _, e := range parts {
		if e.root && len(others) > 0 {
			e.name = Outside + " except " + some(others)
		}
	}
}

func changedTexts(r reach) []string {
	switch c := cellOf(r); {
	case c.All:
		return []string{"all"}
	case len(c.Not) < len(c.Ports):
		return []string{c.String()}
	default:
		return c.Ports
	}
}

// counterparts finds the workloads that are on both sides, and notes those that are not, if they are meant.
func counterparts(out *Changes, before, after []*end, meant func(*end) bool) []*counterpart {
	byName := func(in []*end) map[string][]*end {
		m := map[string][]*end{}
		for _, e := range in {
			for _, n := range e.names {
				m[n] = append(m[n], e)
			}
		}
		return m
	}
	old, now := byName(before), byName(after)
	var list []*counterpart
	for _, n := range slices.Sorted(maps.Keys(now)) {
		if old[n] == nil {
			if meant(now[n][0]) {
				out.Added = append(out.Added, n)
			}
			continue
		}
		list = append(list, paired(n, old[n], now[n])...)
	}
	for _, n := range slices.Sorted(maps.Keys(old)) {
		if now[n] == nil && meant(old[n][0]) {
			out.Removed = append(out.Removed, n)
		}
	}
	return list
}

// paired compares the pods of a workload that are alike with those that were alike in the same way, if there are the same
// kinds on both sides, and else all with all.
func paired(name string, before, after []*end) []*counterpart {
	byClass := map[string]*end{}
	for _, e := range before {
		byClass[e.class] = e
	}
	if len(before) < 2 || len(before) != len(after) || slices.ContainsFunc(after, func(e *end) bool { return byClass[e.class] == nil }) {
		return []*counterpart{{name, before, after}}
	}
	var out []*counterpart
	for _, e := range after {
		out = append(out, &counterpart{fmt.Sprintf("%s (as %s)", name, e.pod.Name.Name), []*end{byClass[e.class]}, []*end{e}})
	}
	return out
}
