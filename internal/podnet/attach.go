// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// randomStart is where a range that was never used starts: not at its first address, which another boot of this
// node gave to pods that others may still remember.
func randomStart(r *addressRange) netip.Addr {
	steps := min(r.size(), 1<<12)
	a := r.first
	for range rand.IntN(int(steps)) {
		a = r.after(a)
	}
	return a
}

// Request is an attachment that the runtime asks for.
type Request struct {
	ContainerID, IfName string
	NetNS               string // as the runtime named it
	Args                string // CNI_ARGS
	HostPorts           []plugin.PortMapping
}

// Attached is what ADD made.
type Attached struct {
	Pod model.LocalPod
	MAC string // of the pod's end
	MTU int
}

// Add wires a pod: it gives the pod its addresses, link and host ports, and has its policy in force before the first
// packet can pass. It waits, while ctx allows, for the node's podCIDRs. A pod that is wired already is verified and
// reported as it is. On error nothing is left behind.
func (n *Network) Add(ctx context.Context, req Request, pod *netNS) (Attached, error) {
	select {
	case <-n.ready:
	case <-ctx.Done():
		return Attached{}, plugin.Errorf(plugin.CodeTryAgainLater, "the pod network of node %s is not ready: %v", n.cfg.NodeName, n.Status())
	}
	if pod.is(n.ns) {
		return Attached{}, plugin.Errorf(plugin.CodeInvalidEnvironment, "CNI_NETNS %s is the node's own network namespace", req.NetNS)
	}
	ports, err := parseHostPorts(req.HostPorts)
	if err != nil {
		return Attached{}, err
	}
	link := LinkName(req.ContainerID, req.IfName)
	defer n.attaching.lock(link)()

	n.mu.Lock()
	old := n.pods[link]
	n.mu.Unlock()
	if old != nil {
		if old.rec.Wired && old.rec.NetNS == req.NetNS && n.verify(old.rec, pod) == nil {
			return attached(old), nil
		}
		if err := n.undo(old); err != nil {
			return Attached{}, err
		}
	}
	a, err := n.reserve(link, req, ports)
	if err != nil {
		return Attached{}, err
	}
	if err := n.wire(ctx, a, pod); err != nil {
		if uerr := n.undo(a); uerr != nil {
			n.log.Error("podnet: undo a failed ADD", "pod", a.rec.who(), "err", uerr)
		}
		return Attached{}, err
	}
	n.log.Info("podnet: pod wired", "pod", a.rec.who(), "ips", a.rec.IPs, "link", link)
	return attached(a), nil
}

func attached(a *attachment) Attached {
	return Attached{Pod: a.rec.localPod(a.index), MAC: podMAC(a.rec.IPs).String(), MTU: a.rec.MTU}
}

