// SPDX-License-Identifier: Apache-2.0

// Package components says how each part of Kubernetes is started: its arguments, its configuration, its
// certificates. It writes the files that they read, and starts nothing.
//
// The components are upstream's own, unmodified; what is set here makes them start fast, stay small and trust one
// another. It imports topology and pki.
package components

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/pki"
	"github.com/weft-net/weft/lab/topology"
)

// Names of the control plane's components, in the order in which they are started.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
)

// APIPort is the API server's port in the lab.
const APIPort = 6443

// Component is how to run one component.
type Component struct {
	Name string
	Args []string // after the component's name
	Env  []string
}

// Cluster is the identity of one cluster: its authorities and the files that hold them.
type Cluster struct {
	Plan topology.Plan
	Dir  string // of the control plane's files

	// Admin is a client certificate that may do anything, and CA what it and its clients trust.
	Admin pki.Pair
	CA    []byte

	name      string
	authority *pki.Authority
}

// NewCluster makes the certificates and configurations of a control plane, and writes them below dir.
func NewCluster(name string, plan topology.Plan, dir string) (*Cluster, error) {
	authority, err := pki.NewAuthority("weft lab " + name)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Plan: plan, Dir: dir, CA: authority.Cert, name: name, authority: authority}
	if err := c.write(); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	return c, nil
}

