// SPDX-License-Identifier: Apache-2.0

// Package lint finds mistakes and bad habits in Services, Ingresses, Gateway API objects and policies, in files or in a
// cluster. Whatever depends on what policies allow or Services reach it asks the packages that decide it; it says what
// is wrong, where, why that matters, and the cure. It imports addresses, convert, dnspath, explain, fronts,
// ingress, offline, policy, route, model, kube and the Kubernetes API types.
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
)

// Severity is how bad a finding is.
type Severity uint8

// The severities.
const (
	Info    Severity = iota // a habit worth a thought
	Warning                 // probably not what is meant
	Error                   // does not work
)

// String is the severity's word.
func (s Severity) String() string { return [...]string{"info", "warning", "error"}[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseSeverity reads a severity's word.
func ParseSeverity(s string) (Severity, error) {
	for _, v := range []Severity{Info, Warning, Error} {
		if v.String() == s {
			return v, nil
		}
	}
	return 0, fmt.Errorf("unknown severity %q: want info, warning or error", s)
}

// Rule is one thing that is looked for.
type Rule struct {
	ID       string
	Severity Severity
	Summary  string
	Why      string // what happens if it stays
}

// Finding is one place where a rule is broken.
type Finding struct {
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"`
	Object   string   `json:"object"` // "Service shop/web"
	Message  string   `json:"message"`
	Why      string   `json:"why"`
	Cure     string   `json:"cure"`
}

// Input is what to look at.
type Input struct {
	Cluster *offline.Cluster

	// Whole says that what is not in the input does not exist: it is a cluster. In files an absent object may well be
	// elsewhere, and is no error.
	Whole bool

	// Unusable is what package offline, or fronts, could not use of the manifests: ManifestErrors, joined. May be nil.
	Unusable error

	Now time.Time // for certificates

	// Text returns a file's content, for ignore comments; nil if there are no files.
	Text func(file string) []byte
}

// IgnoreAnnotation lists rules, separated by commas, that an object is excused from. In a file, a comment
// "# weft-lint: ignore RULE[,RULE...]" in the object's document does the same.
const IgnoreAnnotation = "weft.dev/lint-ignore"

// checker is a run under way.
type checker struct {
	Input
	d        *model.Delta
	world    *explain.World
	objects  map[string][]object // by kind
	findings []Finding
}

// object is one object with its place.
type object struct {
	kube.Manifest
	kind string
	name model.Name
}

func (o *object) String() string { return o.kind + " " + o.name.String() }

// Run looks at everything and returns what it found, by place.
func Run(in Input) ([]Finding, error) {
	w, err := explain.NewWorld(in.Cluster.Delta, explain.Options{})
	if err != nil {
		return nil, err
	}
	c := &checker{Input: in, d: in.Cluster.Delta, world: w, objects: map[string][]object{}}
	for _, m := range in.Cluster.Manifests {
		acc, err := meta.Accessor(m.Object)
		if err != nil {
			continue
		}
		o := object{m, kindOf(m.Object), model.Name{Namespace: acc.GetNamespace(), Name: acc.GetName()}}
		c.objects[o.kind] = append(c.objects[o.kind], o)
	}
	for _, check := range []func(*checker){
		(*checker).services, (*checker).unknownAnnotations, (*checker).statefulSets, (*checker).ingresses, (*checker).gateways, (*checker).routes,
		(*checker).policies, (*checker).namespaces, (*checker).foreignPolicies, (*checker).outdated,
		(*checker).clusterPolicies, (*checker).compiled, // compiled comes last: it adds to what was found
	} {
		check(c)
	}
	c.unusable(in.Unusable)
	ignored := c.ignores()
	c.findings = slices.DeleteFunc(c.findings, func(f Finding) bool { return ignored(&f) })
	slices.SortStableFunc(c.findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), -cmp.Compare(a.Severity, b.Severity),
			strings.Compare(a.Object, b.Object), strings.Compare(a.Rule, b.Rule), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(c.findings), nil
}

// kindOf is an object's kind: typed objects that were listed, not read, carry none.
func kindOf(o runtime.Object) string {
	if k := o.GetObjectKind().GroupVersionKind().Kind; k != "" {
		return k
	}
	t := fmt.Sprintf("%T", o)
	return t[strings.LastIndexByte(t, '.')+1:]
}

// report adds a finding about an object.
func (c *checker) report(rule string, o *object, cure, format string, args ...any) {
	r, ok := rules[rule]
	if !ok {
		panic("lint: no rule " + rule)
	}
	c.findings = append(c.findings, Finding{
		Rule: rule, Severity: r.Severity, File: o.File, Line: o.Line, Object: o.String(),
		Message: fmt.Sprintf(format, args...), Why: r.Why, Cure: cure,
	})
}

// unusable reports objects that are not what their manifests seem to say. What is no ManifestError is no object's: it is
// for who reads the manifests to tell.
func (c *checker) unusable(err error) {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range list.Unwrap() {
			c.unusable(e)
		}
		return
	}
	bad, ok := err.(*kube.ManifestError)
	if !ok {
		return
	}
	o := &object{bad.Manifest, bad.Kind, bad.Name}
	if slices.ContainsFunc(c.findings, func(f Finding) bool { return f.Rule == "outdated-shape" && f.Object == o.String() }) {
		return // that says the same, and the cure
	}
	if list, ok := bad.Err.(interface{ Unwrap() []error }); ok {
		for _, e := range list.Unwrap() {
			c.report("manifest-unusable", o, "correct the field that the message names", "%v", e)
		}
		return
	}
	c.report("manifest-unusable", o, "correct the field that the message names", "%v", bad.Err)
}

// find returns the object of a kind and name.
func (c *checker) find(kind string, n model.Name) *object {
	for i := range c.objects[kind] {
		if o := &c.objects[kind][i]; o.name == n {
			return o
		}
	}
	return nil
}

// ignores tells which findings somebody has excused.
func (c *checker) ignores() func(*Finding) bool {
	byObject := map[string][]string{}
	for _, list := range c.objects {
		for i := range list {
			o := &list[i]
			if acc, err := meta.Accessor(o.Object); err == nil {
				if v := acc.GetAnnotations()[IgnoreAnnotation]; v != "" {
					byObject[o.String()] = splitRules(v)
				}
			}
		}
	}
	byFile := map[string][]comment{}
	return func(f *Finding) bool {
		if slices.Contains(byObject[f.Object], f.Rule) {
			return true
		}
		if f.File == "" || c.Text == nil {
			return false
		}
		comments, ok := byFile[f.File]
		if !ok {
			comments = readComments(string(c.Text(f.File)))
			byFile[f.File] = comments
		}
		return slices.ContainsFunc(comments, func(k comment) bool {
			return k.from <= f.Line && f.Line <= k.to && slices.Contains(k.rules, f.Rule)
		})
	}
}

// comment is an ignore comment with the lines of the document that it is in.
type comment struct {
	from, to int
	rules    []string
}

func readComments(text string) []comment {
	var out []comment
	first, start, line := 0, 1, 0
	end := func() {
		for i := first; i < len(out); i++ {
			out[i].from, out[i].to = start, line
		}
		first, start = len(out), line
	}
	for l := range strings.Lines(text) {
		line++
		l = strings.TrimSpace(l)
		if l == "---" || strings.HasPrefix(l, "--- ") {
			end()
		}
		if _, rest, ok := strings.Cut(l, "# weft-lint: ignore "); ok {
			word, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			out = append(out, comment{rules: splitRules(word)})
		}
	}
	end()
	return out
}

func splitRules(s string) []string {
	out := strings.Split(s, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}
