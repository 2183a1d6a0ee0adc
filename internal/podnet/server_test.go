// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// buildPlugin builds cmd/weft-cni.
func buildPlugin(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "weft-cni")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/weft-net/weft/cmd/weft-cni").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// runtime is the library that container runtimes call plugins with, set up as the agent installs it.
func (nd *node) runtime() (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	nd.t.Helper()
	dir := nd.t.TempDir()
	in := Install{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Socket: nd.cfg.Socket, Plugin: buildPlugin(nd.t)}
	if err := errors.Join(in.InstallPlugin(), in.InstallConfig(), in.InstallPlugin(), in.InstallConfig()); err != nil {
		nd.t.Fatal(err)
	}
	list, err := libcni.ConfListFromFile(filepath.Join(in.ConfDir, "10-weft.conflist"))
	if err != nil {
		nd.t.Fatal(err)
	}
	nd.t.Cleanup(func() {
		if err := in.Remove(); err != nil {
			nd.t.Error(err)
		}
		for _, d := range []string{in.ConfDir, in.BinDir} {
			if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
				nd.t.Errorf("left in %s: %v (%v)", d, left, err)
			}
		}
	})
	return libcni.NewCNIConfigWithCacheDir([]string{in.BinDir}, filepath.Join(dir, "cache"), nil), list
}

func (p *pod) runtimeConf() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: p.req.ContainerID, NetNS: p.path, IfName: "eth0", CapabilityArgs: map[string]any{"portMappings": p.req.HostPorts}}
	for kv := range strings.SplitSeq(p.req.Args, ";") {
		k, v, _ := strings.Cut(kv, "=")
		rt.Args = append(rt.Args, [2]string{k, v})
	}
	return rt
}

// TestRuntime is a runtime's whole life with the plugin, through the library that runtimes use.
func TestRuntime(t *testing.T) {
	a, _, outside := sharedLink(t)
	cni, list := a.runtime()
	ctx := t.Context()
	if list.CNIVersion != "1.1.0" {
		t.Errorf("the runtime speaks %s of the versions offered", list.CNIVersion)
	}
	wantCode := func(what string, err error, code uint, text string) {
		t.Helper()
		var e *types.Error
		if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), text) {
			t.Errorf("%s: %v, want code %d and %q", what, err, code, text)
		}
	}
	wantCode("STATUS without an agent", cni.GetStatusNetworkList(ctx, list), plugin.CodePluginNotAvailable, "weft-node")
	a.start()
	eventually(t, "STATUS without a Node object", func() error {
		var e *types.Error
		if err := cni.GetStatusNetworkList(ctx, list); !errors.As(err, &e) || e.Code != plugin.CodePluginNotAvailable || !strings.Contains(e.Msg, "Node object has not been seen") {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	asked := make(chan error)
	go func() { asked <- cni.GetStatusNetworkList(ctx, list) }()
	time.Sleep(statusPatience / 10)
	a.tell(a)
	if err := <-asked; err != nil {
		t.Errorf("STATUS, asked before there was a Node object: %v", err)
	}
	p := a.newPod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80, Protocol: "tcp"})
	rt := p.runtimeConf()
	res, err := cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		t.Fatalf("ADD: %v", err)
	}
	got, err := types100.GetResult(res)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.IPs) != 2 || len(got.Interfaces) != 2 || got.Interfaces[1].Sandbox != p.path || got.Interfaces[1].Name != "eth0" || len(got.Routes) != 2 {
		t.Errorf("result %+v", got)
	}
	p.ips = nil
	for _, c := range got.IPs {
		ip, _ := netip.AddrFromSlice(c.Address.IP)
		p.ips = append(p.ips, ip.Unmap())
	}
	if !slices.Equal(p.addresses(), p.ips) {
		t.Errorf("the pod has %v, the result says %v", p.addresses(), p.ips)
	}
	p.echo(80)
	for _, f := range both {
		outside.sees("tcp", a.ip(f), 7000, firstOf(addrs("192.0.2.9", "2001:db8::9"), f))
	}
	if err := cni.CheckNetworkList(ctx, list, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	// ADD again gives the same.
	again, err := cni.AddNetworkList(ctx, list, rt)
	if err != nil || !reflect.DeepEqual(again, res) {
		t.Errorf("ADD again: %v, %v", again, err)
	}
	// Another pod, then GC of the first.
	q := a.newPod("q")
	if _, err := cni.AddNetworkList(ctx, list, q.runtimeConf()); err != nil {
		t.Fatal(err)
	}
	if err := cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: q.req.ContainerID, IfName: "eth0"}}}); err != nil {
		t.Errorf("GC: %v", err)
	}
	if err := a.holds(1); err != nil {
		t.Errorf("after GC: %v", err)
	}
	for range 2 {
		if err := cni.DelNetworkList(ctx, list, rt); err != nil {
			t.Errorf("DEL: %v", err)
		}
		if err := cni.DelNetworkList(ctx, list, q.runtimeConf()); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if err := a.holds(0); err != nil {
		t.Errorf("after DEL: %v", err)
	}
}

