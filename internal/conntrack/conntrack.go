// SPDX-License-Identifier: Apache-2.0

// Package conntrack ends connections that the kernel tracks: chosen ones, never all. A tracked connection keeps
// going where its first packet went; who takes that away must also take away the tracking, or what the client sends
// next disappears.
//
// It also sets how many the kernel tracks, and for how long.
//
// What is to end is decided by whoever calls. It imports model and the netlink library.
package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"

	"github.com/weft-net/weft/internal/model"
)

// Flow is a tracked connection.
type Flow struct {
	Protocol model.Protocol // also of those that the model does not name, as ICMP; ports are 0 there
	Source   netip.AddrPort // of its first packet
	Dest     netip.AddrPort // of its first packet, as the client sent it
	Peer     netip.AddrPort // who answers: the endpoint, where Dest was a Service
	Answered bool           // a packet has come back

	key key
}

// Table is the connection table of a network namespace. It is not safe for concurrent use.
type Table struct {
	dump *conntrack.Conn
	conn *netfilter.Conn
}

// readBuffer takes in a burst of the table while it is decoded.
const readBuffer = 4 << 20

// Open connects to the kernel, in the network namespace of that file descriptor; 0 is the calling thread's.
func Open(netns int) (*Table, error) {
	t := new(Table)
	var err error
	if t.dump, err = conntrack.Dial(&netlink.Config{NetNS: netns}); err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	if t.conn, err = netfilter.Dial(&netlink.Config{NetNS: netns}); err != nil {
		_ = t.dump.Close()
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	// Where more than the system's usual limit may not be had, what there is will do.
	_ = t.dump.SetReadBuffer(readBuffer)
	return t, nil
}

// Close lets go of the kernel.
func (t *Table) Close() error { return errors.Join(t.dump.Close(), t.conn.Close()) }

// Flows reads the connections of a family. The kernel has one table for all network namespaces and
// goes through the whole of it: expect milliseconds.
func (t *Table) Flows(f model.Family) ([]Flow, error) {
	proto := netfilter.ProtoIPv4
	if f == model.IPv6 {
		proto = netfilter.ProtoIPv6
	}
	raw, err := t.dump.DumpFilter(conntrack.NewFilter().Family(proto), nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: read the %s connections: %w", f, err)
	}
	out := make([]Flow, 0, len(raw))
	for i := range raw {
		out = append(out, flowOf(&raw[i]))
	}
	return out, nil
}

func flowOf(f *conntrack.Flow) Flow {
	o, r := f.TupleOrig, f.TupleReply
	return Flow{
		Protocol: model.Protocol(o.Proto.Protocol),
		Source:   netip.AddrPortFrom(o.IP.SourceAddress.Unmap(), o.Proto.SourcePort),
		Dest:     netip.AddrPortFrom(o.IP.DestinationAddress.Unmap(), o.Proto.DestinationPort),
		Peer:     netip.AddrPortFrom(r.IP.SourceAddress.Unmap(), r.Proto.SourcePort),
		Answered: f.Status.SeenReply(),
		key:      key{tuple: r, zone: f.Zone, id: f.ID},
	}
}
