// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-net/weft/internal/convert"
)

// stillServed are older versions that Gateway API v1.6 still takes, by "version/kind".
var stillServed = map[string]bool{
	"gateway.networking.k8s.io/v1beta1/GatewayClass": true, "gateway.networking.k8s.io/v1beta1/Gateway": true,
	"gateway.networking.k8s.io/v1beta1/HTTPRoute": true, "gateway.networking.k8s.io/v1beta1/ReferenceGrant": true,
	"gateway.networking.k8s.io/v1/ReferenceGrant": true,
}

// outdated finds what `weft convert manifests` would have to change, by asking it.
func (c *checker) outdated() {
	var in []convert.Object
	places := map[string]*object{}
	for _, kind := range c.objects {
		for i := range kind {
			o := &kind[i]
			if u, ok := o.Object.(*unstructured.Unstructured); ok {
				source := fmt.Sprintf("%s:%d", o.File, o.Line)
				if o.File == "" {
					source = o.String()
				}
				places[source+" "+u.GetName()] = o
				in = append(in, convert.Object{Source: source, Unstructured: u})
			}
		}
	}
	_, notes := convert.Upgrade(convert.Options{Namespace: "default"}, in)
	for _, n := range notes {
		var o *object
		for _, x := range in {
			if n.Source == x.Source && n.Of(x) {
				o = places[x.Source+" "+x.GetName()]
			}
		}
		if o == nil {
			continue // an object that the conversion made
		}
		u, ok := o.Object.(*unstructured.Unstructured)
		if !ok || n.Field == "apiVersion" && stillServed[u.GetAPIVersion()+"/"+u.GetKind()] {
			continue
		}
		c.report("outdated-shape", o, "weft convert manifests writes it as today's API has it", "%s (converted: %s)", n.Field, n.Text)
	}
}
