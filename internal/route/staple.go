// SPDX-License-Identifier: Apache-2.0

package route

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// StapleKey is the key of a TLS Secret under which an OCSP response (RFC 6960, in DER) for its certificate may lie.
const StapleKey = "tls.ocsp-staple"

// Staple is what a gateway needs to know of an OCSP response; its signature is for clients to check.
type Staple struct {
	Serials    []*big.Int // of the certificates that it is about
	NextUpdate time.Time  // when clients stop to believe it; zero is never
}

// The parts of RFC 6960 section 4.2.1 that matter here.
type ocspResponse struct {
	Status asn1.Enumerated
	Bytes  struct {
		Type     asn1.ObjectIdentifier
		Response []byte
	} `asn1:"explicit,tag:0,optional"`
}

type basicOCSPResponse struct {
	Data      ocspData
	Algorithm asn1.RawValue
	Signature asn1.BitString
	Chain     asn1.RawValue `asn1:"explicit,tag:0,optional"`
}

type ocspData struct {
	Version    int `asn1:"optional,default:0,explicit,tag:0"`
	Responder  asn1.RawValue
	Produced   time.Time `asn1:"generalized"`
	Responses  []ocspSingle
	Extensions asn1.RawValue `asn1:"explicit,tag:1,optional"`
}

type ocspSingle struct {
	ID struct {
		Algorithm asn1.RawValue
		Name, Key []byte
		Serial    *big.Int
	}
	Status     asn1.RawValue
	ThisUpdate time.Time     `asn1:"generalized"`
	NextUpdate time.Time     `asn1:"generalized,explicit,tag:0,optional"`
	Extensions asn1.RawValue `asn1:"explicit,tag:1,optional"`
}

var basicOCSP = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}

// ReadStaple reads an OCSP response in DER, or says why it can't be stapled.
func ReadStaple(der []byte) (Staple, error) {
	var r ocspResponse
	if rest, err := asn1.Unmarshal(der, &r); err != nil || len(rest) > 0 {
		return Staple{}, errors.New("it is not an OCSP response in DER")
	}
	if r.Status != 0 {
		return Staple{}, fmt.Errorf("the OCSP responder has no answer: status %d", r.Status)
	}
	var b basicOCSPResponse
	if !r.Bytes.Type.Equal(basicOCSP) {
		return Staple{}, fmt.Errorf("an OCSP response of type %s is not known", r.Bytes.Type)
	}
	if rest, err := asn1.Unmarshal(r.Bytes.Response, &b); err != nil || len(rest) > 0 || len(b.Data.Responses) == 0 {
		return Staple{}, errors.New("it is not an OCSP response in DER")
	}
	var out Staple
	for _, s := range b.Data.Responses {
		out.Serials = append(out.Serials, s.ID.Serial)
		if out.NextUpdate.IsZero() || !s.NextUpdate.IsZero() && s.NextUpdate.Before(out.NextUpdate) {
			out.NextUpdate = s.NextUpdate
		}
	}
	return out, nil
}

// StapleOf gives the OCSP response of a TLS Secret's data that goes with its certificate; nil when there is none, or one
// that can't be stapled: problem says why.
func StapleOf(data map[string][]byte) (der []byte, problem string) {
	der = data[StapleKey]
	if len(der) == 0 {
		return nil, ""
	}
	s, err := ReadStaple(der)
	if err != nil {
		return nil, fmt.Sprintf("%s is left out: %v", StapleKey, err)
	}
	block, _ := pem.Decode(data["tls.crt"])
	if block == nil {
		return nil, StapleKey + " is left out: there is no certificate in tls.crt"
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Sprintf("%s is left out: tls.crt: %v", StapleKey, err)
	}
	if !slices.ContainsFunc(s.Serials, func(n *big.Int) bool { return n.Cmp(leaf.SerialNumber) == 0 }) {
		return nil, StapleKey + " is left out: it is about another certificate than tls.crt's first: fetch it anew"
	}
	return der, ""
}
