// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"slices"
)

// Prefix is that of ingress-nginx's annotations.
const Prefix = "nginx.ingress.kubernetes.io/"

// Verdict is what weft does with an annotation or a ConfigMap key.
type Verdict string

// The verdicts.
const (
	Honoured Verdict = "honoured"
	Accepted Verdict = "accepted without effect"
	Refused  Verdict = "refused"
)

// Annotation is one row of the table of ingress-nginx's annotations.
type Annotation struct {
	Name    string // without Prefix
	Group   string
	Verdict Verdict
	Values  string // what it takes
	Note    string // what it does, or why it does nothing or is refused

	closed     bool // a value that can't be used shuts the Ingress's paths
	ofCanaries bool // counts on an Ingress that is a canary
	snippet    bool
	set        func(*settings, string) error
}

// Annotations lists the table in the order of groups.
func Annotations() []Annotation { return slices.Clone(annotations) }

// annotations is the one table; the groups are in the files annotations_*.go. It is filled before anything is read.
var annotations = slices.Concat(
	canaryAnnotations, rewriteAnnotations, redirectAnnotations, tlsAnnotations, sessionAnnotations, basicAuthAnnotations,
	externalAuthAnnotations, clientCertificateAnnotations, accessAnnotations, limitAnnotations, corsAnnotations,
	answerAnnotations, backendAnnotations, proxyAnnotations, backendTLSAnnotations, mirrorAnnotations,
	firewallAnnotations, logAnnotations, snippetAnnotations, retiredAnnotations,
)

var annotationByName = func() map[string]*Annotation {
	m := map[string]*Annotation{}
	for k := range annotations {
		m[annotations[k].Name] = &annotations[k]
	}
	return m
}()

// FailsClosed tells whether a value that can't be used shuts the Ingress's paths.
func (a *Annotation) FailsClosed() bool { return a.closed || a.snippet }
