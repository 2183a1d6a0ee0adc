// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weft-net/weft/internal/model"
)

// expiresSoon is how long before its end a certificate is reported.
const expiresSoon = 14 * 24 * time.Hour

func (c *checker) ingresses() {
	seen := map[string]string{} // host, path and its type to the Ingress that has it
	list := slices.Clone(c.objects["Ingress"])
	slices.SortStableFunc(list, func(a, b object) int { return cmp.Compare(created(&a), created(&b)) })
	for i := range list {
		o := &list[i]
		ing, ok := o.Object.(*networkingv1.Ingress)
		if !ok {
			continue
		}
		if ing.Spec.IngressClassName == nil && ing.Annotations["kubernetes.io/ingress.class"] == "" {
			c.report("ingress-class", o, "set spec.ingressClassName", "spec.ingressClassName is not set")
		}
		if class := className(ing); c.Whole && class != "" && c.find("IngressClass", model.Name{Name: class}) == nil {
			c.report("ingress-class", o, "name an IngressClass that exists (kubectl get ingressclass)", "there is no IngressClass %s", class)
		}
		c.ingressAnnotations(o, ing)
		withTLS := map[string]bool{}
		for j, t := range ing.Spec.TLS {
			for _, h := range t.Hosts {
				withTLS[h] = true
			}
			if t.SecretName != "" {
				c.certificate(o, fmt.Sprintf("spec.tls[%d]", j), model.Name{Namespace: o.name.Namespace, Name: t.SecretName}, t.Hosts)
			}
		}
		if b := ing.Spec.DefaultBackend; b != nil && b.Service != nil {
			c.ingressBackend(o, "spec.defaultBackend", b.Service)
		}
		for j, r := range ing.Spec.Rules {
			if r.Host != "" && !covered(withTLS, r.Host) {
				c.report("ingress-tls", o, "add the host to spec.tls with a secretName", "host %s is served without TLS", r.Host)
			}
			if r.HTTP == nil {
				continue
			}
			for k, p := range r.HTTP.Paths {
				field := fmt.Sprintf("spec.rules[%d].http.paths[%d]", j, k)
				if p.Backend.Service != nil {
					c.ingressBackend(o, field+".backend", p.Backend.Service)
				}
				pathType := networkingv1.PathTypeImplementationSpecific
				if p.PathType != nil {
					pathType = *p.PathType
				}
				key := fmt.Sprintf("%s %s%s (%s)", className(ing), r.Host, cmp.Or(p.Path, "/"), pathType)
				if by, taken := seen[key]; taken {
					c.report("ingress-shadowed", o, "remove one of the two", "%s: %s%s is taken by Ingress %s", field, r.Host, p.Path, by)
				} else {
					seen[key] = o.name.String()
				}
			}
		}
	}
}

const nginxPrefix = "nginx.ingress.kubernetes.io/"

// group finds a group of a regular expression in a rewrite-target, as "$2".
var group = regexp.MustCompile(`\$([1-9])`)

func (c *checker) ingressAnnotations(o *object, ing *networkingv1.Ingress) {
	if len(ing.Spec.TLS) > 0 && ing.Annotations[nginxPrefix+"ssl-redirect"] == "false" && ing.Annotations[nginxPrefix+"force-ssl-redirect"] != "true" {
		c.report("ingress-redirect", o, "remove the annotation", "%sssl-redirect is \"false\", and there are hosts with TLS", nginxPrefix)
	}
	for _, a := range [][2]string{{"hsts", "false"}, {"hsts-max-age", "0"}} {
		if len(ing.Spec.TLS) > 0 && ing.Annotations[nginxPrefix+a[0]] == a[1] {
			c.report("ingress-hsts", o, "remove the annotation, once plain HTTP need not work for its hosts", "%s%s is %q, and there are hosts with TLS", nginxPrefix, a[0], a[1])
		}
	}
	target := ing.Annotations[nginxPrefix+"rewrite-target"]
	most := 0
	for _, m := range group.FindAllStringSubmatch(target, -1) {
		n, _ := strconv.Atoi(m[1])
		most = max(most, n)
	}
	if most == 0 {
		return
	}
	for j, r := range ing.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for k, p := range r.HTTP.Paths {
			re, err := regexp.Compile(p.Path)
			if err == nil && re.NumSubexp() < most {
				c.report("ingress-rewrite", o, "write the path with groups, such as /app(/|$)(.*), and pathType: ImplementationSpecific",
					"spec.rules[%d].http.paths[%d]: rewrite-target %s has $%d, and path %s has %d groups", j, k, target, most, p.Path, re.NumSubexp())
			}
		}
	}
}

