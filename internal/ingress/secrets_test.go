// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// signer is a CA.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a certificate, self-signed if s is nil.
func (s *signer) sign(t testing.TB, name string, ca bool, hosts ...string) (*signer, tls.Certificate) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: hosts, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, by := tmpl, k
	if s != nil {
		parent, by = s.cert, s.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &k.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{cert, k}, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: cert}
}

// inPEM gives a certificate and its key as a Secret has them.
func inPEM(t testing.TB, c tls.Certificate) (crt, key []byte) {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// inYAML gives them for a manifest of a Secret.
func inYAML(t testing.TB, c tls.Certificate) (crt, key string) {
	t.Helper()
	a, b := inPEM(t, c)
	return quoted(string(a)), quoted(string(b))
}

// certificate makes a Secret with a certificate for names, which vouches for itself as a CA too.
func certificate(t testing.TB, namespace, name string, hosts ...string) *model.Secret {
	t.Helper()
	_, own := (*signer)(nil).sign(t, hosts[0], true, hosts...)
	crt, key := inPEM(t, own)
	return &model.Secret{Meta: model.Meta{Name: model.Name{Namespace: namespace, Name: name}}, Type: "kubernetes.io/tls", Data: map[string][]byte{
		"tls.crt": crt, "tls.key": key, "ca.crt": crt, "auth": []byte("jane:$apr1$x$y\n"),
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
