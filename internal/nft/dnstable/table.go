// SPDX-License-Identifier: Apache-2.0

package dnstable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/internal/dnspath"
	"github.com/weft-net/weft/internal/nft"
)

// Table is the kernel's tables. It is not safe for concurrent use, but for Wait.
type Table struct {
	conn     *nft.Conn
	monitor  *nft.Monitor
	families [2]*family
	made     bool // the tables are there, and hold what was applied last
	batch    nft.Batch
}

// Open connects to the kernel in the network namespace of the calling thread. Nothing is changed yet.
func Open() (*Table, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	monitor, err := nft.NewMonitor(conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &Table{conn: conn, monitor: monitor, families: [2]*family{newFamily(nft.IPv4), newFamily(nft.IPv6)}}, nil
}

// Close lets go of the kernel; the tables stay and go on working.
func (t *Table) Close() error { return errors.Join(t.monitor.Close(), t.conn.Close()) }

// Wait returns true when somebody else has changed the tables, false when ctx is done. It is safe beside the other
// methods.
func (t *Table) Wait(ctx context.Context) (bool, error) {
	return t.monitor.Wait(ctx, t.families[0].table, t.families[1].table)
}

// Forget has the next Apply make the tables anew, whatever is there.
func (t *Table) Forget() { t.made = false }

// Apply brings the kernel to the paths in one transaction: there is no moment without the ones or the others. The
// first time it makes the tables anew.
func (t *Table) Apply(p dnspath.Paths) error {
	if err := t.monitor.Join(); err != nil {
		return err
	}
	b := &t.batch
	b.Reset()
	for _, f := range t.families {
		if t.made {
			for _, s := range f.sets() {
				b.FlushSet(s)
			}
		} else {
			f.make(b)
		}
	}
	t.made = false
	for _, q := range p.Queries {
		b.Add(t.family(q.Frontend).queries, appendPair(nil, q.Frontend), q.Server.AsSlice(), q.Service.String())
	}
	port := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	for _, s := range p.Servers {
		f, at := t.family(s.Frontend), func(p uint16) []byte { return appendPair(nil, netip.AddrPortFrom(s.Addr, p)) }
		b.Add(f.servers, s.Addr.AsSlice(), nil, "")
		b.Add(f.targets, at(s.Frontend.Port()), port(s.Port), "")
		b.Add(f.ports, at(s.Port), port(s.Untracked), "")
		b.Add(f.answers, at(s.Untracked), s.Frontend.Addr().AsSlice(), "")
	}
	if err := t.conn.Commit(b); err != nil {
		return fmt.Errorf("DNS tables: %w", err)
	}
	t.made = true
	return nil
}

func (t *Table) family(ap netip.AddrPort) *family {
	if ap.Addr().Is4() {
		return t.families[0]
	}
	return t.families[1]
}

// make has the batch make a table without elements, in place of one that may be there.
func (f *family) make(b *nft.Batch) {
	b.DiscardTable(f.table)
	b.AddTable(f.table, "queries to the cluster's DNS Service, to this node's own server")
	for _, s := range f.sets() {
		b.AddSet(s)
	}
	for _, c := range f.chains() {
		k := nft.Chain{Table: f.table, Name: c.name, Hook: &c.hook}
		b.AddChain(k)
		for _, r := range c.rules {
			b.AddRule(k, r.text, r.exprs...)
		}
	}
}

// Remove deletes the tables of the network namespace of the calling thread.
func Remove() error {
	conn, err := nft.Dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var b nft.Batch
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		b.DiscardTable(nft.Table{Family: f, Name: TableName})
	}
	if err := conn.Commit(&b); err != nil {
		return fmt.Errorf("remove the DNS tables: %w", err)
	}
	return nil
}
