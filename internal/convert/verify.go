// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	gwv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/weft-net/weft/api/v1alpha1"
	"github.com/weft-net/weft/internal/gatewayapi"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
	"github.com/weft-net/weft/internal/trafficpolicy"
)

// Difference is what the Ingresses and what they were converted to treat differently.
type Difference struct {
	Request string `json:"request"`        // one of the requests, as one would type it
	More    int    `json:"more,omitempty"` // others that differ in the same
	// Before and After are what becomes of it, or the part of that which differs.
	Before string `json:"before"`
	After  string `json:"after"`
}

// String is for a person.
func (d Difference) String() string {
	more := ""
	if d.More > 0 {
		more = fmt.Sprintf(" (and %d more)", d.More)
	}
	return fmt.Sprintf("%s%s\n  before: %s\n  after:  %s", d.Request, more, d.Before, d.After)
}

// Verify replays requests through the tables of the Ingresses and those that the converted objects compile to: every
// host, the edges of every path, every header, cookie and method that a rule looks at, over HTTP and HTTPS. It gives
// those that go elsewhere, are changed otherwise, or must pass other policies, and how many requests were compared. in
// is what the conversion was made of.
func Verify(c *Conversion, opt IngressOptions, in *ingress.Changes) (differences []Difference, requests int, err error) {
	after, err := compile(c.Objects, opt, in)
	if err != nil {
		return nil, 0, err
	}
	before, now := newReplay(c.Tables, c.Dropped, in.Services), newReplay(after, c.Dropped, in.Services)
	known := map[Difference]int{} // by what differs
	for _, q := range before.requests() {
		if q.scheme == "https" && (c.plainHost(q.host) || before.catchAll(q.host)) {
			continue // the default certificate, which no listener shows any more: a note has said so
		}
		requests++
		d, differs := compareOutcomes(before.outcome(&q), now.outcome(&q))
		if !differs {
			continue
		}
		if i, ok := known[d]; ok {
			differences[i].More++
			continue
		}
		known[d] = len(differences)
		d.Request = q.String()
		differences = append(differences, d)
	}
	return differences, requests, nil
}

// plainHost tells whether a host had the controller's default certificate alone.
func (c *Conversion) plainHost(host string) bool {
	_, domain, _ := strings.Cut(host, ".")
	return slices.Contains(c.Plain, host) || slices.Contains(c.Plain, "*."+domain)
}

// catchAll tells whether no listener but that of all hosts has a host.
func (t *replay) catchAll(host string) bool {
	all := true
	t.listeners["https"].Find(host, func(l *route.Listener) bool { all = l.Hostname == ""; return false })
	return all
}

// compareOutcomes names what differs.
func compareOutcomes(a, b outcome) (d Difference, differs bool) {
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	var was, is []string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if a[k] == b[k] {
			continue
		}
		was, is = append(was, describe(k, a[k])), append(is, describe(k, b[k]))
	}
	return Difference{Before: strings.Join(was, "; "), After: strings.Join(is, "; ")}, len(was) > 0
}

func describe(key, value string) string {
	if value == "" {
		return "no " + key
	}
	return key + " " + value
}

