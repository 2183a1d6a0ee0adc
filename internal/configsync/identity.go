// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"time"
)

// The keys of the Secrets: the authority's, and those of the pods (type kubernetes.io/tls).
const (
	CertificateKey = "tls.crt"
	PrivateKeyKey  = "tls.key"
	AuthorityKey   = "ca.crt"

	nextCertificateKey = "next.crt"
	nextPrivateKeyKey  = "next.key"
)

// How long certificates are good for. Each is renewed when a third of that is left. An authority's successor is known
// to all before it signs anything: it is made when a third of the time is left, and takes over when a sixth is.
const (
	authorityLife = 3 * 365 * 24 * time.Hour
	leafLife      = 90 * 24 * time.Hour
	skew          = 5 * time.Minute // clocks differ
)

// serverName is in the server's certificate, whatever address it is reached by.
const serverName = "weft-controller"

// Authority signs the certificates of the stream's two ends.
type Authority struct {
	cert   *x509.Certificate
	key    crypto.Signer
	bundle []byte // PEM of all authorities that are trusted
}

// LoadAuthority reads the authority's Secret, whose data it makes, or brings up to date, where need be: changed tells
// that the data returned must be written before anything that the Authority signs is used. data is not changed.
func LoadAuthority(data map[string][]byte, now time.Time) (a *Authority, out map[string][]byte, changed bool, err error) {
	out = make(map[string][]byte, len(data))
	for k, v := range data {
		out[k] = v
	}
	cert, key, err := parsePair(out[CertificateKey], out[PrivateKeyKey])
	if err == nil && !now.Before(cert.NotAfter) {
		err = errors.New("it has expired")
	}
	if err != nil {
		if len(data) > 0 && len(out[CertificateKey]) > 0 && cert == nil {
			return nil, nil, false, fmt.Errorf("%s and %s of the authority's Secret: %w: delete the Secret, and a new one is made", CertificateKey, PrivateKeyKey, err)
		}
		out = make(map[string][]byte)
		if out[CertificateKey], out[PrivateKeyKey], err = newAuthority(now); err != nil {
			return nil, nil, false, err
		}
		out[AuthorityKey] = out[CertificateKey]
		changed = true
		if cert, key, err = parsePair(out[CertificateKey], out[PrivateKeyKey]); err != nil {
			return nil, nil, false, err
		}
	}
	left := cert.NotAfter.Sub(now)
	if left < authorityLife/3 && len(out[nextCertificateKey]) == 0 {
		if out[nextCertificateKey], out[nextPrivateKeyKey], err = newAuthority(now); err != nil {
			return nil, nil, false, err
		}
		changed = true
	}
	if left < authorityLife/6 && len(out[nextCertificateKey]) > 0 {
		nextCert, nextKey, err := parsePair(out[nextCertificateKey], out[nextPrivateKeyKey])
		if err != nil {
			return nil, nil, false, fmt.Errorf("%s of the authority's Secret: %w: delete the key, and a new one is made", nextCertificateKey, err)
		}
		// The bundle keeps the old one until it has expired.
		out[AuthorityKey] = append(slices.Clone(out[nextCertificateKey]), out[CertificateKey]...)
		out[CertificateKey], out[PrivateKeyKey] = out[nextCertificateKey], out[nextPrivateKeyKey]
		delete(out, nextCertificateKey)
		delete(out, nextPrivateKeyKey)
		cert, key, changed = nextCert, nextKey, true
	}
	bundle := trusted(now, out[CertificateKey], out[nextCertificateKey], out[AuthorityKey])
	if !bytes.Equal(bundle, out[AuthorityKey]) {
		out[AuthorityKey], changed = bundle, true
	}
	return &Authority{cert: cert, key: key, bundle: bundle}, out, changed, nil
}

// trusted is the certificates of all texts that have not expired, each once.
func trusted(now time.Time, texts ...[]byte) []byte {
	var out []byte
	seen := map[string]bool{}
	for _, text := range texts {
		for {
			var block *pem.Block
			if block, text = pem.Decode(text); block == nil {
				break
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil || seen[string(block.Bytes)] || now.After(c.NotAfter) {
				continue
			}
			seen[string(block.Bytes)] = true
			out = append(out, pem.EncodeToMemory(block)...)
		}
	}
	return out
}

func newAuthority(now time.Time) (cert, key []byte, err error) {
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "weft gateway configuration"},
		NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	return sign(template, nil, nil)
}

// sign makes a key and a certificate for it; with no parent the certificate signs itself.
func sign(template, parent *x509.Certificate, signer crypto.Signer) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, signer = template, key
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

func parsePair(certPEM, keyPEM []byte) (*x509.Certificate, crypto.Signer, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, errors.New("the key can't sign")
	}
	return pair.Leaf, key, nil
}

// identityURL names a gateway in its pods' certificates.
func identityURL(gateway string) *url.URL {
	return &url.URL{Scheme: "weft", Host: "gateway", Path: "/" + gateway}
}

// identity is the gateway that a verified client certificate is for.
func identity(c *x509.Certificate) (string, error) {
	if len(c.URIs) == 1 && c.URIs[0].Scheme == "weft" && c.URIs[0].Host == "gateway" && len(c.URIs[0].Path) > 1 {
		return c.URIs[0].Path[1:], nil
	}
	return "", errors.New("the client certificate names no gateway")
}

// Client gives the data of the Secret by which the pods of a gateway say who they are. What is there stays while it is
// good; changed tells that it must be written. data is not changed.
func (a *Authority) Client(gateway string, data map[string][]byte, now time.Time) (out map[string][]byte, changed bool, err error) {
	tickets, due := renewTickets(data[SessionTicketsKey], now)
	if a.current(gateway, data, now) {
		if due {
			data = maps.Clone(data)
			data[SessionTicketsKey] = tickets
		}
		return data, due, nil
	}
	cert, key, err := sign(&x509.Certificate{
		Subject:   pkix.Name{CommonName: "weft gateway"},
		URIs:      []*url.URL{identityURL(gateway)},
		NotBefore: now.Add(-skew), NotAfter: earlier(now.Add(leafLife), a.cert.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, a.cert, a.key)
	if err != nil {
		return nil, false, fmt.Errorf("certificate for gateway %s: %w", gateway, err)
	}
	return map[string][]byte{CertificateKey: cert, PrivateKeyKey: key, AuthorityKey: a.bundle, SessionTicketsKey: tickets}, true, nil
}

func (a *Authority) current(gateway string, data map[string][]byte, now time.Time) bool {
	cert, _, err := parsePair(data[CertificateKey], data[PrivateKeyKey])
	if err != nil || !bytes.Equal(data[AuthorityKey], a.bundle) || cert.NotAfter.Sub(now) < leafLife/3 {
		return false
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return false
	}
	name, err := identity(cert)
	return err == nil && name == gateway
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ServerConfig is the server's side of TLS: a certificate of its own, good for as long as the Authority's, and the
// demand for a client's.
func (a *Authority) ServerConfig(now time.Time) (*tls.Config, error) {
	cert, key, err := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: now.Add(-skew), NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the configuration stream: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.bundle)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		SessionTicketsDisabled: true, // a resumed session would skip the check of a client that has lost its right
	}, nil
}

// clientConfig is a pod's side of TLS, of the data of its Secret.
func clientConfig(data map[string][]byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(data[CertificateKey], data[PrivateKeyKey])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data[AuthorityKey]) {
		return nil, fmt.Errorf("%s has no certificate", AuthorityKey)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: serverName}, nil
}
