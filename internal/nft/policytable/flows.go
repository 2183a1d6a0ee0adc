// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	vishnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// Flow is a connection that the kernel tracks, as the forward hook saw its first packet.
type Flow struct {
	Src, Dst netip.Addr // the destination after a Service's address was replaced
	Protocol model.Protocol
	Port     uint16
}

// Cut ends those tracked connections from or to the given addresses that are no longer allowed, and returns how many
// it ended. The node's own connections are never asked about.
func (t *Table) Cut(touched map[netip.Addr]bool, allowed func(Flow) bool) (int, error) {
	own, err := t.ownAddrs()
	if err != nil {
		return 0, err
	}
	c, err := conntrack.Dial(&netlink.Config{NetNS: max(t.netns, 0)})
	if err != nil {
		return 0, fmt.Errorf("open connection tracking: %w", err)
	}
	defer c.Close()
	flows, err := c.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("list tracked connections: %w", err)
	}
	cut := 0
	var errs []error
	for _, f := range flows {
		flow := Flow{
			Src:      f.TupleOrig.IP.SourceAddress.Unmap(),
			Dst:      f.TupleReply.IP.SourceAddress.Unmap(),
			Protocol: model.Protocol(f.TupleOrig.Proto.Protocol),
		}
		switch flow.Protocol {
		case model.TCP, model.UDP, model.SCTP:
			flow.Port = f.TupleReply.Proto.SourcePort
		}
		if !touched[flow.Src] && !touched[flow.Dst] || own[flow.Src] || allowed(flow) {
			continue
		}
		if err := c.Delete(conntrack.Flow{TupleOrig: f.TupleOrig, TupleReply: f.TupleReply, ID: f.ID, Zone: f.Zone}); err != nil {
			if !errors.Is(err, unix.ENOENT) { // it ended by itself
				errs = append(errs, fmt.Errorf("cut the connection from %s to %s: %w", flow.Src, flow.Dst, err))
			}
			continue
		}
		cut++
	}
	return cut, errors.Join(errs...)
}

// ownAddrs are the addresses of the node's own links.
func (t *Table) ownAddrs() (map[netip.Addr]bool, error) {
	var h *vishnetlink.Handle
	var err error
	if t.netns < 0 {
		h, err = vishnetlink.NewHandle(unix.NETLINK_ROUTE)
	} else {
		h, err = vishnetlink.NewHandleAt(netns.NsHandle(t.netns), unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	list, err := h.AddrList(nil, vishnetlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	out := map[netip.Addr]bool{}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out[ip.Unmap()] = true
		}
	}
	return out, nil
}
