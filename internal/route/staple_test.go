// SPDX-License-Identifier: Apache-2.0

package route

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// response makes an OCSP response about a certificate, as far as it is read.
func response(t *testing.T, serial int64, next time.Time) []byte {
	t.Helper()
	null := asn1.RawValue{FullBytes: []byte{asn1.TagNull, 0}}
	single := ocspSingle{Status: asn1.RawValue{FullBytes: []byte{0x80, 0}}, ThisUpdate: time.Unix(1e9, 0).UTC(), NextUpdate: next.UTC()}
	single.ID.Algorithm, single.ID.Serial = null, big.NewInt(serial)
	basic, err := asn1.Marshal(basicOCSPResponse{Data: ocspData{Responder: null, Produced: time.Unix(1e9, 0).UTC(), Responses: []ocspSingle{single}}, Algorithm: null})
	if err != nil {
		t.Fatal(err)
	}
	var r ocspResponse
	r.Bytes.Type, r.Bytes.Response = basicOCSP, basic
	der, err := asn1.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestStapleOf(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	good := response(t, 7, time.Unix(2e9, 0))
	if s, err := ReadStaple(good); err != nil || !s.NextUpdate.Equal(time.Unix(2e9, 0)) || len(s.Serials) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for name, c := range map[string]struct {
		staple, crt []byte
		problem     string
	}{
		"none":      {nil, crt, ""},
		"good":      {good, crt, ""},
		"other":     {response(t, 8, time.Unix(2e9, 0)), crt, "another certificate"},
		"not DER":   {[]byte("-----BEGIN"), crt, "not an OCSP response"},
		"longer":    {append(good[:len(good):len(good)], 0), crt, "not an OCSP response"},
		"try later": {[]byte{0x30, 3, 0x0a, 1, 3}, crt, "status 3"},
		"no leaf":   {good, nil, "no certificate"},
	} {
		der, problem := StapleOf(map[string][]byte{"tls.crt": c.crt, StapleKey: c.staple})
		if !strings.Contains(problem, c.problem) || (problem == "") != (c.problem == "") || (der != nil) != (name == "good") {
			t.Errorf("%s: %d bytes, %q", name, len(der), problem)
		}
	}
}

func FuzzReadStaple(f *testing.F) {
	f.Add([]byte{0x30, 3, 0x0a, 1, 3})
	f.Fuzz(func(t *testing.T, der []byte) {
		if s, err := ReadStaple(der); err == nil && len(s.Serials) == 0 {
			t.Error("a response about nothing")
		}
	})
}
