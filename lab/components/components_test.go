// SPDX-License-Identifier: Apache-2.0

package components

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/lab/topology"
	"sigs.k8s.io/yaml"
)

func cluster(t *testing.T, f topology.Families) *Cluster {
	t.Helper()
	c, err := NewCluster("test", topology.Plan{Families: f, Segments: 1}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestFilesExist checks that every file that an argument names was written.
func TestFilesExist(t *testing.T) {
	c := cluster(t, topology.Families{IPv4: true, IPv6: true})
	for _, component := range c.Control() {
		for _, arg := range component.Args {
			_, value, _ := strings.Cut(arg, "=")
			if strings.HasPrefix(value, c.Dir) && !strings.HasSuffix(value, "/etcd") { // etcd makes its own directory
				if info, err := os.Stat(value); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %s: %v", component.Name, arg, err)
				}
			}
		}
	}
}

func TestFamilies(t *testing.T) {
	for f, want := range map[topology.Families][]string{
		{IPv4: true, IPv6: true}: {"--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"},
		{IPv4: true}:             {"--cluster-cidr=10.244.0.0/16", "--node-cidr-mask-size=24"},
		{IPv6: true}:             {"--cluster-cidr=fd00:10:244::/56", "--node-cidr-mask-size=64"},
	} {
		c := cluster(t, f)
		control := c.Control()
		manager := control[slices.IndexFunc(control, func(c Component) bool { return c.Name == ControllerManager })]
		for _, arg := range want {
			if !slices.Contains(manager.Args, arg) {
				t.Errorf("%s: no %s in %v", f, arg, manager.Args)
			}
		}
	}
	v6 := cluster(t, topology.Families{IPv6: true})
	if got := v6.Server(); got != "https://[fd00:30::3]:6443" {
		t.Errorf("server: %s", got)
	}
}

func TestNode(t *testing.T) {
	c := cluster(t, topology.Families{IPv4: true, IPv6: true})
	dir := t.TempDir()
	n := Node{Name: "node2", Number: 2}
	if err := c.WriteNode(n, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "kubelet.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Kind         string            `json:"kind"`
		ClusterDNS   []string          `json:"clusterDNS"`
		EvictionHard map[string]string `json:"evictionHard"`
		TLSCertFile  string            `json:"tlsCertFile"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if config.Kind != "KubeletConfiguration" || !slices.Equal(config.ClusterDNS, []string{"10.96.0.10", "fd00:10:96::a"}) ||
		config.EvictionHard["nodefs.available"] != "0%" {
		t.Errorf("configuration: %+v", config)
	}
	for _, name := range []string{filepath.Base(config.TLSCertFile), "kubelet.conf", "ca.crt", "admin.conf"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	args := strings.Join(c.Kubelet(n).Args, " ")
	for _, want := range []string{"--node-ip=172.30.0.12,fd00:30::12", "zone=zone-b"} {
		if !strings.Contains(args, want) {
			t.Errorf("no %s in %s", want, args)
		}
	}
	hosts := string(c.Hosts(n))
	for _, want := range []string{"172.30.0.12 node2\n", "fd00:30::3 control\n"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("no %q in %s", want, hosts)
		}
	}
	if got := string(c.Resolv()); got != "nameserver 172.30.0.2\nnameserver fd00:30::2\n" {
		t.Errorf("resolv.conf: %q", got)
	}
}
