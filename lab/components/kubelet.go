// SPDX-License-Identifier: Apache-2.0

package components

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/lab/topology"
)

// Paths on a node.
const (
	// NodeConfigDir is where a node finds what WriteNode wrote.
	NodeConfigDir = "/etc/kubernetes"
	// CRISocket is the CRI server's socket on a node.
	CRISocket = "/run/weft-lab/cri.sock"
	// ResolvConf is what pods with dnsPolicy Default get.
	ResolvConf = "/etc/resolv.conf"
)

// Node is a cluster node: its name and its number in the plan.
type Node struct {
	Name   string
	Number int
	// Rootless says that the node runs in a user namespace.
	Rootless bool
}

// WriteNode writes a node's kubelet configuration and credentials into dir, which the node must see as NodeConfigDir.
func (c *Cluster) WriteNode(n Node, dir string) error {
	addrs := topology.Addrs(c.Plan.Node(n.Number))
	client, err := c.authority.Client("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	serving, err := c.authority.Server("system:node:"+n.Name, []string{n.Name}, addrs)
	if err != nil {
		return err
	}
	return writeFiles(dir, map[string][]byte{
		"ca.crt":       c.CA,
		"kubelet.crt":  serving.Cert,
		"kubelet.key":  serving.Key,
		"kubelet.conf": c.kubeconfig("system:node:"+n.Name, client),
		"kubelet.yaml": c.kubeletConfig(n),
		"admin.conf":   c.AdminKubeconfig(c.Server()),
	})
}

func (c *Cluster) kubeletConfig(n Node) []byte {
	f := func(name string) string { return filepath.Join(NodeConfigDir, name) }
	var dns strings.Builder
	for _, addr := range c.Plan.ServiceIP(10) {
		fmt.Fprintf(&dns, "\n- %q", addr)
	}
	listen := "0.0.0.0"
	if !c.Plan.Families.IPv4 {
		listen = "::"
	}
	return fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %q
healthzBindAddress: 127.0.0.1
tlsCertFile: %s
tlsPrivateKeyFile: %s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
clusterDomain: cluster.local
clusterDNS:%s
resolvConf: %s
containerRuntimeEndpoint: unix://%s
# Containers are plain processes: no cgroup is made or asked about.
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
featureGates: {KubeletInUserNamespace: true}
# A lab is small and watched: what changes should show at once.
nodeStatusUpdateFrequency: 4s
nodeStatusReportFrequency: 1m
nodeLeaseDurationSeconds: 12
syncFrequency: 30s
serializeImagePulls: false
kubeAPIQPS: 100
kubeAPIBurst: 200
registryPullQPS: 0
eventRecordQPS: 50
# The node's disk is the lab's tmpfs, which the whole machine shares: it says nothing about this node.
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
volumeStatsAggPeriod: 5m
maxPods: 250
# weft does all packet work.
makeIPTablesUtilChains: false
shutdownGracePeriod: 0s
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
logging: {verbosity: 1}
`, listen, f("kubelet.crt"), f("kubelet.key"), f("ca.crt"), dns.String(), ResolvConf, CRISocket)
}

// Kubelet is how a node's kubelet runs, on the node.
func (c *Cluster) Kubelet(n Node) Component {
	return Component{Name: "kubelet", Env: goMemory(50, 120), Args: []string{
		"--config=" + filepath.Join(NodeConfigDir, "kubelet.yaml"),
		"--kubeconfig=" + filepath.Join(NodeConfigDir, "kubelet.conf"),
		"--hostname-override=" + n.Name,
		"--node-ip=" + join(topology.Addrs(c.Plan.Node(n.Number))),
		"--node-labels=topology.kubernetes.io/zone=" + c.Plan.Zone(n.Number) + ",topology.kubernetes.io/region=" + c.Plan.Region(),
		"--root-dir=/var/lib/kubelet",
		"--cert-dir=/var/lib/kubelet/pki",
	}}
}

// Hosts is the /etc/hosts of a node: itself and the lab's other fixed hosts.
func (c *Cluster) Hosts(n Node) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	add := func(name string, addrs []netip.Prefix) {
		for _, a := range addrs {
			fmt.Fprintf(&b, "%s %s\n", a.Addr(), name)
		}
	}
	add(n.Name, c.Plan.Node(n.Number))
	add("control", c.Plan.Control())
	add("outside", c.Plan.Outside())
	return []byte(b.String())
}

// Resolv is the resolv.conf of a node, and through it of pods with dnsPolicy Default: the resolver of the world
// beyond the cluster.
func (c *Cluster) Resolv() []byte {
	var b strings.Builder
	for _, addr := range topology.Addrs(c.Plan.Outside()) {
		fmt.Fprintf(&b, "nameserver %s\n", addr)
	}
	return []byte(b.String())
}
