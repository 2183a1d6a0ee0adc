// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// ingress is an Ingress and what it was judged to say.
type ingress struct {
	obj   *model.Ingress
	class string
	ours  bool
	cfg   *config

	set      settings
	denied   []string // why its paths answer 503
	problems []problem
	told     map[problem]bool
	refs     map[reference]bool
	hosts    []string
	certs    []string // client certificates for its backends

	// What follows from the objects that its annotations name.
	policies        []string // keys
	policy          string   // key of the policy of all its rules; "" is none
	authPolicy      string   // key of the policy of those that ask for authentication; "" is none
	basic           bool     // there are passwords: backends don't get to see them
	clientCAs       string
	clientProblem   string // why clients' certificates can't be judged
	backendTLS      route.BackendTLS
	backendCert     string // variant of backends with TLS settings of this Ingress's own; "" is none
	requestHeaders  []route.TemplateHeader
	responseHeaders []route.Header
	mirror          *backend
	mirrorHost      string
}

// unit names the Ingress among those that use backends.
func (i *ingress) unit() string { return "Ingress " + i.obj.Name.String() }

func (i *ingress) problem(reason, format string, args ...any) {
	i.problems = append(i.problems, problem{reason: reason, message: fmt.Sprintf(format, args...)})
}

// deny shuts the Ingress's paths: what was asked for in the name of security can't be had.
func (i *ingress) deny(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	i.denied = append(i.denied, message)
	i.problem("Denied", "%s; requests get 503 until this is put right", message)
}