func (c *Cluster) write() (err error) {
	front, err := pki.NewAuthority("weft lab front proxy")
	if err != nil {
		return err
	}
	private, public, err := pki.SigningKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt":       c.authority.Cert,
		"front-ca.crt": front.Cert,
		"sa.key":       private,
		"sa.pub":       public,
	}
	pair := func(name string, p pki.Pair, e error) {
		if e != nil && err == nil {
			err = e
		}
		files[name+".crt"], files[name+".key"] = p.Cert, p.Key
	}
	addrs := append(topology.Addrs(c.Plan.Control()), c.Plan.ServiceIP(1)...)
	addrs = append(addrs, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", "control"}
	server, e := c.authority.Server("kube-apiserver", names, addrs)
	pair("apiserver", server, e)
	toKubelet, e := c.authority.Client("kube-apiserver-kubelet-client", "system:masters")
	pair("kubelet-client", toKubelet, e)
	proxy, e := front.Client("front-proxy-client")
	pair("front-client", proxy, e)
	c.Admin, e = c.authority.Client("admin", "system:masters")
	pair("admin", c.Admin, e)
	for _, component := range []string{ControllerManager, Scheduler} {
		client, e := c.authority.Client("system:" + component)
		if e != nil {
			return e
		}
		serving, e := c.authority.Server(component, []string{"localhost"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
		pair(component, serving, e)
		files[component+".conf"] = c.kubeconfig("system:"+component, client)
	}
	if err != nil {
		return err
	}
	files["admin.conf"] = c.AdminKubeconfig(c.Server())
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	return writeFiles(c.Dir, files)
}

// Address is the API server's address in the lab.
func (c *Cluster) Address() netip.AddrPort {
	return netip.AddrPortFrom(c.Plan.Control()[0].Addr(), APIPort)
}

// Server is the API server's URL in the lab.
func (c *Cluster) Server() string { return "https://" + c.Address().String() }

// AdminKubeconfig is a kubeconfig that may do anything, for the API server at this URL.
func (c *Cluster) AdminKubeconfig(server string) []byte {
	return pki.Kubeconfig("weft-lab-"+c.name, "admin", server, c.CA, c.Admin)
}

func (c *Cluster) kubeconfig(user string, client pki.Pair) []byte {
	return pki.Kubeconfig("lab", user, c.Server(), c.CA, client)
}

func writeFiles(dir string, files map[string][]byte) error {
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func join[T fmt.Stringer](items []T) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = item.String()
	}
	return strings.Join(texts, ",")
}

// Control is the control plane's components, in the order in which to start them.
func (c *Cluster) Control() []Component {
	f := func(name string) string { return filepath.Join(c.Dir, name) }
	controller := func(name string, more ...string) []string {
		return append([]string{
			"--kubeconfig=" + f(name+".conf"),
			"--authentication-kubeconfig=" + f(name+".conf"),
			"--authorization-kubeconfig=" + f(name+".conf"),
			"--tls-cert-file=" + f(name+".crt"),
			"--tls-private-key-file=" + f(name+".key"),
			"--bind-address=127.0.0.1",
			"--leader-elect=false",
			"--profiling=false",
		}, more...)
	}
	manager := controller(ControllerManager,
		"--service-account-private-key-file="+f("sa.key"),
		"--root-ca-file="+f("ca.crt"),
		"--use-service-account-credentials=true",
		"--allocate-node-cidrs=true",
		"--cluster-cidr="+join(c.Plan.PodRanges()),
		"--service-cluster-ip-range="+join(c.Plan.ServiceRanges()),
		"--kube-api-qps=200", "--kube-api-burst=400",
		// A node that is cut off should be noticed while somebody watches.
		"--node-monitor-period=2s",
		"--node-monitor-grace-period=16s",
		// Nothing in a lab signs certificates on request or provisions volumes from a cloud.
		"--controllers=*,-bootstrap-signer-controller,-token-cleaner-controller,-certificatesigningrequest-signing-controller,-certificatesigningrequest-approving-controller",
	)
	// Each family has its own flag where there are two, and the plain one where there is one.
	switch c.Plan.Families {
	case topology.Families{IPv4: true}:
		manager = append(manager, "--node-cidr-mask-size=24")
	case topology.Families{IPv6: true}:
		manager = append(manager, "--node-cidr-mask-size=64")
	default:
		manager = append(manager, "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64")
	}
	return []Component{
		{Name: Etcd, Env: goMemory(60, 100), Args: []string{"--data-dir=" + f("etcd")}},
		{Name: APIServer, Env: goMemory(100, 400), Args: []string{
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + c.Plan.Control()[0].Addr().String(),
			"--secure-port=" + fmt.Sprint(APIPort),
			"--client-ca-file=" + f("ca.crt"),
			"--tls-cert-file=" + f("apiserver.crt"),
			"--tls-private-key-file=" + f("apiserver.key"),
			"--kubelet-certificate-authority=" + f("ca.crt"),
			"--kubelet-client-certificate=" + f("kubelet-client.crt"),
			"--kubelet-client-key=" + f("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--proxy-client-cert-file=" + f("front-client.crt"),
			"--proxy-client-key-file=" + f("front-client.key"),
			"--requestheader-client-ca-file=" + f("front-ca.crt"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-signing-key-file=" + f("sa.key"),
			"--service-account-key-file=" + f("sa.pub"),
			"--service-cluster-ip-range=" + join(c.Plan.ServiceRanges()),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--profiling=false",
			"--event-ttl=1h",
			// No component's copy needs to be older than a lab's restart of itself.
			"--shutdown-delay-duration=0s",
			"--watch-cache-sizes=",
		}},
		{Name: ControllerManager, Env: goMemory(50, 150), Args: manager},
		{Name: Scheduler, Env: goMemory(50, 100), Args: controller(Scheduler, "--kube-api-qps=200", "--kube-api-burst=400")},
	}
}

// goMemory trades processor time for memory: collect garbage when the heap has grown by percent, and harder near the
// limit, in MiB. The limit is for small machines: where there is more memory it grows with it, for a component that
// holds more than that would do nothing but collect.
func goMemory(percent, limit int) []string {
	var machine unix.Sysinfo_t
	if unix.Sysinfo(&machine) == nil {
		limit = max(limit, limit*int(machine.Totalram>>20*uint64(machine.Unit))/smallMachine)
	}
	return []string{fmt.Sprintf("GOGC=%d", percent), fmt.Sprintf("GOMEMLIMIT=%dMiB", limit)}
}

// smallMachine is the memory, in MiB, of the machines that the components' limits are made for.
const smallMachine = 4096
