// SPDX-License-Identifier: Apache-2.0

// Package ingress tests Ingress as a user sees it: manifests in, real requests from outside the cluster through weft's
// gateway. There is a file for each group of ingress-nginx's annotations; what they expect is what ingress-nginx does. All
// share one lab. It imports labtest.
package ingress

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

var lab *labtest.Lab

func TestMain(m *testing.M) {
	labtest.Main(m, &lab, labtest.Name("ingress"), "--nodes", "2", "--set", "ingress.enabled=true", "--set", "ingress.takeOver=true",
		"--set", "ingress.replicas=1", "--set", "controller.replicas=1", "--set", "ingress.config.global-allowed-response-headers=X-Custom\\,X-Other")
}

// shop is the namespace of the tests' backends and Ingresses.
const shop = "shop"

// gateway is where the tests' requests go: weft's Ingress gateway, by way of this machine's 127.0.0.1.
type gateway struct {
	address     string // of the LoadBalancer
	http, https string // forwarded
}

// ready starts the backends once and gives the gateway.
var ready = func() func(t *testing.T) *gateway {
	var once sync.Once
	var g gateway
	return func(t *testing.T) *gateway {
		t.Helper()
		once.Do(func() {
			lab.Apply(t, "", `
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: ingress}
spec: {addresses: ["172.30.0.200-172.30.0.210", "fd00:30::200-fd00:30::2ff"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
`)
			lab.Apply(t, shop, backend("cart", 2)+backend("checkout", 1)+backend("errors", 1))
			for _, n := range []string{"cart", "checkout", "errors"} {
				lab.Rollout(t, shop, "deployment/"+n)
			}
			lab.Rollout(t, "kube-system", "deployment/weft-ingress")
			labtest.Eventually(t, time.Minute, func() error {
				g.address = lab.Get(t, "kube-system", "service/weft-ingress", "{.status.loadBalancer.ingress[0].ip}")
				if g.address == "" {
					return fmt.Errorf("the gateway's Service has no address")
				}
				return nil
			})
			g.http, g.https = forward(g.address+":80"), forward(g.address+":443")
		})
		if g.https == "" {
			t.Fatal("the gateway could not be reached in the first test")
		}
		return &g
	}
}()

var listening = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// forward runs `weft lab forward` for as long as the lab is there, and gives the address on this machine.
func forward(target string) string {
	bin, err := labtest.BinDir()
	if err != nil {
		return ""
	}
	cmd := exec.Command(filepath.Join(bin, "weft-lab"), "--name", lab.Name, "forward", target)
	said, err := cmd.StderrPipe()
	if err != nil || cmd.Start() != nil {
		return ""
	}
	go cmd.Wait()
	line, _ := bufio.NewReader(said).ReadString('\n')
	return listening.FindString(line)
}

// backend is a Deployment of the echo server and its Service; ports http (80), https (443) and grpc (50051).
func backend(name string, replicas int) string {
	return labtest.EchoDeployment(name, replicas) + fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: https, port: 443, targetPort: 8443}
---
`, name)
}

// spec is an Ingress in short. Paths are "PATH SERVICE[:PORT]", with the type Prefix unless it is written before: "Exact
// /a cart".
type spec struct {
	name        string
	class       string // "" is nginx
	host        string
	paths       []string
	secret      string // of TLS
	annotations map[string]string
	fallback    string // default backend
}

// apply makes an Ingress, for as long as the test runs.
func apply(t *testing.T, s spec) {
	t.Helper()
	var b strings.Builder
	class := s.class
	if class == "" {
		class = "nginx"
	}
	fmt.Fprintf(&b, "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: %s\n  annotations:\n", s.name)
	var names []string
	for n := range s.annotations {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		value, err := json.Marshal(s.annotations[n]) // which is YAML as well
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "    nginx.ingress.kubernetes.io/%s: %s\n", n, value)
	}
	fmt.Fprintf(&b, "spec:\n  ingressClassName: %s\n", class)
	if s.fallback != "" {
		fmt.Fprintf(&b, "  defaultBackend: {service: {name: %s, port: {number: 80}}}\n", s.fallback)
	}
	if s.secret != "" {
		fmt.Fprintf(&b, "  tls:\n  - {hosts: [%q], secretName: %s}\n", s.host, s.secret)
	}
	if len(s.paths) > 0 {
		fmt.Fprintf(&b, "  rules:\n  - host: %q\n    http:\n      paths:\n", s.host)
	}
	for _, p := range s.paths {
		words := strings.Fields(p)
		kind := "Prefix"
		if len(words) == 3 {
			kind, words = words[0], words[1:]
		}
		service, port, ok := strings.Cut(words[1], ":")
		if !ok {
			port = "80"
		}
		fmt.Fprintf(&b, "      - {path: %q, pathType: %s, backend: {service: {name: %s, port: {number: %s}}}}\n", words[0], kind, service, port)
	}
	lab.Apply(t, shop, b.String())
	t.Cleanup(func() {
		_, _ = lab.Run(context.Background(), "kubectl", "delete", "ingress", "-n", shop, s.name, "--ignore-not-found", "--wait=false")
	})
}

// answer is what came back. facts are what the echo server saw.
type answer struct {
	status int
	header http.Header
	body   string
	facts  facts
	tls    *tls.ConnectionState
}

type facts struct {
	Pod     string              `json:"pod"`
	Proto   string              `json:"proto"`
	Method  string              `json:"method"`
	Host    string              `json:"host"`
	Path    string              `json:"path"`
	Query   string              `json:"query"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body"`
	TLS     *struct {
		ServerName string `json:"serverName"`
		ClientCert string `json:"clientCert"`
	} `json:"tls"`
}

