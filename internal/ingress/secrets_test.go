// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"testing"

	"github.com/weft-net/weft/internal/certtest"
	"github.com/weft-net/weft/internal/model"
)

// named is what a certificate of a test says.
func named(name string, ca bool, hosts ...string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: hosts, IsCA: ca}
}

// inYAML gives a certificate and its key for a manifest of a Secret.
func inYAML(t testing.TB, c tls.Certificate) (crt, key string) {
	t.Helper()
	crt, key = certtest.PEM(t, c)
	return quoted(crt), quoted(key)
}

// certificate makes a Secret with a certificate for names, which vouches for itself as a CA too.
func certificate(t testing.TB, namespace, name string, hosts ...string) *model.Secret {
	t.Helper()
	crt, key := certtest.PEM(t, certtest.New(t, named(hosts[0], true, hosts...), nil))
	return &model.Secret{Meta: model.Meta{Name: model.Name{Namespace: namespace, Name: name}}, Type: "kubernetes.io/tls", Data: map[string][]byte{
		"tls.crt": []byte(crt), "tls.key": []byte(key), "ca.crt": []byte(crt), "auth": []byte("jane:$apr1$x$y\n"),
	}}
}

func quoted(s string) string {
	b, _ := json.Marshal(s) // YAML has JSON's strings
	return string(b)
}

// referredTo is what annotations of many tests name: passwords, and headers.
const referredTo = `
apiVersion: v1
kind: Secret
metadata: {name: passwords, namespace: shop}
stringData: {auth: "ann:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: headers, namespace: shop}
data: {X-A: b}
---
`
