// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// The steps of an ADD and of a DEL, as the agent logs them.
var (
	addSteps = []string{"reserved", "link created", "pod configured", "protected", "link open", "host ports open", "wired"}
	delSteps = []string{"begun", "host ports closed", "link deleted", "address freed", "unwired"}
)

// TestKillDuringAdd kills the agent after each step of an ADD. The plugin goes on asking, the next agent answers,
// and the pod has one address and works.
func TestKillDuringAdd(t *testing.T) {
	for _, step := range addSteps {
		t.Run(step, func(t *testing.T) {
			a, b, outside := sharedLink(t)
			outside.via("10.244.1.0/24 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1")
			_, died := a.process(step, a, b)
			p := a.newPod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80})
			type answer struct {
				out []byte
				err error
			}
			got := make(chan answer, 1)
			go func() {
				out, err := a.cni("ADD", "1.1.0", p.req, nil)
				got <- answer{out, err}
			}()
			if err := died(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the agent ended with %v", err)
			}
			a.start()
			a.tell(a, b)
			ans := <-got
			if ans.err != nil {
				t.Fatalf("ADD: %v", ans.err)
			}
			eventually(t, "one pod", func() error { return a.holds(1) })
			p.ips = a.n.Pods()[0].IPs
			p.echo(80)
			for _, f := range both {
				a.sees("tcp", p.ip(f), 80, a.ip(f))
				outside.sees("tcp", a.ip(f), 7000, firstOf(addrs("192.0.2.9", "2001:db8::9"), f))
			}
			if err := a.n.Del(p.req.ContainerID, "eth0"); err != nil {
				t.Fatal(err)
			}
			if err := a.holds(0); err != nil {
				t.Errorf("after DEL: %v", err)
			}
		})
	}
}

// TestKillDuringAddForGood kills the agent after each step of an ADD that nobody repeats, as when the runtime dies
// too: nothing is left once the next agent has looked.
func TestKillDuringAddForGood(t *testing.T) {
	for _, step := range addSteps {
		t.Run(step, func(t *testing.T) {
			a, b, _ := sharedLink(t)
			_, died := a.process(step, a, b)
			p := a.newPod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80})
			eventually(t, "the agent listens", func() error { _, err := a.cni("STATUS", "1.1.0", p.req, nil); return err })
			_, err := plugin.Call(a.cfg.Socket, &plugin.Request{Command: "ADD", ContainerID: p.req.ContainerID, IfName: "eth0", NetNS: p.path, Args: p.req.Args, Config: []byte(`{"cniVersion":"1.1.0","name":"weft","runtimeConfig":{"portMappings":[{"hostPort":7000,"containerPort":80}]}}`)}, p.f, 0)
			if err == nil {
				t.Fatal("ADD was answered by a dead agent")
			}
			if err := died(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the agent ended with %v", err)
			}
			p.close() // the namespace goes, and its path with it
			a.start()
			a.tell(a, b)
			eventually(t, "nothing is left", func() error { return a.holds(0) })
		})
	}
}

// TestKillDuringDel kills the agent after each step of a DEL: the plugin's next attempt finishes it.
func TestKillDuringDel(t *testing.T) {
	for _, step := range delSteps {
		t.Run(step, func(t *testing.T) {
			a, b, _ := sharedLink(t)
			_, died := a.process(step, a, b)
			p, other := a.newPod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80}), a.newPod("other")
			for _, x := range []*pod{p, other} {
				if _, err := a.cni("ADD", "1.1.0", x.req, nil); err != nil {
					t.Fatal(err)
				}
			}
			got := make(chan error, 1)
			go func() { _, err := a.cni("DEL", "1.1.0", p.req, nil); got <- err }()
			if err := died(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the agent ended with %v", err)
			}
			a.start()
			a.tell(a, b)
			if err := <-got; err != nil {
				t.Fatalf("DEL: %v", err)
			}
			eventually(t, "the other pod alone is left", func() error { return a.holds(1) })
			if ps := a.n.Pods(); ps[0].Name.Name != "other" {
				t.Errorf("left is %v", ps)
			}
		})
	}
}