// saw is a header that the backend got.
func (a *answer) saw(name string) string {
	return strings.Join(a.facts.Headers[http.CanonicalHeaderKey(name)], ",")
}

// by is the Deployment whose pod answered.
func (a *answer) by() string {
	name, _, _ := strings.Cut(a.facts.Pod, "-")
	return name
}

// client is somebody outside.
type client struct {
	g     *gateway
	roots *x509.CertPool   // nil: any certificate
	cert  *tls.Certificate // its own
}

// do sends one request. Headers are "Name: value".
func (c *client) do(method, url, body string, headers ...string) (*answer, error) {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := c.g.http
			if strings.HasSuffix(addr, ":443") {
				to = c.g.https
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", to)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: c.roots == nil, RootCAs: c.roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	defer tr.CloseIdleConnections()
	if c.cert != nil {
		// Whether the server says that it would take it or not.
		tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body == "" {
		req.Body = http.NoBody
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ":")
		if strings.EqualFold(name, "Host") {
			req.Host = strings.TrimSpace(value)
		}
		req.Header.Add(name, strings.TrimSpace(value))
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, body: string(text), tls: resp.TLS}
	_ = json.Unmarshal(text, &a.facts)
	return a, nil
}

// outside is a client that trusts any certificate.
func outside(t *testing.T) *client {
	t.Helper()
	return &client{g: ready(t)}
}

// get sends a GET and fails the test when there is no answer.
func (c *client) get(t *testing.T, url string, headers ...string) *answer {
	t.Helper()
	a, err := c.do(http.MethodGet, url, "", headers...)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return a
}

// until sends GETs until the answer is as check wants it: an Ingress is served a moment after it is made.
func (c *client) until(t *testing.T, url string, check func(*answer) error, headers ...string) {
	t.Helper()
	labtest.Eventually(t, 60*time.Second, func() error {
		a, err := c.do(http.MethodGet, url, "", headers...)
		if err != nil {
			return fmt.Errorf("GET %s: %w", url, err)
		}
		if err := check(a); err != nil {
			return fmt.Errorf("GET %s: %w (status %d, headers %v, body %.300s)", url, err, a.status, a.header, a.body)
		}
		return nil
	})
}

// status wants a status.
func status(want int) func(*answer) error {
	return func(a *answer) error {
		if a.status != want {
			return fmt.Errorf("status %d, want %d", a.status, want)
		}
		return nil
	}
}

// from wants 200 of a Deployment.
func from(deployment string) func(*answer) error {
	return func(a *answer) error {
		if a.status != 200 || a.by() != deployment {
			return fmt.Errorf("status %d of %q, want 200 of %s", a.status, a.by(), deployment)
		}
		return nil
	}
}

// at wants 200 of a backend that saw a path.
func at(path string) func(*answer) error {
	return func(a *answer) error {
		if a.status != 200 || a.facts.Path != path {
			return fmt.Errorf("status %d with the path %q, want 200 with %s", a.status, a.facts.Path, path)
		}
		return nil
	}
}

// redirect wants a redirect.
func redirect(code int, location string) func(*answer) error {
	return func(a *answer) error {
		if a.status != code || a.header.Get("Location") != location {
			return fmt.Errorf("status %d to %q, want %d to %s", a.status, a.header.Get("Location"), code, location)
		}
		return nil
	}
}

// all wants every one.
func all(checks ...func(*answer) error) func(*answer) error {
	return func(a *answer) error {
		for _, c := range checks {
			if err := c(a); err != nil {
				return err
			}
		}
		return nil
	}
}

// header wants a header of the answer.
func header(name, want string) func(*answer) error {
	return func(a *answer) error {
		if got := a.header.Get(name); got != want {
			return fmt.Errorf("%s is %q, want %q", name, got, want)
		}
		return nil
	}
}

// saw wants a header of the request as the backend got it.
func saw(name, want string) func(*answer) error {
	return func(a *answer) error {
		if got := a.saw(name); got != want {
			return fmt.Errorf("the backend saw %s %q, want %q", name, got, want)
		}
		return nil
	}
}

// event waits for an Event on an Ingress.
func event(t *testing.T, ingress, reason, part string) {
	t.Helper()
	labtest.Eventually(t, 60*time.Second, func() error {
		out, err := lab.Run(context.Background(), "kubectl", "get", "events", "-n", shop, "--field-selector", "involvedObject.name="+ingress+",reason="+reason,
			"-o", "jsonpath={.items[*].message}")
		if err != nil {
			return err
		}
		if !strings.Contains(out, part) {
			return fmt.Errorf("no event %s of Ingress %s with %q: %s", reason, ingress, part, out)
		}
		return nil
	})
}

// pair is a certificate with its key.
type pair struct {
	cert, key []byte // PEM
	leaf      *x509.Certificate
	private   *ecdsa.PrivateKey
}

// certify makes a certificate; by is nil for one that vouches for itself and for others.
func certify(t *testing.T, by *pair, name string, hosts ...string) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: hosts,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: by == nil, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.leaf, by.private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		leaf: leaf, private: key,
	}
}

func (p *pair) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.leaf)
	return pool
}

func (p *pair) own(t *testing.T) *tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// secret makes a Secret.
func secret(t *testing.T, name, kind string, data map[string][]byte) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\ntype: %s\ndata:\n", name, kind)
	for k, v := range data {
		fmt.Fprintf(&b, "  %s: %s\n", k, base64.StdEncoding.EncodeToString(v))
	}
	lab.Apply(t, shop, b.String())
}

// tlsSecret makes the Secret of a host.
func tlsSecret(t *testing.T, name string, p *pair) {
	t.Helper()
	secret(t, name, "kubernetes.io/tls", map[string][]byte{"tls.crt": p.cert, "tls.key": p.key})
}
