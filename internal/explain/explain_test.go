// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/offline"
)

func load(t *testing.T, files ...string) *World {
	t.Helper()
	c, err := offline.Load(offline.Options{Namespace: "shop"}, files...)
	if err != nil {
		t.Fatal(err)
	}
	return worldOf(t, c)
}

func worldOf(t *testing.T, c *offline.Cluster) *World {
	t.Helper()
	w, err := NewWorld(c.Delta, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for k, pods := range c.Workloads {
		w.Workloads[Workload(k)] = pods
	}
	return w
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	goldentest.Compare(t, filepath.Join("testdata", name), got)
}

func TestWhy(t *testing.T) {
	w := load(t, "testdata/shop.yaml")
	for _, tc := range []struct{ name, from, to, proto string }{
		{"service", "web", "cart", "tcp"},
		{"service-port-name", "web", "svc/cart:http", "tcp"},
		{"service-no-port", "web", "cart:81", "tcp"},
		{"service-no-endpoint", "web", "lost", "tcp"},
		{"blocked-ingress", "web", "pod/db-0:5432", "tcp"},
		{"allowed-ingress", "cart-1", "pod/db-0:5432", "tcp"},
		{"headless-name", "cart-1", "db.shop:5432", "tcp"},
		{"name", "web", "cart.shop.svc.cluster.local:80", "tcp"},
		{"name-no-such", "web", "kart.shop.svc.cluster.local:80", "tcp"},
		{"dns-blocked", "ops/probe", "cart.shop:80", "tcp"},
		{"alias", "web", "partner:443", "tcp"},
		{"outside-name", "web", "example.com:443", "tcp"},
		{"admin-deny", "web", "outside:5432", "tcp"},
		{"from-outside", "outside", "svc/front", "tcp"},
		{"from-outside-no-way", "outside", "svc/cart", "tcp"},
		{"node-probe", "node/n2", "pod/db-0:5432", "tcp"},
		{"other-node", "node/n1", "pod/db-0:5432", "tcp"},
		{"cluster-ip", "web", "10.96.0.20:80", "tcp"},
		{"udp-blocked", "cart-1", "pod/db-0:53", "udp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proto, err := model.ParseProtocol(tc.proto)
			if err != nil {
				t.Fatal(err)
			}
			from, err := w.ParseTarget(tc.from, "shop", false)
			if err != nil {
				t.Fatal(err)
			}
			to, err := w.ParseTarget(tc.to, "shop", true)
			if err != nil {
				t.Fatal(err)
			}
			a, err := w.Why(from, to, proto)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			fmt.Fprintf(&b, "$ weft why %s %s\n", tc.from, tc.to)
			Print(&b, a)
			golden(t, "why-"+tc.name+".txt", b.String())
		})
	}
}

// A policy may let a pod out by name.
func TestWhyByName(t *testing.T) {
	w := load(t, "testdata/names.yaml")
	for _, tc := range []struct {
		to      string
		allowed bool
		says    string
	}{
		{"api.partner.example:443", true, "rule egress[1] \"partners\": Accept TCP 443 to the addresses of *.partner.example"},
		{"API.partner.example.:443", true, "*.partner.example"},
		{"partner.example:443", false, "Deny any port"},
		{"api.partner.example:80", false, "Deny any port"},
		{"billing:443", true, "the addresses of *.partner.example"}, // an ExternalName
		{"outside:443", false, "Deny any port"},
	} {
		from, err := w.ParseTarget("web", "shop", false)
		if err != nil {
			t.Fatal(err)
		}
		to, err := w.ParseTarget(tc.to, "shop", true)
		if err != nil {
			t.Fatal(err)
		}
		a, err := w.Why(from, to, model.TCP)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		Print(&b, a)
		if a.Allowed != tc.allowed || !strings.Contains(b.String(), tc.says) {
			t.Errorf("%s: allowed %v, want %v with %q:\n%s", tc.to, a.Allowed, tc.allowed, tc.says, &b)
		}
	}
}

func TestQuestionsThatCannotBeAnswered(t *testing.T) {
	w := load(t, "testdata/shop.yaml")
	for _, tc := range []struct {
		from, to, err string
	}{
		{"svc/cart", "web", "is a Service: connections come from pods"},
		{"nobody", "web", "there is no pod, workload or Service shop/nobody"},
		{"prob", "web", "there is no pod"},
		{"web", "deploy/cart", "did you mean pod/shop/cart-1"},
		{"web", "node/n9", "there is no node n9"},
		{"web", "svc/cart:grpc", `there is no TCP port named "grpc"; Service shop/cart has port 80/TCP (http)`},
		{"a/b/c/d", "web", "want KIND/NAMESPACE/NAME"},
		{"example.com", "web", "a source is a pod"},
	} {
		from, err := w.ParseTarget(tc.from, "shop", false)
		if err == nil {
			var to *Target
			if to, err = w.ParseTarget(tc.to, "shop", true); err == nil {
				_, err = w.Why(from, to, model.TCP)
			}
		}
		if err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s to %s: %v, want %q", tc.from, tc.to, err, tc.err)
		}
	}
}

func TestParseTargetPorts(t *testing.T) {
	w := load(t, "testdata/shop.yaml")
	for text, want := range map[string]string{
		"10.1.1.2:80": "10.1.1.2 80", "10.1.1.2": "10.1.1.2 0", "[fd00::1]:80": "fd00::1 80", "fd00::1": "fd00::1 0", "[fd00::1]": "fd00::1 0",
	} {
		got, err := w.ParseTarget(text, "shop", true)
		if err != nil || fmt.Sprint(got.Addr, " ", got.Port) != want {
			t.Errorf("%s: %+v, %v, want %s", text, got, err, want)
		}
	}
}

func TestMatrix(t *testing.T) {
	w := load(t, "testdata/shop.yaml")
	var b bytes.Buffer
	w.Matrix("shop", "ops").WriteTable(&b)
	golden(t, "matrix.txt", b.String())
	b.Reset()
	w.Matrix("shop").WriteDOT(&b)
	golden(t, "matrix.dot", b.String())
	b.Reset()
	w.Matrix("shop").WriteSVG(&b)
	golden(t, "matrix.svg", b.String())
}

func TestDiff(t *testing.T) {
	shop, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "after.yaml")
	after := strings.Replace(string(shop), "matchLabels: {app: cart}}}]\n    ports: [{port: sql}]", "matchLabels: {app: web}}}]\n    ports: [{port: 5432}, {port: 22}]", 1)
	if err := os.WriteFile(file, []byte(after), 0o600); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(Diff(load(t, "testdata/shop.yaml"), load(t, file), "shop").Differences)
	if want := "[- shop/cart-1, shop/cart-2 → shop/db-0: TCP 5432 + shop/web → shop/db-0: TCP 22, TCP 5432]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if d := Diff(load(t, "testdata/shop.yaml"), load(t, "testdata/shop.yaml")).Differences; len(d) > 0 {
		t.Errorf("no change opens or closes %v", d)
	}
}

func TestDescribe(t *testing.T) {
	w := load(t, "testdata/shop.yaml")
	var b bytes.Buffer
	PrintPolicy(&b, w.Describe("shop", "db"))
	PrintPolicy(&b, w.Describe("shop", "no-outside-sql"))
	for _, p := range []string{"db-0", "cart-1"} {
		PrintPod(&b, w.DescribePod(w.all.Pods[model.Name{Namespace: "shop", Name: p}]))
	}
	golden(t, "describe.txt", b.String())
}