// TestVersions speaks every version of the spec.
func TestVersions(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.start()
	a.tell(a)
	for _, v := range append(plugin.Versions, "") {
		p := a.newPod("p" + v)
		out, err := a.cni("ADD", v, p.req, nil)
		if err != nil {
			t.Errorf("%s: %v", v, err)
			continue
		}
		if v == "" {
			v = "0.2.0"
		}
		res, err := create.Create(v, out)
		if err != nil {
			t.Errorf("%s: %v in %s", v, err, out)
			continue
		}
		cur, err := types100.NewResultFromResult(res)
		if err != nil || res.Version() != v {
			t.Errorf("%s: version %s, %v", v, res.Version(), err)
			continue
		}
		var ips []netip.Addr
		for _, c := range cur.IPs {
			ip, _ := netip.AddrFromSlice(c.Address.IP)
			ips = append(ips, ip.Unmap())
		}
		if have := p.addresses(); !slices.Equal(have, ips) {
			t.Errorf("%s: the pod has %v, the result says %v: %s", v, have, ips, out)
		}
		if v >= "0.4.0" {
			if _, err := a.cni("CHECK", v, p.req, map[string]any{"prevResult": json.RawMessage(out)}); err != nil {
				t.Errorf("%s: CHECK: %v", v, err)
			}
		}
		if out, err := a.cni("DEL", v, p.req, map[string]any{"prevResult": json.RawMessage(out)}); err != nil || len(out) != 0 {
			t.Errorf("%s: DEL: %v, output %q", v, err, out)
		}
	}
	out, err := a.cni("VERSION", "1.1.0", Request{}, nil)
	if err != nil || !bytes.Contains(out, []byte(`"0.3.1"`)) || !bytes.Contains(out, []byte(`"cniVersion":"1.1.0"`)) {
		t.Errorf("VERSION: %s, %v", out, err)
	}
	var e *plugin.Error
	if _, err := a.cni("ADD", "9.9.9", a.newPod("p").req, nil); !errors.As(err, &e) || e.Code != plugin.CodeIncompatibleVersion {
		t.Errorf("version 9.9.9: %v", err)
	}
	if err := a.holds(0); err != nil {
		t.Error(err)
	}
}

// TestCheck breaks a pod in ways that a repair can't see and has CHECK tell.
func TestCheck(t *testing.T) {
	a, _, _ := sharedLink(t)
	n, err := Open(a.cfg) // and no Run, which would be faster than CHECK
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	a.n = n
	a.tell(a)
	p := a.pod("p")
	code := func(err error) uint {
		var e *plugin.Error
		if errors.As(err, &e) {
			return e.Code
		}
		return 0
	}
	if err := a.n.Check(p.req, p.ips, p.netNS); err != nil {
		t.Fatal(err)
	}
	if err := a.n.Check(p.req, addrs("198.51.100.1"), p.netNS); code(err) != plugin.CodeCheckFailed {
		t.Errorf("another address in prevResult: %v", err)
	}
	if err := a.n.Check(Request{ContainerID: "x", IfName: "eth0"}, nil, p.netNS); code(err) != plugin.CodeUnknownContainer {
		t.Errorf("an unknown container: %v", err)
	}
	other := newSpace(t, "other")
	if err := a.n.Check(p.req, p.ips, other.netNS); code(err) != plugin.CodeCheckFailed {
		t.Errorf("another namespace: %v", err)
	}
	for what, spoil := range map[string]func(netlink.Link) error{
		"lacks address": func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(hostPrefix(p.ip(model.IPv4)))})
		},
		"no route": func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("::/0"))})
		},
		"is down": netlink.LinkSetDown,
		"has MAC": func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9}) },
	} {
		p.run(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return spoil(l)
		})
		if err := a.n.Check(p.req, p.ips, p.netNS); code(err) != plugin.CodeCheckFailed || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		// ADD of such a pod makes it anew.
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
		if err := a.n.Check(p.req, p.ips, p.netNS); err != nil {
			t.Errorf("after ADD again: %v", err)
		}
	}
}

