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

	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
)

// Flow is a tracked connection.
type Flow struct {
	Protocol model.Protocol
	Source   netip.AddrPort // of its first packet
	Dest     netip.AddrPort // of its first packet, as the client sent it
	Peer     netip.AddrPort // who answers: the endpoint, where Dest was a Service
	Answered bool           // a packet has come back

	raw conntrack.Flow // what the kernel knows it by
}

// Table is the connection table of the network namespace of the thread that opened it. It is not safe for
// concurrent use.
type Table struct {
	conn *conntrack.Conn
}

// readBuffer takes in a burst of the table while it is decoded.
const readBuffer = 4 << 20

// Open connects to the kernel.
func Open() (*Table, error) {
	c, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	// Where more than the system's usual limit may not be had, what there is will do.
	_ = c.SetReadBuffer(readBuffer)
	return &Table{conn: c}, nil
}

// Close lets go of the kernel.
func (t *Table) Close() error { return t.conn.Close() }

// Flows reads the TCP, UDP and SCTP connections of a family. The kernel has one table for all network namespaces and
// goes through the whole of it: expect milliseconds.
func (t *Table) Flows(f model.Family) ([]Flow, error) {
	proto := netfilter.ProtoIPv4
	if f == model.IPv6 {
		proto = netfilter.ProtoIPv6
	}
	raw, err := t.conn.DumpFilter(conntrack.NewFilter().Family(proto), nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: read the %s connections: %w", f, err)
	}
	out := make([]Flow, 0, len(raw))
	for i := range raw {
		if flow, ok := flowOf(&raw[i]); ok {
			out = append(out, flow)
		}
	}
	return out, nil
}

// Delete ends connections that Flows has read, and returns how many. One that has ended by itself meanwhile, or was
// replaced by a new one between the same ends, does not count and is no error.
func (t *Table) Delete(flows []Flow) (int, error) {
	n := 0
	var errs []error
	for _, f := range flows {
		switch err := t.conn.Delete(f.raw); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT):
			errs = append(errs, fmt.Errorf("conntrack: delete %s %s -> %s: %w", f.Protocol, f.Source, f.Dest, err))
		}
	}
	return n, errors.Join(errs...)
}

func flowOf(f *conntrack.Flow) (Flow, bool) {
	o, r := f.TupleOrig, f.TupleReply
	p := model.Protocol(o.Proto.Protocol)
	if p != model.TCP && p != model.UDP && p != model.SCTP {
		return Flow{}, false
	}
	return Flow{
		Protocol: p,
		Source:   netip.AddrPortFrom(o.IP.SourceAddress.Unmap(), o.Proto.SourcePort),
		Dest:     netip.AddrPortFrom(o.IP.DestinationAddress.Unmap(), o.Proto.DestinationPort),
		Peer:     netip.AddrPortFrom(r.IP.SourceAddress.Unmap(), r.Proto.SourcePort),
		Answered: f.Status.SeenReply(),
		raw:      conntrack.Flow{TupleOrig: o, TupleReply: r, ID: f.ID, Zone: f.Zone},
	}, true
}