// reserve writes down what the pod gets, before anything of it is made.
func (n *Network) reserve(link string, req Request, ports []hostPort) (*attachment, error) {
	r := &record{
		Link: link, ContainerID: req.ContainerID, IfName: req.IfName, NetNS: req.NetNS,
		HostPorts: ports, Created: n.now(),
	}
	for kv := range strings.SplitSeq(req.Args, ";") {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "K8S_POD_NAMESPACE":
			r.Namespace = v
		case "K8S_POD_NAME":
			r.Name = v
		case "K8S_POD_UID":
			r.UID = v
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range ports {
		for _, o := range n.pods {
			for _, q := range o.rec.HostPorts {
				if p.clashes(q) {
					return nil, plugin.Errorf(plugin.CodeHostPortTaken, "%s: host port %s of node %s is taken by %s: choose another hostPort or another node", r.who(), p, n.cfg.NodeName, o.rec.who())
				}
			}
		}
	}
	var err error
	r.MTU = n.mtu
	if r.IPs, err = n.pool.allocate(link, n.now()); err != nil {
		return nil, plugin.Errorf(plugin.CodeNoFreeAddress, "%s: node %s: %v: give the node fewer pods (kubelet's maxPods) or a larger podCIDR", r.who(), n.cfg.NodeName, err)
	}
	if err := errors.Join(n.store.putRanges(n.pool), n.store.put(r)); err != nil {
		n.pool.release(link, r.IPs, n.now())
		return nil, plugin.Errorf(plugin.CodeIOFailure, "%s: %v", r.who(), err)
	}
	a := &attachment{rec: r}
	n.pods[link] = a
	return a, nil
}

// wire makes all that the pod's record says. Its steps are logged for whoever looks for the slow one.
func (n *Network) wire(ctx context.Context, a *attachment, pod *netNS) error {
	r := a.rec
	step := func(s string) { n.log.Debug("podnet: wiring", "step", s, "link", r.Link) }
	step("reserved")
	// What a crash may have left under this name has no record, and so no owner.
	if err := n.deleteLink(r.Link); err != nil {
		return err
	}
	if err := n.createLink(r, pod); err != nil {
		return err
	}
	step("link created")
	l, err := n.nl.LinkByName(r.Link)
	if err != nil {
		return fmt.Errorf("link %s of %s: %w", r.Link, r.who(), err)
	}
	n.mu.Lock()
	a.index = l.Attrs().Index
	n.mu.Unlock()
	var inside *netlink.Handle
	if err := pod.do(func() (err error) {
		if inside, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return configurePod(inside, r)
	}); err != nil {
		if inside != nil {
			inside.Close()
		}
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	defer inside.Close()
	step("pod configured")
	if n.cfg.Protect != nil {
		if err := n.cfg.Protect(ctx, r.localPod(a.index)); err != nil {
			return plugin.Errorf(plugin.CodeNotProtected, "%s: its network policies are not in force, so it gets no network: %v", r.who(), err)
		}
	}
	step("protected")
	if err := n.openLink(r); err != nil {
		return err
	}
	if err := awaitPod(ctx, inside, r); err != nil {
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	step("link open")
	if err := n.table.setHostPorts(portElements(r), nil); err != nil {
		return fmt.Errorf("%s: host ports: %w", r.who(), err)
	}
	if err := n.forgetFlows(r.HostPorts); err != nil {
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	step("host ports open")
	wired := *r
	wired.Wired, wired.Remaking = true, false
	if err := n.store.put(&wired); err != nil {
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	n.mu.Lock()
	a.rec = &wired
	n.mu.Unlock()
	step("wired")
	return nil
}

// undo takes away all that a pod has, and its record last. It may run again after an error.
func (n *Network) undo(a *attachment) error {
	n.mu.Lock()
	a.going = true
	r := a.rec
	n.mu.Unlock()
	step := func(s string) { n.log.Debug("podnet: unwiring", "step", s, "link", r.Link) }
	step("begun")
	if err := n.table.setHostPorts(nil, portElements(r)); err != nil {
		return fmt.Errorf("%s: host ports: %w", r.who(), err)
	}
	if err := n.forgetFlows(r.HostPorts); err != nil {
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	step("host ports closed")
	if err := n.deleteLink(r.Link); err != nil {
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	step("link deleted")
	if n.cfg.Unprotect != nil {
		n.cfg.Unprotect(r.localPod(a.index))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pool.release(r.Link, r.IPs, n.now())
	err := n.store.putRanges(n.pool)
	if err == nil {
		step("address freed")
		err = n.store.remove(r.Link)
	}
	if err != nil {
		n.pool.take(r.Link, r.IPs)
		return fmt.Errorf("%s: %w", r.who(), err)
	}
	delete(n.pods, r.Link)
	step("unwired")
	return nil
}

// Del takes a pod's network away. One that has none is fine.
func (n *Network) Del(containerID, ifName string) error {
	link := LinkName(containerID, ifName)
	defer n.attaching.lock(link)()
	n.mu.Lock()
	a := n.pods[link]
	n.mu.Unlock()
	if a == nil {
		return n.deleteLink(link)
	}
	if err := n.undo(a); err != nil {
		return err
	}
	n.log.Info("podnet: pod unwired", "pod", a.rec.who(), "ips", a.rec.IPs, "link", link)
	return nil
}

// Check verifies in the kernel that a pod has all that ADD gave it. ips, if any, are what the runtime believes.
func (n *Network) Check(req Request, ips []netip.Addr, pod *netNS) error {
	link := LinkName(req.ContainerID, req.IfName)
	defer n.attaching.lock(link)()
	n.mu.Lock()
	a := n.pods[link]
	n.mu.Unlock()
	if a == nil || !a.rec.Wired {
		return plugin.Errorf(plugin.CodeUnknownContainer, "container %s has no interface %s of weft", req.ContainerID, req.IfName)
	}
	have := make(map[netip.Addr]bool)
	for _, ip := range a.rec.IPs {
		have[ip] = true
	}
	for _, ip := range ips {
		if !have[ip] {
			return plugin.Errorf(plugin.CodeCheckFailed, "%s has %v, not %s as in prevResult", a.rec.who(), a.rec.IPs, ip)
		}
	}
	if err := n.verify(a.rec, pod); err != nil {
		return plugin.Errorf(plugin.CodeCheckFailed, "%s: %v", a.rec.who(), err)
	}
	return nil
}

// GC takes the network of every pod away that is not among the valid ones. One that is being wired just now is
// newer than what the runtime looked at, and stays.
func (n *Network) GC(valid []plugin.Attachment) error {
	keep := make(map[string]bool)
	for _, v := range valid {
		keep[LinkName(v.ContainerID, v.IfName)] = true
	}
	var stale []string
	n.mu.Lock()
	for link, a := range n.pods {
		if !keep[link] && a.rec.Wired {
			stale = append(stale, link)
		}
	}
	n.mu.Unlock()
	var errs []error
	for _, link := range stale {
		errs = append(errs, n.collect(link))
	}
	return errors.Join(errs...)
}

func (n *Network) collect(link string) error {
	defer n.attaching.lock(link)()
	n.mu.Lock()
	a := n.pods[link]
	n.mu.Unlock()
	if a == nil {
		return nil
	}
	n.log.Info("podnet: the runtime no longer knows this pod, taking its network away", "pod", a.rec.who(), "ips", a.rec.IPs)
	return n.undo(a)
}

// restore makes anew what a wired pod has lost, or frees what it had if its namespace is gone. Inside the pod it
// changes nothing, unless the whole link has to be made: what a pod does to its own end is the pod's business.
func (n *Network) restore(ctx context.Context, link string) error {
	defer n.attaching.lock(link)()
	n.mu.Lock()
	a := n.pods[link]
	going := a != nil && a.going
	n.mu.Unlock()
	if a == nil || going {
		return nil
	}
	if !a.rec.Wired {
		return n.undo(a) // an ADD that a crash cut short; nobody was told of it
	}
	l, err := n.nl.LinkByName(link)
	switch {
	case err == nil && !a.rec.Remaking:
		n.mu.Lock()
		a.index = l.Attrs().Index
		n.mu.Unlock()
		return n.reopen(ctx, a, l)
	case err != nil && !isNoLink(err):
		return fmt.Errorf("link %s: %w", link, err)
	}
	var pod *netNS
	if a.rec.NetNS != "" {
		if pod, err = openNetNS(a.rec.NetNS); err == nil {
			defer pod.close()
		}
	}
	if a.rec.NetNS == "" || err != nil || pod.is(n.ns) {
		n.log.Info("podnet: a pod's network namespace is gone, freeing its addresses", "pod", a.rec.who(), "ips", a.rec.IPs)
		return n.undo(a)
	}
	n.metrics.repairs.WithLabelValues("link").Inc()
	n.log.Warn("podnet: a pod's link was removed, making it anew", "pod", a.rec.who(), "ips", a.rec.IPs)
	remaking := *a.rec
	remaking.Remaking = true
	if err := n.store.put(&remaking); err != nil {
		return fmt.Errorf("%s: %w", a.rec.who(), err)
	}
	n.mu.Lock()
	a.rec = &remaking
	n.mu.Unlock()
	return n.wire(ctx, a, pod)
}

// reopen puts right what differs at the node's end of a link that is there.
func (n *Network) reopen(ctx context.Context, a *attachment, l netlink.Link) error {
	why := n.verifyNode(a.rec)
	if why == nil {
		return nil
	}
	n.metrics.repairs.WithLabelValues("link").Inc()
	n.log.Warn("podnet: putting a pod's link right", "pod", a.rec.who(), "why", why)
	if l.Attrs().Flags&net.FlagUp == 0 && n.cfg.Protect != nil {
		if err := n.cfg.Protect(ctx, a.rec.localPod(a.index)); err != nil {
			return fmt.Errorf("%s: its network policies are not in force, its link stays down: %w", a.rec.who(), err)
		}
	}
	return n.openLink(a.rec)
}
