// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// TestMutualTLS shakes hands as an API server and its client do.
func TestMutualTLS(t *testing.T) {
	ca, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("other")
	if err != nil {
		t.Fatal(err)
	}
	serving, err := ca.Server("server", []string{"localhost"}, []netip.Addr{netip.MustParseAddr("fd00::1")})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		signer *Authority
		ok     bool
	}{{ca, true}, {other, false}} {
		client, err := c.signer.Client("system:node:node1", "system:nodes")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"localhost", "fd00::1"} {
			subject, err := handshake(t, ca, serving, client, name)
			if (err == nil) != c.ok {
				t.Errorf("%s: %v", name, err)
			}
			if c.ok && subject != "CN=system:node:node1,O=system:nodes" {
				t.Errorf("the server saw %s", subject)
			}
		}
		if _, err := handshake(t, ca, serving, client, "elsewhere"); err == nil {
			t.Error("a name that is not the server's was believed")
		}
	}
}

// handshake gives the client's subject as the server saw it.
func handshake(t *testing.T, ca *Authority, serving, client Pair, name string) (string, error) {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.Cert) {
		t.Fatal("no certificate in the authority's PEM")
	}
	pair := func(p Pair) []tls.Certificate {
		cert, err := tls.X509KeyPair(p.Cert, p.Key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{cert}
	}
	a, b := net.Pipe()
	defer a.Close()
	server := tls.Server(a, &tls.Config{Certificates: pair(serving), ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert})
	clientErr := make(chan error, 1)
	go func() {
		defer b.Close()
		conn := tls.Client(b, &tls.Config{Certificates: pair(client), RootCAs: roots, ServerName: name})
		err := conn.Handshake()
		if err == nil {
			_, err = io.ReadAll(conn)
		}
		clientErr <- err
	}()
	if err := server.Handshake(); err != nil {
		return "", err
	}
	subject := server.ConnectionState().PeerCertificates[0].Subject.String()
	server.Close()
	return subject, <-clientErr
}

func TestKubeconfigHoldsEverything(t *testing.T) {
	text := string(Kubeconfig("lab", "admin", "https://127.0.0.1:6443", []byte("authority"), Pair{Cert: []byte("cert"), Key: []byte("key")}))
	for _, want := range []string{"server: https://127.0.0.1:6443", "current-context: lab"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, inline := range []string{"authority", "cert", "key"} {
		if !strings.Contains(text, "-data: "+base64.StdEncoding.EncodeToString([]byte(inline))) {
			t.Errorf("no %s in\n%s", inline, text)
		}
	}
}

func TestSigningKeyIsAPair(t *testing.T) {
	private, public, err := SigningKey()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(private), "EC PRIVATE KEY") || !strings.Contains(string(public), "PUBLIC KEY") {
		t.Errorf("got %s and %s", private, public)
	}
}
