// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/model"
)

// AssumeSecrets adds a certificate for every Secret that spec.tls of an Ingress names and that is not there, for the
// hosts that it is for: manifests are kept without their Secrets, and what Ingresses do depends on having them. The
// certificates are good for nothing else. It is the one part of this package that is not pure: keys are random.
func AssumeSecrets(in *ingress.Changes) error {
	need := map[model.Name][]string{}
	for name, o := range in.Ingresses {
		for _, t := range o.TLS {
			n := model.Name{Namespace: name.Namespace, Name: t.Secret}
			if t.Secret == "" || in.Secrets[n] != nil {
				continue
			}
			need[n] = append(need[n], t.Hosts...)
			for _, r := range o.Rules {
				if len(t.Hosts) == 0 && r.Host != "" {
					need[n] = append(need[n], r.Host)
				}
			}
		}
	}
	for n, hosts := range need {
		data, err := certificate(hosts)
		if err != nil {
			return fmt.Errorf("a certificate in the place of Secret %s: %w", n, err)
		}
		if in.Secrets == nil {
			in.Secrets = map[model.Name]*model.Secret{}
		}
		in.Secrets[n] = &model.Secret{Meta: model.Meta{Name: n}, Type: "kubernetes.io/tls", Data: data}
	}
	return nil
}

// AssumeServices adds every Service that a rule of an Ingress sends to and that is not there, with the ports that are
// named by number: what Ingresses do depends on having them, and so does naming a port.
func AssumeServices(in *ingress.Changes) {
	need := map[model.Name][]uint16{}
	want := func(namespace string, b *model.IngressBackend) {
		n := model.Name{Namespace: namespace, Name: b.Service}
		if b.Service == "" || b.Port == 0 || in.Services[n] != nil {
			return
		}
		if !slices.Contains(need[n], b.Port) {
			need[n] = append(need[n], b.Port)
		}
	}
	for name, o := range in.Ingresses {
		if o.Default != nil {
			want(name.Namespace, o.Default)
		}
		for _, r := range o.Rules {
			for i := range r.Paths {
				want(name.Namespace, &r.Paths[i].Backend)
			}
		}
	}
	for n, ports := range need {
		s := &model.Service{Meta: model.Meta{Name: n}}
		slices.Sort(ports)
		for _, p := range ports {
			s.Ports = append(s.Ports, model.ServicePort{Name: fmt.Sprintf("port-%d", p), Port: p, Protocol: model.TCP})
		}
		if in.Services == nil {
			in.Services = map[model.Name]*model.Service{}
		}
		in.Services[n] = s
	}
}

func certificate(hosts []string) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "assumed"}, DNSNames: hosts,
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}