// TestKillDuringRemake deletes a pod's link and kills the agent while it makes it anew.
func TestKillDuringRemake(t *testing.T) {
	for _, step := range addSteps {
		t.Run(step, func(t *testing.T) {
			a, b, _ := sharedLink(t)
			first, ended := a.process("", a, b)
			p := a.newPod("p")
			if _, err := a.cni("ADD", "1.1.0", p.req, nil); err != nil {
				t.Fatal(err)
			}
			if err := first.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := ended(); err != nil {
				t.Fatal(err)
			}
			p.ips = p.addresses()
			_, died := a.process(step, a, b)
			a.run(func() error {
				l, err := netlink.LinkByName(LinkName(p.req.ContainerID, "eth0"))
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			})
			if err := died(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the agent ended with %v", err)
			}
			a.start()
			a.tell(a, b)
			// The pod has its addresses back only once the repair is through, and nothing can listen on them sooner.
			eventually(t, "the pod is whole", func() error { return a.n.Check(p.req, p.ips, p.netNS) })
			p.echo(80)
			eventually(t, "the pod works", func() error {
				for _, f := range both {
					if _, err := a.ask("tcp", p.ip(f), 80); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// holds compares everything there is of pods with a number of them: records, links, routes, table, addresses.
func (nd *node) holds(pods int) error {
	files, err := os.ReadDir(filepath.Join(nd.cfg.StateDir, "pods"))
	if err != nil || len(files) != pods {
		return fmt.Errorf("%d records (%v), want %d", len(files), err, pods)
	}
	nd.n.mu.Lock()
	addresses := len(nd.n.pool.used)
	nd.n.mu.Unlock()
	if addresses != 2*pods {
		return fmt.Errorf("%d addresses in use, want %d", addresses, 2*pods)
	}
	if ps := nd.n.Pods(); len(ps) != pods {
		return fmt.Errorf("%d pods, want %d: %v", len(ps), pods, ps)
	}
	links, err := nd.n.nl.LinkList()
	if err != nil {
		return err
	}
	count := 0
	for _, l := range links {
		if podLink(l.Attrs().Name) {
			count++
		}
	}
	if count != pods {
		return fmt.Errorf("%d links of pods, want %d", count, pods)
	}
	routes, err := nd.n.podRoutes()
	if err != nil || len(routes) != pods {
		return fmt.Errorf("routes to %d pods (%v), want %d", len(routes), err, pods)
	}
	return nil
}

// TestLostState starts an agent on a node whose records are gone: pods keep their network, their addresses are not
// given away, and DEL and GC find them.
func TestLostState(t *testing.T) {
	a, b, _ := sharedLink(t)
	a.start()
	a.tell(a, b)
	p, q := a.pod("p"), a.pod("q")
	a.stop()
	if err := os.RemoveAll(a.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	a.cfg.Registerer = nil
	a.start()
	a.tell(a, b)
	if err := a.holds(2); err != nil {
		t.Fatal(err)
	}
	for _, f := range both {
		p.sees("tcp", q.ip(f), 80, p.ip(f))
	}
	if !slices.ContainsFunc(a.n.Pods(), func(l model.LocalPod) bool {
		return l.Name == model.Name{Namespace: "default", Name: "p"} && slices.Contains(l.IPs, p.ip(model.IPv4))
	}) {
		t.Errorf("the pod with %s is not among %v", p.ip(model.IPv4), a.n.Pods())
	}
	if err := a.n.Del(p.req.ContainerID, "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := a.n.GC(nil); err != nil {
		t.Fatal(err)
	}
	if err := a.holds(0); err != nil {
		t.Error(err)
	}
}

// TestRestartUnderTraffic kills and restarts the agent while pods talk on old and new connections, and counts every
// failure.
func TestRestartUnderTraffic(t *testing.T) {
	for name, build := range map[string]func(testing.TB) (*node, *node, *space){"shared link": sharedLink, "routed links": routedLinks} {
		t.Run(name, func(t *testing.T) {
			a, b, _ := build(t)
			cmd, died := a.process("", a, b)
			b.start()
			b.tell(a, b)
			p := a.newPod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80})
			if _, err := a.cni("ADD", "1.1.0", p.req, nil); err != nil {
				t.Fatal(err)
			}
			p.echo(80)
			p.ips = p.addresses()
			far := b.pod("far")
			type client struct {
				from *space
				to   netip.Addr
				port uint16
				want netip.Addr
			}
			var failures []chan string
			stop := make(chan struct{})
			for _, f := range both {
				for _, c := range []client{
					{far.space, p.ip(f), 80, far.ip(f)}, {p.space, far.ip(f), 80, p.ip(f)},
					{p.space, firstOf(world, f), 80, a.ip(f)}, {a.space, p.ip(f), 80, a.ip(f)},
				} {
					ch := make(chan string, 1)
					failures = append(failures, ch)
					go func() {
						n := 0
						for {
							select {
							case <-stop:
								ch <- ""
								return
							default:
							}
							if got, err := c.from.askFor(gapless, "tcp", c.to, c.port); err != nil || got != c.want {
								ch <- fmt.Sprintf("%s to %s: request %d: saw %v, %v", c.from.name, c.to, n, got, err)
								return
							}
							n++
						}
					}()
				}
			}
			for range 5 {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if err := died(); err == nil {
					t.Fatal("not killed")
				}
				cmd, died = a.process("", a, b)
				eventually(t, "the agent is back", func() error { _, err := a.cni("STATUS", "1.1.0", p.req, nil); return err })
			}
			close(stop)
			for _, ch := range failures {
				if msg := <-ch; msg != "" {
					t.Error(msg)
				}
			}
		})
	}
}

// addresses are those of eth0, IPv4 first.
func (s *space) addresses() (ips []netip.Addr) {
	s.t.Helper()
	s.run(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
			as, err := netlink.AddrList(l, f)
			if err != nil {
				return err
			}
			for _, a := range as {
				if ip, _ := netip.AddrFromSlice(a.IP); ip.IsGlobalUnicast() {
					ips = append(ips, ip.Unmap())
				}
			}
		}
		return nil
	})
	return ips
}

// TestErase leaves a node as it was found.
func TestErase(t *testing.T) {
	a, b, _ := routedLinks(t)
	a.start()
	a.tell(a, b)
	a.pod("p", plugin.PortMapping{HostPort: 7000, ContainerPort: 80})
	a.stop()
	n, err := Open(Config{NodeName: a.name, NetNS: a.path, StateDir: a.cfg.StateDir, Socket: a.cfg.Socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Erase(), n.Close()); err != nil {
		t.Fatal(err)
	}
	a.run(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && name != "eth0" {
				t.Errorf("link %s is left", name)
			}
		}
		for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := netlink.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			if len(routes) > 0 {
				t.Errorf("routes are left: %v", routes)
			}
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if len(tables) > 0 {
			t.Errorf("table %s is left", tables[0].Name)
		}
		return err
	})
	left, err := filepath.Glob(filepath.Dir(a.cfg.StateDir) + "/*")
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v (%v)", left, err)
	}
}
