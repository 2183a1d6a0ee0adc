// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-net/weft/internal/model"
)

// IngressAnnotations is the prefix of ingress-nginx's annotations, which weft honours.
const IngressAnnotations = "nginx.ingress.kubernetes.io/"

// IngressClassAnnotation is how Ingresses named their class before spec.ingressClassName.
const IngressClassAnnotation = "kubernetes.io/ingress.class"

// FromIngress translates an Ingress. It takes every value as it is: package ingress judges them.
func FromIngress(o *networkingv1.Ingress) (*model.Ingress, error) {
	out := &model.Ingress{Meta: fromMeta(&o.ObjectMeta), Class: deref(o.Spec.IngressClassName)}
	out.Labels = nil
	for k, v := range o.Annotations {
		if strings.HasPrefix(k, IngressAnnotations) || k == IngressClassAnnotation {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[intern(k)] = v
		}
	}
	if o.Spec.DefaultBackend != nil {
		b := fromIngressBackend(o.Spec.DefaultBackend)
		out.Default = &b
	}
	for _, t := range o.Spec.TLS {
		out.TLS = append(out.TLS, model.IngressTLS{Hosts: t.Hosts, Secret: t.SecretName})
	}
	for _, r := range o.Spec.Rules {
		rule := model.IngressRule{Host: strings.ToLower(r.Host)}
		if r.HTTP != nil {
			for _, p := range r.HTTP.Paths {
				path := model.IngressPath{Path: p.Path, Type: model.IngressImplementationSpecific, Backend: fromIngressBackend(&p.Backend)}
				if p.PathType != nil {
					path.Type = model.IngressPathType(*p.PathType)
				}
				rule.Paths = append(rule.Paths, path)
			}
		}
		out.Rules = append(out.Rules, rule)
	}
	for _, a := range o.Status.LoadBalancer.Ingress {
		out.Status = append(out.Status, model.IngressAddress{IP: a.IP, Hostname: a.Hostname})
	}
	return out, nil
}

func fromIngressBackend(b *networkingv1.IngressBackend) model.IngressBackend {
	if b.Service == nil {
		if b.Resource == nil {
			return model.IngressBackend{}
		}
		return model.IngressBackend{Resource: b.Resource.Kind + "/" + b.Resource.Name}
	}
	return model.IngressBackend{Service: b.Service.Name, Port: uint16(b.Service.Port.Number), PortName: b.Service.Port.Name}
}

// FromIngressClass translates an IngressClass.
func FromIngressClass(o *networkingv1.IngressClass) (*model.IngressClass, error) {
	out := &model.IngressClass{
		Meta:       fromMeta(&o.ObjectMeta),
		Controller: o.Spec.Controller,
		Default:    o.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true",
	}
	out.Labels = nil
	if p := o.Spec.Parameters; p != nil {
		out.Parameters = &model.IngressParameters{Group: deref(p.APIGroup), Kind: p.Kind, Name: p.Name, Namespace: deref(p.Namespace)}
	}
	return out, nil
}
