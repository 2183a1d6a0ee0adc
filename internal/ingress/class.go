// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"slices"

	"github.com/weft-net/weft/internal/model"
)

// classAnnotation is how Ingresses named their class before spec.ingressClassName.
const classAnnotation = "kubernetes.io/ingress.class"

// Serves tells whether an IngressClass is one of ours.
func (o *Options) Serves(c *model.IngressClass) bool {
	controllers := o.Controllers
	if len(controllers) == 0 {
		controllers = []string{Controller}
	}
	return c != nil && slices.Contains(controllers, c.Controller)
}

// classOf tells an Ingress's class and whether it is one of ours. As with ingress-nginx the annotation counts first.
// Without either it is the default class, which the API server fills in only for Ingresses that came after it.
func (s *State) classOf(o *model.Ingress) (class string, ours bool) {
	if name, ok := o.Annotations[classAnnotation]; ok && name != "" {
		if c := s.classes[name]; c != nil {
			return name, s.opts.Serves(c)
		}
		// ingress-nginx serves the annotation's value "nginx" whether or not there is a class of the name.
		return name, name == "nginx" && slices.Contains(s.opts.Controllers, NginxController)
	}
	if o.Class != "" {
		return o.Class, s.opts.Serves(s.classes[o.Class])
	}
	if c := s.defaultClass(); c != nil {
		return c.Name.Name, true
	}
	return "", s.opts.WithoutClass
}

// defaultClass is the class of ours that Ingresses without a class belong to; nil when there is none, or another
// controller's class is a default as well. Of several of ours the newest is, as with the API server's admission.
func (s *State) defaultClass() (found *model.IngressClass) {
	for _, c := range s.classes {
		switch {
		case !c.Default:
		case !s.opts.Serves(c):
			return nil
		case found == nil || c.Created > found.Created || c.Created == found.Created && c.Name.Name < found.Name.Name:
			found = c
		}
	}
	return found
}

// configOf gives the defaults of a class: those of the ConfigMap that its parameters name, or the controller's.
func (s *State) configOf(class string) *config {
	name := s.opts.Config
	var wrong *problem
	if c := s.classes[class]; c != nil && c.Parameters != nil {
		if p := c.Parameters; p.Group == "" && p.Kind == "ConfigMap" && p.Namespace != "" {
			name = model.Name{Namespace: p.Namespace, Name: p.Name}
		} else {
			wrong = &problem{reason: "UnknownParameters", message: "IngressClass " + class + ": spec.parameters: weft reads a ConfigMap " +
				"with ingress-nginx's keys: set kind to ConfigMap, scope to Namespace, and its namespace and name"}
		}
	}
	cfg := s.configs[name]
	if cfg == nil {
		cfg = readConfig(name, s.opts.Config, s.configMaps[name])
		s.configs[name] = cfg
	}
	if wrong != nil {
		c := *cfg
		c.problems = append(slices.Clone(cfg.problems), *wrong)
		return &c
	}
	return cfg
}