// TestFull fills the node's range.
func TestFull(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.obj.PodCIDRs = prefixes("10.244.1.0/30", "fd00::/64")
	a.start()
	a.tell(a)
	p := a.pod("p")
	a.pod("q")
	r := a.newPod("r")
	var e *plugin.Error
	if err := r.add(); !errors.As(err, &e) || e.Code != plugin.CodeNoFreeAddress {
		t.Errorf("a third pod in a range of two: %v", err)
	}
	for _, part := range []string{"pod default/r", "node n1", "10.244.1.0/30", "2 pods", "maxPods"} {
		if !strings.Contains(e.Msg, part) {
			t.Errorf("the message lacks %q: %s", part, e.Msg)
		}
	}
	if err := a.holds(2); err != nil {
		t.Error(err)
	}
	if err := a.n.Del(p.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := r.add(); err != nil {
		t.Errorf("after a DEL: %v", err)
	}
}

// TestProtect sees when the hook is called, and what happens when it fails.
func TestProtect(t *testing.T) {
	a, _, _ := sharedLink(t)
	var mu sync.Mutex
	var calls []string
	fail := errors.New("policies are not known")
	a.cfg.Protect = func(_ context.Context, p model.LocalPod) error {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, "protect "+p.Name.String())
		if len(p.IPs) != 2 || p.UID != "uid-"+p.Name.Name || p.Sandbox == "" || p.LinkIndex == 0 {
			t.Errorf("hook got %+v", p)
		}
		a.run(func() error {
			l, err := netlink.LinkByName(p.Link)
			if err == nil && l.Attrs().Flags&net.FlagUp != 0 {
				t.Error("the link is up before the pod is protected")
			}
			return err
		})
		if p.Name.Name == "bad" {
			return fail
		}
		return nil
	}
	a.cfg.Unprotect = func(p model.LocalPod) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, "unprotect "+p.Name.String())
		a.run(func() error {
			if _, err := netlink.LinkByName(p.Link); !isNoLink(err) {
				t.Errorf("the link outlives the protection (%v)", err)
			}
			return nil
		})
	}
	a.start()
	a.tell(a)
	p := a.pod("good")
	var e *plugin.Error
	if err := a.newPod("bad").add(); !errors.As(err, &e) || e.Code != plugin.CodeNotProtected || !strings.Contains(e.Msg, fail.Error()) {
		t.Errorf("ADD of a pod that can't be protected: %v", err)
	}
	if err := a.holds(1); err != nil {
		t.Error(err)
	}
	if err := a.n.Del(p.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	want := []string{"protect default/good", "protect default/bad", "unprotect default/bad", "unprotect default/good"}
	if !slices.Equal(calls, want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
}

// TestBadRequests are ones that no agent must fall over.
func TestBadRequests(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.start()
	a.tell(a)
	p := a.newPod("p")
	for _, c := range []struct {
		name    string
		command string
		req     Request
		more    map[string]any
		code    uint
	}{
		{"the node's own namespace", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: a.path}, nil, plugin.CodeInvalidEnvironment},
		{"no namespace there", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: "/nowhere"}, nil, plugin.CodeInvalidEnvironment},
		{"not a namespace", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: "/proc/self/status"}, nil, plugin.CodeInvalidEnvironment},
		{"a namespace of another kind", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: "/proc/self/ns/uts"}, nil, plugin.CodeInvalidEnvironment},
		{"an interface that is there", "ADD", Request{ContainerID: "c", IfName: "lo", NetNS: p.path}, nil, plugin.CodeInternal},
		{"a host port that is none", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: p.path, HostPorts: []plugin.PortMapping{{HostPort: 70000, ContainerPort: 1}}}, nil, plugin.CodeInvalidConfig},
		{"a host address that is none", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: p.path, HostPorts: []plugin.PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "x"}}}, nil, plugin.CodeInvalidConfig},
		{"a protocol that is none", "ADD", Request{ContainerID: "c", IfName: "eth0", NetNS: p.path, HostPorts: []plugin.PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}}, nil, plugin.CodeInvalidConfig},
		{"CHECK without prevResult", "CHECK", Request{ContainerID: "c", IfName: "eth0", NetNS: p.path}, nil, plugin.CodeInvalidConfig},
		{"GC without attachments", "GC", Request{}, nil, plugin.CodeInvalidConfig},
	} {
		var e *plugin.Error
		if out, err := a.cni(c.command, "1.1.0", c.req, c.more); !errors.As(err, &e) || e.Code != c.code || e.Version != "1.1.0" {
			t.Errorf("%s: %s, %v, want code %d", c.name, out, err, c.code)
		}
	}
	// Garbage on the socket ends that connection alone.
	for _, msg := range []string{"", "{", `{"command":"ADD"}`, `{"command":"DEL","config":{}}`, strings.Repeat("x", plugin.MaxMessage+1)} {
		c, err := net.Dial("unix", a.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(msg))
		_ = c.(*net.UnixConn).CloseWrite()
		_ = c.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 1<<16)
		if _, err := c.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("no end to a connection that sent %.20q", msg)
		}
		c.Close()
	}
	if err := a.holds(0); err != nil {
		t.Error(err)
	}
	if err := p.add(); err != nil {
		t.Errorf("the agent after all this: %v", err)
	}
}