// compile makes the tables of converted objects, as the Gateway controller does.
func compile(objects []Object, opt IngressOptions, in *ingress.Changes) (*route.Update, error) {
	change := &gatewayapi.Change{
		GatewayClasses: map[string]*gwv1.GatewayClass{opt.GatewayClass: {}},
		Services:       maps.Clone(in.Services), EndpointSlices: in.EndpointSlices, Secrets: in.Secrets, ConfigMaps: in.ConfigMaps,
		Namespaces: map[string]*model.Namespace{},
	}
	change.GatewayClasses[opt.GatewayClass].Name = opt.GatewayClass
	change.GatewayClasses[opt.GatewayClass].Spec.ControllerName = gatewayapi.ControllerName
	policies := map[model.Name]*v1alpha1.TrafficPolicy{}
	for _, o := range objects {
		if o.GetKind() == "Namespace" {
			continue // each that an object is in is made below
		}
		name := model.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
		change.Namespaces[name.Namespace] = &model.Namespace{Meta: model.Meta{
			Name: model.Name{Name: name.Namespace}, Labels: map[string]string{"kubernetes.io/metadata.name": name.Namespace},
		}}
		if v := gatewayapi.NewObject(o.GetKind()); v != nil {
			if err := readTyped(o, v); err != nil {
				return nil, err
			}
			change.Set(o.GetKind(), name, v)
			continue
		}
		switch o.GetKind() {
		case "TrafficPolicy":
			policies[name] = &v1alpha1.TrafficPolicy{}
			if err := readTyped(o, policies[name]); err != nil {
				return nil, err
			}
		case "Service": // of type ExternalName: made for a server outside
			s := &model.Service{Meta: model.Meta{Name: name}, Type: model.ExternalName, ExternalName: text(sub(o.Object, "spec"), "externalName")}
			for _, p := range items(sub(o.Object, "spec"), "ports") {
				n, _ := p["port"].(int64)
				s.Ports = append(s.Ports, model.ServicePort{Port: uint16(n), Protocol: model.TCP})
			}
			change.Services[name] = s
		}
	}
	trafficpolicy.New().Apply(change, policies)
	state := gatewayapi.New(gatewayapi.Options{})
	state.Apply(change)
	return state.Tables(opt.Gateway), nil
}

// readTyped reads an object into its Go type; a field that the type does not have is an error.
func readTyped(o Object, to any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, to, true); err != nil {
		return fmt.Errorf("%s: %w", o.name(), err)
	}
	return nil
}

// policyOf is what all policies of a request say, merged, with what the rule says itself, as JSON by field. Names of
// other resources are taken out: the two sides name them differently.
func (t *replay) policyOf(l *route.Listener, r *route.Route, rule *route.Rule) map[string]string {
	all := map[string]json.RawMessage{}
	for _, keys := range [][]string{l.Policies, r.Policies, rule.Policies} {
		for _, key := range keys {
			p := t.policies[key]
			if p == nil {
				all["invalid"] = json.RawMessage(`"policy ` + key + ` is missing"`)
				continue
			}
			var some map[string]json.RawMessage
			if err := json.Unmarshal([]byte(mustJSON(*p)), &some); err != nil {
				panic(err) // it was written by the line above
			}
			delete(some, "key")
			maps.Copy(all, some)
		}
	}
	delete(all, "rewrite") // replayed, as filters are
	delete(all, "redirect")
	put := func(field string, set bool, v any) {
		if set {
			all[field] = json.RawMessage(mustJSON(v))
		}
	}
	put("session", rule.Session != nil, rule.Session)
	put("retry", rule.Retry != nil, rule.Retry)
	put("timeouts", rule.Timeouts != (route.Timeouts{}), rule.Timeouts)
	out := map[string]string{}
	for field, raw := range all {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			panic(err) // a RawMessage is JSON
		}
		if o, ok := v.(map[string]any); ok {
			if key, ok := o["backend"].(string); ok {
				o["backend"] = t.serviceOf(key)
			}
			delete(o, "headers") // of errorPages: for default backends of ingress-nginx
		}
		text := mustJSON(v)
		// Two more attempts are ingress-nginx's default, one is weft's: see ruleSpec.
		if field == "retry" && strings.Contains(text, `"idempotent":true`) && !strings.Contains(text, "codes") && !strings.Contains(text, "never") {
			continue
		}
		out["policy "+field] = text
	}
	return out
}

// serviceOf is where a backend leads: a Service's port by its number, "shop/cart:80", or a server outside.
func (t *replay) serviceOf(key string) string {
	if outside := t.outside[key]; outside != "" {
		return outside
	}
	ns, service, port, _, ok := backendKey(key)
	if !ok {
		return key
	}
	if s := t.services[model.Name{Namespace: ns, Name: service}]; s != nil {
		for _, p := range s.Ports {
			if p.Name == port {
				port = strconv.Itoa(int(p.Port))
			}
		}
	}
	return ns + "/" + service + ":" + port
}
