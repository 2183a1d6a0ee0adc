// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/service"
)

func ofFamily(ps []netip.Prefix, f *family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if p.Addr().BitLen() == f.bits {
			out = append(out, p.Masked())
		}
	}
	return disjoint(out)
}

// Table is the kernel's tables and what is known of their contents. It is not safe for concurrent use, but for Wait.
type Table struct {
	conn    *nft.Conn
	commit  func(*nft.Batch) error // conn's
	monitor *nft.Monitor
	cfg     service.Scope
	owns    bool   // the tables that it makes have it as their owner
	limit   int    // of one transaction, bytes
	resized uint32 // what the Size of new sets becomes: unlimited

	routes *netlink.Handle
	lo     int // index of the loopback interface
	synced bool

	v4, v6 *family
	held   map[service.Frontend]*held
	shared map[labels]*labels
	groups map[service.Frontend]*group // by the frontend of the cluster IP
	picks  map[pickChain]int           // the picks that there are, by how many labels lead there
	codes  *codes
	ips    map[netip.Addr]int // cluster IPs, by how many frontends
	local  map[netip.Addr]int // local endpoints, by how many frontends

	unused []pickChain // picks that may have no label any more, the oldest first

	rewritten int // chains that were not as they should be

	adopting bool // counts are only taken, not written: Sync does it at its end
	batch    *nft.Batch
	spare    *nft.Batch // takes turns with batch while Sync commits
	pending  chan error // the result of a commit under way; nil if there is none
	serial   bool       // Sync waits for each commit
	commits  uint32     // of Sync so far
	plans    []plan     // scratch
	key      []byte     // scratch
	data     []byte     // scratch
}

// pickChain is the chain of a pick for addresses or for node ports of one family.
type pickChain struct {
	pick
	family   model.Family
	nodePort bool
}

// Options are how a Table is to work.
type Options struct {
	// Shared leaves the tables for everybody to change. Else, where the kernel can (Linux 6.9), nobody but this process
	// may change or remove them, not even by a flush of the whole ruleset; they outlive the process, and are then there
	// for whoever comes first.
	Shared bool
}

// Open connects to the kernel in the network namespace of the calling thread. Nothing is changed yet.
func Open(cfg service.Scope, o Options) (*Table, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	monitor, err := nft.NewMonitor(conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	t := &Table{
		conn: conn, commit: conn.Commit, monitor: monitor, cfg: cfg, limit: min(conn.Limit(), maxTransaction), resized: unlimited,
		v4: newFamily(nft.IPv4), v6: newFamily(nft.IPv6), batch: new(nft.Batch),
	}
	if !o.Shared {
		t.owns, err = conn.CanOwn()
	}
	if err == nil {
		t.routes, t.lo, err = openRoutes()
	}
	if err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// maxTransaction bounds a transaction, in bytes, where the socket would take more: while one is committed, nobody
// else changes any table.
const maxTransaction = 2 << 20

// Close lets go of the kernel; the tables stay and go on forwarding.
func (t *Table) Close() error {
	if t.routes != nil {
		t.routes.Close()
	}
	return errors.Join(t.monitor.Close(), t.conn.Close())
}

// Wait returns true when somebody else has changed the tables, false when ctx is done. It is safe beside the other
// methods.
func (t *Table) Wait(ctx context.Context) (bool, error) {
	return t.monitor.Wait(ctx, t.v4.table, t.v6.table)
}

// openRoutes connects to the routing tables of the calling thread's network namespace.
func openRoutes() (*netlink.Handle, int, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, 0, fmt.Errorf("route netlink socket: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		h.Close()
		return nil, 0, fmt.Errorf("loopback interface: %w", err)
	}
	return h, lo.Attrs().Index, nil
}

// Configure implements service.Forwarder.
func (t *Table) Configure(cfg service.Scope) {
	t.cfg = cfg
	t.synced = false
}

// Synced tells whether Apply will do: the contents of the tables are known. Otherwise Sync is needed.
func (t *Table) Synced() bool { return t.synced }

// Apply brings the changes into force, all frontends of one Service at the same moment, and changes that fit one
// transaction all at once. After an error Sync is needed.
func (t *Table) Apply(changes []service.Change) error {
	if !t.synced {
		return errors.New("nftables: the service tables were not read yet")
	}
	t.synced = false
	t.batch.Reset()
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && owner(changes[n]) == owner(changes[0]) {
			n++
		}
		if err := t.applyService(changes[:n]); err != nil {
			return err
		}
		changes = changes[n:]
	}
	if err := t.flush(true); err != nil {
		return err
	}
	t.synced = true
	return nil
}

func owner(c service.Change) model.Name {
	if c.New != nil {
		return c.New.Service
	}
	return c.Old.Service
}

// flush commits what has gathered, at the latest when half a transaction is full. Sync commits less at once, and while
// the kernel works on it goes on with the next; what becomes of it, a later flush tells.
func (t *Table) flush(all bool) error {
	full := t.limit / 2
	if t.adopting {
		full = min(full, syncTransaction)
	}
	if !all && t.batch.Len() < full {
		return nil
	}
	t.dropUnused()
	if err := t.await(); err != nil {
		t.batch.Reset()
		return err
	}
	if !t.batch.Empty() {
		t.commits++
	}
	if all || t.serial || !t.adopting {
		err := t.commit(t.batch)
		t.batch.Reset()
		return err
	}
	if t.spare == nil {
		t.spare = new(nft.Batch)
	}
	b, done := t.batch, make(chan error, 1)
	t.batch, t.spare, t.pending = t.spare, b, done
	t.batch.Reset()
	go func() { done <- t.commit(b) }()
	return nil
}

// syncTransaction is how many bytes Sync gathers before it has them committed.
const syncTransaction = 256 << 10

// await waits for the commit under way.
func (t *Table) await() error {
	if t.pending == nil {
		return nil
	}
	err := <-t.pending
	t.pending = nil
	return err
}

// Present tells whether there are tables of an earlier agent, of any layout, that forward: those that were not completed
// don't.
func (t *Table) Present() (bool, error) {
	names, err := t.conn.Tables(nft.IPv4)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		if !ours(n) {
			continue
		}
		chains, err := t.conn.Chains(nft.Table{Family: nft.IPv4, Name: n})
		if err != nil || slices.Contains(chains, chainPrerouting) {
			return err == nil, err
		}
	}
	return false, nil
}

// Remove deletes the tables, those of other layouts too, and with them every trace.
func (t *Table) Remove() error {
	t.synced = false
	var b nft.Batch
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		names, err := t.conn.Tables(f)
		if err != nil {
			return err
		}
		for _, n := range names {
			if ours(n) {
				b.DeleteTable(nft.Table{Family: f, Name: n})
			}
		}
	}
	if err := t.conn.Commit(&b); err != nil {
		return fmt.Errorf("remove the service tables: %w", err)
	}
	var errs []error
	for _, a := range aliases {
		errs = append(errs, removeAlias(t.routes, a, t.lo))
	}
	return errors.Join(errs...)
}