// TestDelWithoutAgent deletes pods while no agent runs: DEL succeeds, and the next agent carries it out.
func TestDelWithoutAgent(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.start()
	a.tell(a)
	p, q := a.pod("p"), a.pod("q")
	a.stop()
	if _, err := a.cni("DEL", "1.1.0", p.req, nil); err != nil {
		t.Fatalf("DEL without an agent: %v", err)
	}
	a.cfg.Registerer = nil
	a.start()
	a.tell(a)
	eventually(t, "the other pod alone is left", func() error { return a.holds(1) })
	if err := q.node.n.Check(q.req, q.ips, q.netNS); err != nil {
		t.Error(err)
	}
	// Where weft was taken off the node there is nothing to carry out.
	a.stop()
	if err := os.RemoveAll(filepath.Dir(a.cfg.Socket)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.cni("DEL", "1.1.0", q.req, nil); err != nil {
		t.Errorf("DEL on a node without weft: %v", err)
	}
}

// TestParallel wires and unwires many pods at once.
func TestParallel(t *testing.T) {
	a, _, _ := sharedLink(t)
	a.start()
	a.tell(a)
	const many = 40
	pods := make([]*pod, many)
	for i := range pods {
		pods[i] = a.newPod(fmt.Sprint("p", i), plugin.PortMapping{HostPort: 7000 + i, ContainerPort: 80})
	}
	each := func(fn func(*pod) error) {
		t.Helper()
		errs := make(chan error, many)
		for _, p := range pods {
			go func() { errs <- fn(p) }()
		}
		for range pods {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	each((*pod).add)
	if err := a.holds(many); err != nil {
		t.Fatal(err)
	}
	for i, p := range pods {
		p.echo(80)
		pods[(i+1)%many].echo(81)
		p.sees("tcp", p.ips[0], 80, p.ips[0])
	}
	for i, p := range pods {
		p.sees("tcp", pods[(i+1)%many].ips[1], 80, p.ips[1])
	}
	elements := func() (n int) {
		t.Helper()
		if err := a.n.table.with(func(c *nftables.Conn) error {
			have, err := readSets(c, a.n.table.object())
			for _, set := range []string{"host-ports4", "host-ports6", "hairpin4", "hairpin6"} {
				n += len(have[set])
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := elements(); n != 4*many {
		t.Errorf("%d elements for the host ports of %d pods", n, many)
	}
	each(func(p *pod) error { return a.n.Del(p.req.ContainerID, "eth0") })
	if err := a.holds(0); err != nil {
		t.Error(err)
	}
	if n := elements(); n != 0 {
		t.Errorf("%d elements for host ports are left", n)
	}
}

// BenchmarkADD is what the runtime waits for: the plugin's process, which cmd/weft-cni is built for, and the agent's
// work beside a hundred pods that are there already.
func BenchmarkADD(b *testing.B) {
	bin := buildPlugin(b)
	for _, bench := range []struct {
		name  string
		ports []plugin.PortMapping
	}{{"pod", nil}, {"pod with a host port", []plugin.PortMapping{{HostPort: 7000, ContainerPort: 80}}}} {
		b.Run(bench.name, func(b *testing.B) {
			a, _, _ := sharedLink(b)
			a.plugin = bin
			a.start()
			a.tell(a)
			for i := range 100 {
				if err := a.newPod(fmt.Sprint("there", i)).add(); err != nil {
					b.Fatal(err)
				}
			}
			took := make(map[string][]time.Duration)
			for i := 0; b.Loop(); i++ {
				p := a.newPod(fmt.Sprint("p", i), bench.ports...)
				for _, command := range []string{"ADD", "DEL"} {
					began := time.Now()
					if _, err := a.cni(command, "1.1.0", p.req, nil); err != nil {
						b.Fatal(err)
					}
					took[command] = append(took[command], time.Since(began))
				}
				p.close()
			}
			for command, ds := range took {
				slices.Sort(ds)
				b.ReportMetric(float64(ds[len(ds)/2].Microseconds())/1000, command+"-p50-ms")
				b.ReportMetric(float64(ds[len(ds)*99/100].Microseconds())/1000, command+"-p99-ms")
			}
		})
	}
}
