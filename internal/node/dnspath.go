// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/dnspath"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft/dnstable"
)

// DNSPath is the Part that brings queries to the cluster's DNS Service to the node's own server without connection
// tracking. See packages dnspath and dnstable.
type DNSPath struct {
	log     *slog.Logger
	repairs prometheus.Counter

	mu       sync.Mutex
	table    *dnspath.Table
	kernel   dnsKernel
	off      bool // this kernel can't do it
	complete bool
	inForce  dnspath.Paths
	failed   bool // what should be in the kernel may not be there
}

// dnsKernel is a dnstable.Table.
type dnsKernel interface {
	Apply(dnspath.Paths) error
	Forget()
	Wait(context.Context) (bool, error)
	Close() error
}

// NewDNSPath connects to the kernel in the network namespace of the calling thread. It changes nothing there before
// the first Update with a full picture. namespace is where the cluster's DNS Service is: answers of its servers pass
// policies, so nobody else's Service is one.
func NewDNSPath(node, namespace string, reg prometheus.Registerer, log *slog.Logger) (*DNSPath, error) {
	d := &DNSPath{log: log, table: dnspath.NewTable(node, namespace), failed: true, repairs: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "weft_dns_path_repairs_total",
		Help: "Times that the nftables tables for DNS queries were made anew because somebody else had changed them.",
	})}
	kernel, err := dnstable.Open()
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	d.kernel = kernel
	if reg != nil {
		ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "weft_dns_path_frontends",
			Help: "Addresses of the cluster's DNS Service whose queries this node's own server takes untracked.",
		}, d.frontends)
		if err := errors.Join(reg.Register(d.repairs), reg.Register(ready)); err != nil {
			_ = d.kernel.Close()
			return nil, fmt.Errorf("dns: %w", err)
		}
	}
	return d, nil
}

func (d *DNSPath) frontends() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return float64(len(d.inForce.Queries))
}

// Close lets go of the kernel, which goes on as it is.
func (d *DNSPath) Close() error { return d.kernel.Close() }

// Name implements Part.
func (d *DNSPath) Name() string { return "dns" }

// Update implements Part.
func (d *DNSPath) Update(_ context.Context, delta *model.Delta) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	touched := d.table.Update(delta)
	if d.complete = d.complete || delta.Complete; !d.complete || !(touched || d.failed) {
		return nil
	}
	return d.enforce()
}

// enforce brings the kernel to the table. Callers hold mu.
func (d *DNSPath) enforce() error {
	want := d.table.Paths()
	if d.off || !d.failed && want.Equal(d.inForce) {
		return nil
	}
	d.failed = true
	err := d.kernel.Apply(want)
	if unsupported(err) {
		// So says a kernel, too, whose tables somebody has just deleted: making them shows which it is.
		d.kernel.Forget()
		err = d.kernel.Apply(want)
	}
	switch {
	case unsupported(err): // a node without is a good node still
		d.log.Warn("DNS queries are tracked: the kernel lacks a part of nf_tables that it takes (notrack, fib, payload)", "err", err)
		d.off, d.inForce = true, dnspath.Paths{}
	case err != nil:
		return err
	default:
		d.inForce = want
		d.log.Info("DNS paths in force", "untracked", len(want.Queries), "servers", len(want.Servers))
	}
	d.failed = false
	return nil
}

// unsupported tells the error of a kernel that was built without an expression or a family of nf_tables.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// Run implements Part: it repairs the tables when somebody else has changed them.
func (d *DNSPath) Run(ctx context.Context) error {
	for {
		changed, err := d.kernel.Wait(ctx)
		if err != nil {
			return err
		}
		if !changed {
			return nil
		}
		for !d.repair() {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(repairPause):
			}
		}
	}
}

func (d *DNSPath) repair() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.complete {
		return true
	}
	d.log.Warn("somebody else changed the tables for DNS queries; making them anew")
	d.repairs.Inc()
	d.kernel.Forget()
	d.failed = true
	if err := d.enforce(); err != nil {
		d.log.Error("can't repair the tables for DNS queries; trying again", "err", err, "in", repairPause)
		return false
	}
	return true
}

// Cleanup implements Cleaner: it deletes the tables.
func (d *DNSPath) Cleanup(context.Context) error { return dnstable.Remove() }