// judge reads an Ingress's annotations and makes its policies.
func (s *State) judge(i *ingress) {
	i.set = i.cfg.set
	i.problems = append(i.problems, i.cfg.problems...)
	for _, d := range i.cfg.denied {
		i.deny("%s", d)
	}
	i.readAnnotations()
	used := map[string]backend{}
	s.references(i, used)
	main, auth := s.policiesOf(i, used)
	s.backends.use(i.unit(), used)
	err := main.Check()
	if auth != nil {
		err = errors.Join(err, auth.Check())
	}
	if err != nil {
		i.deny("what its annotations ask for can't be had: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	i.policy, i.authPolicy = main.Key, ""
	if len(i.denied) > 0 {
		main.Invalid = strings.Join(i.denied, "; ")
	}
	s.out.policies.set(i.unit(), main.Key, main)
	i.policies = []string{main.Key}
	if auth != nil {
		i.authPolicy = auth.Key
		s.out.policies.set(i.unit(), auth.Key, *auth)
		i.policies = append(i.policies, auth.Key)
	}
}

// readAnnotations takes the annotations in, in the order of the table.
func (i *ingress) readAnnotations() {
	unknown := map[string]bool{}
	for full := range i.obj.Annotations {
		if name, ok := strings.CutPrefix(full, Prefix); ok && annotationByName[name] == nil {
			unknown[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		hint := ""
		if n := nearest(name); n != "" {
			hint = ": did you mean " + Prefix + n + "?"
		}
		i.problem("UnknownAnnotation", "%s%s is not an annotation of ingress-nginx; it has no effect%s", Prefix, name, hint)
		if n := nearest(name); n != "" && annotationByName[n].closed {
			i.deny("%s%s looks like %s%s, misspelt", Prefix, name, Prefix, n)
		}
	}
	for k := range annotations {
		a := &annotations[k]
		value, ok := i.obj.Annotations[Prefix+a.Name]
		if !ok || strings.TrimSpace(value) == "" {
			continue // as in ingress-nginx an empty value is none
		}
		if i.set.canary && !a.ofCanaries && a.Group != "Canary" && a.Verdict == Honoured {
			i.problems = append(i.problems, problem{reason: "CanaryIgnores", normal: true, message: fmt.Sprintf(
				"%s%s: a canary takes this from the Ingress that it is the canary of", Prefix, a.Name)})
			continue
		}
		if a.Verdict == Refused {
			if v := strings.TrimSpace(value); v != "false" && v != "off" {
				i.refuse(a, value)
			}
			continue
		}
		if err := a.set(&i.set, value); err != nil {
			if a.closed {
				i.deny("%s%s: %q: %v", Prefix, a.Name, value, err)
			} else {
				i.problem("InvalidAnnotation", "%s%s: %q: %v; it has no effect", Prefix, a.Name, value, err)
			}
		}
	}
}

// refuse says why an annotation is not honoured, and what to use in its place. Where it may have kept somebody out, its
// absence must let nobody in.
func (i *ingress) refuse(a *Annotation, value string) {
	why, guards := a.Note, a.closed
	if a.snippet {
		var instead []string
		instead, guards = readSnippet(value)
		why = "weft runs no nginx, so arbitrary nginx configuration is refused"
		if len(instead) > 0 {
			why += ": " + strings.Join(instead, "; ")
		}
	}
	if guards {
		i.deny("%s%s is refused: %s", Prefix, a.Name, why)
		return
	}
	i.problem("AnnotationRefused", "%s%s is refused: %s", Prefix, a.Name, why)
}

// nearest finds the annotation that a misspelt name means.
func nearest(name string) string {
	return Nearest(name, func(yield func(string) bool) {
		for k := range annotations {
			if !yield(annotations[k].Name) {
				return
			}
		}
	})
}

// Nearest finds the known word that a misspelt one means: "" when none is within two letters.
func Nearest(word string, known iter.Seq[string]) (found string) {
	best := 3
	for k := range known {
		if d := distance(word, k, best); d < best {
			best, found = d, k
		}
	}
	return found
}

// distance is that of Levenshtein, or limit when it is not less.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return min(row[len(b)], limit)
}

// object resolves the name of an object in an annotation: "name", or "namespace/name" of the Ingress's own namespace,
// unless the administrator allows others.
func (i *ingress) object(kind, annotation, text string) (model.Name, error) {
	ns, name, ok := strings.Cut(strings.TrimSpace(text), "/")
	if !ok {
		ns, name = i.obj.Namespace, ns
	}
	n := model.Name{Namespace: ns, Name: name}
	if ns == "" || name == "" || strings.Contains(name, "/") {
		return n, fmt.Errorf("%s%s: %q is not the name of a %s: write namespace/name", Prefix, annotation, text, kind)
	}
	if ns != i.obj.Namespace && !i.cfg.crossNamespace {
		return n, fmt.Errorf("%s%s: %s is in another namespace than the Ingress: move it, or have the administrator set "+
			"allow-cross-namespace-resources in the ConfigMap", Prefix, annotation, ref(kind, n))
	}
	i.refs[reference{kind, n}] = true
	return n, nil
}

// references finds the objects that annotations name.
func (s *State) references(i *ingress, used map[string]backend) {
	set := &i.set
	i.basic, i.clientCAs, i.clientProblem, i.mirror, i.mirrorHost = false, "", "", nil, ""
	i.requestHeaders, i.responseHeaders, i.backendTLS, i.backendCert = nil, nil, route.BackendTLS{}, ""
	if set.clientSecret != "" && set.clientVerify != "off" {
		n, err := i.object("Secret", "auth-tls-secret", set.clientSecret)
		if err == nil {
			i.clientCAs, err = s.authorities(n)
		}
		if err != nil {
			i.clientProblem = err.Error()
			i.deny("%sauth-tls-secret: %v", Prefix, err)
		}
	}
	s.backendTLSOf(i)
	for _, h := range s.configHeaders(i, "proxy-set-headers", set.proxySetHeaders) {
		i.requestHeaders = append(i.requestHeaders, route.TemplateHeader{Name: h.Name, Value: route.Template(h.Value)})
	}
	i.responseHeaders = append(i.responseHeaders, s.configHeaders(i, "add-headers", set.addHeaders)...)
	s.customHeadersOf(i)
	s.mirrorOf(i)
}

// configHeaders reads the headers of a ConfigMap that the administrator's own ConfigMap names, sorted by name.
func (s *State) configHeaders(i *ingress, key, text string) (out []route.Header) {
	ns, name, ok := strings.Cut(text, "/")
	if !ok {
		return nil
	}
	n := model.Name{Namespace: ns, Name: name}
	i.refs[reference{"ConfigMap", n}] = true
	cm := s.configMaps[n]
	if cm == nil {
		i.problem("InvalidConfiguration", "ConfigMap %s, %s: there is no ConfigMap %s", i.cfg.name, key, n)
		return nil
	}
	for _, k := range slices.Sorted(maps.Keys(cm.Data)) {
		err := checkHeader(k)
		if err == nil && key == "proxy-set-headers" {
			_, err = route.ParseTemplate(route.Template(cm.Data[k]))
		}
		if err != nil {
			i.problem("InvalidConfiguration", "ConfigMap %s: %s: %v; the header is left out", n, k, err)
			continue
		}
		out = append(out, route.Header{Name: k, Value: cm.Data[k]})
	}
	return out
}

// customHeadersOf reads the ConfigMap of custom-headers. As in ingress-nginx the administrator must have allowed each.
func (s *State) customHeadersOf(i *ingress) {
	if i.set.customHeaders == "" {
		return
	}
	n, err := i.object("ConfigMap", "custom-headers", i.set.customHeaders)
	if err != nil {
		i.deny("%v", err)
		return
	}
	cm := s.configMaps[n]
	if cm == nil {
		i.deny("%scustom-headers: there is no ConfigMap %s", Prefix, n)
		return
	}
	for _, k := range slices.Sorted(maps.Keys(cm.Data)) {
		if err := checkHeader(k); err != nil {
			i.deny("%scustom-headers: ConfigMap %s: %s: %v", Prefix, n, k, err)
			continue
		}
		if !slices.ContainsFunc(i.set.allowedHeaders, func(a string) bool { return strings.EqualFold(a, k) }) {
			i.deny("%scustom-headers: ConfigMap %s: header %s is not among those that the administrator allows: have it added to "+
				"global-allowed-response-headers in the ConfigMap", Prefix, n, k)
			continue
		}
		i.responseHeaders = append(i.responseHeaders, route.Header{Name: k, Value: cm.Data[k]})
	}
}
