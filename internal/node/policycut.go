// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/conntrack"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// cut ends those connections from or to the pods that a change may have touched that the policies in force no longer
// allow. The node's own are never asked about. Callers hold mu.
func (p *Policy) cut() error {
	if len(p.uncut) == 0 {
		return nil
	}
	own, err := addressesIn(p.cfg.Netns)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		flows, err := p.tracked.Flows(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n, err := p.tracked.Delete(slices.DeleteFunc(flows, func(f conntrack.Flow) bool {
			src, dst := f.Source.Addr(), f.Peer.Addr() // as the forward hook saw the first packet
			return !p.uncut[src] && !p.uncut[dst] || own[src] || p.compiler.Allows(&policy.Flow{
				Src: p.compiler.EndpointOf(src), Dst: p.compiler.OpenEndpointOf(dst), Protocol: f.Protocol, Port: f.Peer.Port(),
			})
		}))
		p.metrics.cut.Add(float64(n))
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	clear(p.uncut)
	return nil
}

// addressesIn are the addresses of the links in a network namespace, by its file descriptor; -1 is the thread's own.
func addressesIn(ns int) (map[netip.Addr]bool, error) {
	handle := func() (*netlink.Handle, error) {
		if ns < 0 {
			return netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		return netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	}
	h, err := handle()
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	list, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	out := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out[ip.Unmap()] = true
		}
	}
	return out, nil
}