func created(o *object) int64 {
	if ing, ok := o.Object.(*networkingv1.Ingress); ok {
		return ing.CreationTimestamp.Unix()
	}
	return 0
}

func className(ing *networkingv1.Ingress) string {
	if ing.Spec.IngressClassName != nil {
		return *ing.Spec.IngressClassName
	}
	return ing.Annotations["kubernetes.io/ingress.class"]
}

func covered(hosts map[string]bool, host string) bool {
	_, parent, _ := strings.Cut(host, ".")
	return hosts[host] || hosts["*."+parent]
}

func (c *checker) ingressBackend(o *object, field string, b *networkingv1.IngressServiceBackend) {
	n := model.Name{Namespace: o.name.Namespace, Name: b.Name}
	s := c.d.Services[n]
	if s == nil {
		if c.Whole || len(c.d.Services) > 0 {
			c.report("ingress-backend", o, "name a Service of the Ingress's own namespace", "%s: there is no Service %s", field, n)
		}
		return
	}
	if !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool {
		return b.Port.Name != "" && p.Name == b.Port.Name || b.Port.Name == "" && int32(p.Port) == b.Port.Number
	}) {
		c.report("ingress-backend", o, "name a port of the Service (its port, not its targetPort)", "%s: Service %s has no port %s", field, n, cmp.Or(b.Port.Name, strconv.Itoa(int(b.Port.Number))))
	}
}

// certificate checks a Secret that serves hosts.
func (c *checker) certificate(o *object, field string, n model.Name, hosts []string) {
	s := c.find("Secret", n)
	if s == nil {
		if c.Whole {
			c.report("tls-secret-missing", o, "kubectl create secret tls "+n.Name+" -n "+n.Namespace+" --cert=… --key=…", "%s: there is no Secret %s", field, n)
		}
		return
	}
	secret, ok := s.Object.(*corev1.Secret)
	if !ok {
		return
	}
	data := func(key string) []byte {
		if v, ok := secret.StringData[key]; ok {
			return []byte(v)
		}
		return secret.Data[key]
	}
	pair, err := tls.X509KeyPair(data(corev1.TLSCertKey), data(corev1.TLSPrivateKeyKey))
	if err != nil {
		c.report("tls-secret-invalid", o, "put a PEM certificate in tls.crt and its key in tls.key", "%s: Secret %s: %v", field, n, err)
		return
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		c.report("tls-secret-invalid", o, "put a PEM certificate in tls.crt and its key in tls.key", "%s: Secret %s: %v", field, n, err)
		return
	}
	switch left := cert.NotAfter.Sub(c.Now); {
	case left <= 0:
		c.report("tls-secret-expired", o, "renew the certificate", "%s: the certificate in Secret %s expired on %s", field, n, cert.NotAfter.Format(time.DateOnly))
	case left < expiresSoon:
		c.report("tls-secret-expired", o, "renew the certificate", "%s: the certificate in Secret %s expires on %s", field, n, cert.NotAfter.Format(time.DateOnly))
	}
	for _, h := range hosts {
		if h != "" && cert.VerifyHostname(strings.Replace(h, "*.", "wildcard.", 1)) != nil {
			c.report("tls-host-mismatch", o, "get a certificate for "+h, "%s: the certificate in Secret %s is for %s, not for %s", field, n, strings.Join(cert.DNSNames, ", "), h)
		}
	}
}
