// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/route"
)

// checkedCertificate is what was found out of a Secret, kept while the Secret is the same.
type checkedCertificate struct {
	secret *model.Secret
	leaf   *x509.Certificate
	err    error
}

// certificates are those of Secrets, and who serves them.
type certificates struct {
	checked map[model.Name]checkedCertificate
	watch   map[model.Name]map[string]bool // Secret to the hosts that would be compiled differently without it
	serve   map[string]map[string]bool     // key to the units that serve it
}

// check judges a Secret as a certificate with its key.
func (s *State) check(name model.Name) checkedCertificate {
	secret := s.secrets[name]
	if c, ok := s.certs.checked[name]; ok && c.secret == secret {
		return c
	}
	c := checkedCertificate{secret: secret}
	switch {
	case secret == nil:
		c.err = fmt.Errorf("there is no Secret %s", name)
	case len(secret.Data["tls.crt"]) == 0 || len(secret.Data["tls.key"]) == 0:
		c.err = fmt.Errorf("secret %s has no tls.crt or no tls.key: make it with kubectl create secret tls", name)
	default:
		pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
		if err != nil {
			c.err = fmt.Errorf("secret %s: %s", name, strings.TrimPrefix(err.Error(), "tls: "))
		} else {
			c.leaf = pair.Leaf
		}
	}
	s.certs.checked[name] = c
	return c
}

// covers tells whether a certificate is for a host, by its names or, as ingress-nginx has it, its common name.
func covers(leaf *x509.Certificate, host string) bool {
	host = strings.Replace(host, "*.", "weft-wildcard.", 1) // a wildcard is covered by the same wildcard alone
	if leaf.VerifyHostname(host) == nil {
		return true
	}
	cn := leaf.Subject.CommonName
	if rest, ok := strings.CutPrefix(cn, "*."); ok {
		_, parent, _ := strings.Cut(host, ".")
		return strings.EqualFold(parent, rest)
	}
	return strings.EqualFold(cn, host)
}

// certify chooses a Secret's certificate for a host. warning tells when clients won't accept it for the host.
func (v *server) certify(name model.Name) (key, warning string, err error) {
	v.certWatch[name] = true
	c := v.s.check(name)
	if c.err != nil {
		return "", "", c.err
	}
	if v.h.name != "" && !covers(c.leaf, v.h.name) {
		names := append([]string{c.leaf.Subject.CommonName}, c.leaf.DNSNames...)
		warning = fmt.Sprintf("the certificate in Secret %s is for %s, not for %s: clients will not trust it", name,
			strings.Join(slices.Compact(names), ", "), v.h.name)
	}
	return name.String(), warning, nil
}

// keyCovers tells whether the certificate of a key is for a host.
func (s *State) keyCovers(key, host string) bool {
	ns, name, _ := strings.Cut(key, "/")
	c := s.check(model.Name{Namespace: ns, Name: name})
	return c.err == nil && covers(c.leaf, host)
}

// serveCertificates says which certificates a unit serves from now on.
func (s *State) serveCertificates(unit string, old *[]string, now map[string]bool) {
	for _, key := range *old {
		if !now[key] {
			delete(s.certs.serve[key], unit)
			if len(s.certs.serve[key]) == 0 {
				delete(s.certs.serve, key)
				s.out.certificates.remove("", key)
			}
		}
	}
	*old = nil
	for key := range now {
		if s.certs.serve[key] == nil {
			s.certs.serve[key] = map[string]bool{}
		}
		s.certs.serve[key][unit] = true
		*old = append(*old, key)
		s.out.certificates.set("", key, s.certificate(key))
	}
}

// certificate makes the resource of a key.
func (s *State) certificate(key string) route.Certificate {
	if f := s.opts.Fallback; f != nil && key == f.Key {
		return *f
	}
	ns, name, _ := strings.Cut(key, "/")
	secret := s.secrets[model.Name{Namespace: ns, Name: name}]
	if secret == nil {
		return route.Certificate{Key: key}
	}
	staple, _ := route.StapleOf(secret.Data) // one that can't be stapled is left out, and clients ask themselves
	return route.Certificate{Key: key, Chain: string(secret.Data["tls.crt"]), PrivateKey: string(secret.Data["tls.key"]), OCSP: staple}
}

// watchSecrets says which Secrets a host's certificates come from.
func (s *State) watchSecrets(host string, old *[]model.Name, now map[model.Name]bool) {
	for _, n := range *old {
		delete(s.certs.watch[n], host)
		if len(s.certs.watch[n]) == 0 {
			delete(s.certs.watch, n)
		}
	}
	*old = nil
	for n := range now {
		if s.certs.watch[n] == nil {
			s.certs.watch[n] = map[string]bool{}
		}
		s.certs.watch[n][host] = true
		*old = append(*old, n)
	}
}

// defaultCertificate is the key of what hosts without a certificate of their own are served with; "" is none.
func (s *State) defaultCertificate() string {
	if n := s.defaultSecret(); n.Name != "" && s.check(n).err == nil {
		return n.String()
	}
	if s.opts.Fallback != nil {
		return s.opts.Fallback.Key
	}
	return ""
}

// defaultSecret is the Secret of the default certificate, if one is named.
func (s *State) defaultSecret() model.Name {
	if ns, name, ok := strings.Cut(s.globalConfig().defaultCert, "/"); ok {
		return model.Name{Namespace: ns, Name: name}
	}
	return s.opts.DefaultCertificate
}

// authorities gives the PEM of a Secret's ca.crt.
func (s *State) authorities(name model.Name) (string, error) {
	secret := s.secrets[name]
	if secret == nil {
		return "", fmt.Errorf("there is no Secret %s", name)
	}
	pem := secret.Data["ca.crt"]
	if len(pem) == 0 {
		return "", fmt.Errorf("secret %s has no ca.crt", name)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return "", errors.New("ca.crt of Secret " + name.String() + " holds no certificate")
	}
	return string(pem), nil
}
