// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podInterface is what a pod's interface is called.
const podInterface = "eth0"

// cniTimeout bounds one plugin chain. kubelet gives RunPodSandbox two minutes in all.
const cniTimeout = 60 * time.Second

// network wires pods through the CNI plugins that the node's configuration directory names. The directory is read
// for every pod, so a plugin that is installed, changed or removed counts from then on.
type network struct {
	confDir string
	cni     *libcni.CNIConfig

	mu       sync.Mutex // of the cached answer to STATUS
	asked    time.Time
	answer   error
	answerOf string
}

func newNetwork(cfg *Config) *network {
	return &network{
		confDir: cfg.CNIConfDir,
		cni:     libcni.NewCNIConfigWithCacheDir(cfg.CNIBinDirs, filepath.Join(cfg.Root, "cni"), nil),
	}
}

// errNoNetwork is wrapped when no CNI configuration is there.
var errNoNetwork = errors.New("no pod network is installed")

// config returns the first configuration of the directory in the order of names, as every runtime does.
func (n *network) config() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.confDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	sort.Strings(files)
	var broken error
	for _, f := range files {
		list, err := readCNIConfig(f)
		if err == nil {
			return list, nil
		}
		broken = errors.Join(broken, fmt.Errorf("CNI configuration %s: %w", f, err))
	}
	if broken != nil {
		return nil, broken
	}
	return nil, fmt.Errorf("%w: %s holds no CNI configuration (weft writes one when its node agent runs here)",
		errNoNetwork, n.confDir)
}

func readCNIConfig(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.ConfListFromFile(file)
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(body, &conf); err != nil {
		return nil, err
	}
	if conf["type"] == nil {
		return nil, errors.New("has no type: is it a list? Then its name must end in .conflist")
	}
	// A single plugin is a list of one.
	list := map[string]any{"cniVersion": conf["cniVersion"], "name": conf["name"], "plugins": []any{conf}}
	if body, err = json.Marshal(list); err != nil {
		return nil, err
	}
	return libcni.ConfListFromBytes(body)
}

// statusAge is how long an answer of the plugin's STATUS counts; kubelet asks every five seconds at least.
const statusAge = 2 * time.Second

// status reports why pods can't have a network, nil when they can.
func (n *network) status(ctx context.Context) error {
	list, err := n.config()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answerOf == string(list.Bytes) && time.Since(n.asked) < statusAge {
		return n.answer
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second) // the plugin waits for its agent
	defer cancel()
	err = n.cni.GetStatusNetworkList(ctx, list)
	var cniErr *types.Error
	if errors.As(err, &cniErr) {
		err = fmt.Errorf("CNI network %q is not ready: %w", list.Name, cniErr)
	}
	n.asked, n.answer, n.answerOf = time.Now(), err, string(list.Bytes)
	return err
}

// attachment is a pod's place in the network, kept with its sandbox for the time it is taken away again.
type attachment struct {
	Config []byte            // the configuration list that made it
	Ports  []portMapping     `json:",omitempty"`
	IPs    []string          // the pod's addresses, in the plugin's order
	Args   map[string]string `json:",omitempty"` // CNI_ARGS
}

// portMapping is an entry of the CNI capability portMappings.
type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func portMappings(ports []*runtimeapi.PortMapping) []portMapping {
	var ms []portMapping
	for _, p := range ports {
		if p.HostPort <= 0 {
			continue
		}
		ms = append(ms, portMapping{
			HostPort: p.HostPort, ContainerPort: p.ContainerPort,
			Protocol: strings.ToLower(p.Protocol.String()), HostIP: p.HostIp,
		})
	}
	return ms
}

// prepare makes the attachment that add will carry out, so that it can be recorded before.
func (n *network) prepare(config *runtimeapi.PodSandboxConfig, sandboxID string) (*attachment, error) {
	list, err := n.config()
	if err != nil {
		return nil, err
	}
	m := config.Metadata
	return &attachment{
		Config: list.Bytes,
		Ports:  portMappings(config.PortMappings),
		Args: map[string]string{
			"IgnoreUnknown":              "1",
			"K8S_POD_NAMESPACE":          m.Namespace,
			"K8S_POD_NAME":               m.Name,
			"K8S_POD_INFRA_CONTAINER_ID": sandboxID,
			"K8S_POD_UID":                m.Uid,
		},
	}, nil
}

func (a *attachment) runtimeConf(sandboxID, netns string) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	list, err := libcni.ConfListFromBytes(a.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("CNI configuration of the pod: %w", err)
	}
	rt := &libcni.RuntimeConf{
		ContainerID: sandboxID, NetNS: netns, IfName: podInterface,
		CapabilityArgs: map[string]any{},
	}
	for k, v := range a.Args {
		rt.Args = append(rt.Args, [2]string{k, v})
	}
	sort.Slice(rt.Args, func(i, j int) bool { return rt.Args[i][0] < rt.Args[j][0] })
	if len(a.Ports) > 0 {
		rt.CapabilityArgs["portMappings"] = a.Ports
	}
	return list, rt, nil
}

// add wires the sandbox and notes its addresses in a.
func (n *network) add(ctx context.Context, a *attachment, sandboxID, netns string) error {
	list, rt, err := a.runtimeConf(sandboxID, netns)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	result, err := n.cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return fmt.Errorf("CNI network %q: add pod: %w", list.Name, err)
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return fmt.Errorf("CNI network %q: result: %w", list.Name, err)
	}
	a.IPs = nil
	for _, ip := range r.IPs {
		// Addresses of interfaces on the node's side are not the pod's.
		if ip.Interface != nil && *ip.Interface < len(r.Interfaces) && r.Interfaces[*ip.Interface].Sandbox == "" {
			continue
		}
		a.IPs = append(a.IPs, ip.Address.IP.String())
	}
	if len(a.IPs) == 0 {
		return fmt.Errorf("CNI network %q gave the pod no address", list.Name)
	}
	return nil
}

// del takes the sandbox out of the network; it is no error if it was out already. netns may be gone: "".
func (n *network) del(ctx context.Context, a *attachment, sandboxID, netns string) error {
	list, rt, err := a.runtimeConf(sandboxID, netns)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := n.cni.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("CNI network %q: delete pod: %w", list.Name, err)
	}
	return nil
}

// collect tells the plugins which attachments exist, so that they free all others (CNI GC).
func (n *network) collect(ctx context.Context, valid []string) error {
	list, err := n.config()
	if errors.Is(err, errNoNetwork) {
		return nil
	}
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: podInterface})
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	return n.cni.GCNetworkList(ctx, list, args)
}

// resolvConf renders a pod's resolv.conf.
func resolvConf(dns *runtimeapi.DNSConfig) []byte {
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, s := range dns.Servers {
		if ip := net.ParseIP(s); ip != nil {
			s = ip.String()
		}
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return []byte(b.String())
}
