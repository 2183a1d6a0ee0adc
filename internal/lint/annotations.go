// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/dnspath"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

// weftPrefix begins weft's own annotations, and serviceAnnotations are those that a person gives a Service.
const weftPrefix = "weft.dev/"

var serviceAnnotations = []string{
	addresses.PoolAnnotation, addresses.RequestAnnotation, addresses.ShareAnnotation,
	dnspath.Annotation, model.ProxyProtocolAnnotation, IgnoreAnnotation,
}

func init() {
	r := Rule{"service-annotation-unknown", Warning, "an annotation of a Service under weft.dev/ that weft does not know", "nobody reads it: what it asks for does not happen"}
	rules[r.ID] = r
}

// unknownAnnotations looks for annotations that are meant for weft, and misspelt.
func (c *checker) unknownAnnotations() {
	for i := range c.objects["Service"] {
		o := &c.objects["Service"][i]
		acc, err := meta.Accessor(o.Object)
		if err != nil {
			continue
		}
		for _, a := range slices.Sorted(maps.Keys(acc.GetAnnotations())) {
			if !strings.HasPrefix(a, weftPrefix) || slices.Contains(serviceAnnotations, a) || a == addresses.AllocatedAnnotation {
				continue
			}
			cure := "remove it, or name one of " + strings.Join(serviceAnnotations, ", ")
			if n := ingress.Nearest(a, slices.Values(serviceAnnotations)); n != "" {
				cure = fmt.Sprintf("did you mean %s?", n)
			}
			c.report("service-annotation-unknown", o, cure, "annotation %s is none of weft's", a)
		}
	}
}
