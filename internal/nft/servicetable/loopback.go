// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/nft"
	"github.com/weft-net/weft/internal/service"
)

// Node ports on 127.0.0.1 and ::1.
//
// The kernel does not route what has a loopback address away from the loopback interface, nor what comes back: IPv4
// can be told to (route_localnet, which opens the node's 127.0.0.1 to its neighbours), IPv6 can't. So a packet of the
// node to one of its node ports there changes both its addresses, loopback, to an alias before anything else sees
// it, and what comes back changes them again after everything else. The alias is an address that only this node has
// and nobody uses: a route makes it local. No connection is kept for it, and no sysctl changes.
//
// The 16-bit words of an alias add up, in ones' complement, to what those of the loopback address do. So no checksum
// changes, whichever way the packet has come by it, as in RFC 6296; to have the kernel adjust checksums here would
// spoil IPv6 packets of which a network card has summed up the whole (CHECKSUM_COMPLETE).
var (
	aliases = map[nft.Family]netip.Addr{
		nft.IPv4: netip.MustParseAddr("169.254.213.2"),
		nft.IPv6: netip.MustParseAddr("fd77:6566:7400::2922"),
	}
	loopbacks = map[nft.Family]netip.Addr{
		nft.IPv4: netip.MustParseAddr("127.0.0.1"),
		nft.IPv6: netip.IPv6Loopback(),
	}
)

// priorityUndo comes after all others in the input hook, source NAT's 100 included.
const priorityUndo = 300

// onLoopback tells whether the family has node ports on its loopback address: where only some addresses have them, it
// must be one of those.
func (f *family) onLoopback(cfg *service.Scope) bool {
	ranges := ofFamily(cfg.NodePorts, f)
	return cfg.LoopbackNodePorts && (len(ranges) == 0 ||
		slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(loopbacks[f.table.Family]) }))
}

// withNodePorts are the ranges of addresses that have node ports, as the rules see them: what comes from the loopback
// address has the alias. Empty: all.
func (f *family) withNodePorts(cfg *service.Scope) []netip.Prefix {
	ranges := ofFamily(cfg.NodePorts, f)
	if len(ranges) > 0 && f.onLoopback(cfg) {
		alias := aliases[f.table.Family]
		ranges = disjoint(append(ranges, netip.PrefixFrom(alias, alias.BitLen())))
	}
	return ranges
}

// loopbackChains turn loopback addresses into the alias and back.
func (f *family) loopbackChains() []chain {
	lo, alias := loopbacks[f.table.Family], aliases[f.table.Family]
	np := key{f, true}
	nodePort := slices.Concat(f.between(lo), np.load(vipReg, lookup(f.services, vipReg, labelReg), setPriority(labelReg)))
	udp := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: vipReg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: vipReg, Data: []byte{byte(model.UDP)}},
	}
	rejected := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: vipReg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: vipReg, Data: native32(firstFixed)},
	}
	reset := []expr.Any{&expr.Immediate{Register: vipReg, Data: native32(0)}, setPriority(vipReg)}
	return []chain{
		{name: "loopback", hook: &nft.Hook{Type: "route", Num: unix.NF_INET_LOCAL_OUT, Priority: priorityRaw}, rules: []rule{
			newRule("an ICMP error about the alias would not be understood", udp, nodePort, rejected, one(gotoChain(labelReject))),
			newRule("", nodePort, reset, f.setBoth(alias)),
		}},
		{name: "loopback-undo", hook: &nft.Hook{Type: "filter", Num: unix.NF_INET_LOCAL_IN, Priority: priorityUndo}, rules: []rule{
			newRule("", f.between(alias), f.setBoth(lo)),
		}},
	}
}

// between matches packets from and to the same address.
func (f *family) between(a netip.Addr) []expr.Any {
	is := one(&expr.Cmp{Op: expr.CmpOpEq, Register: vipReg, Data: a.AsSlice()})
	return slices.Concat(f.saddr(vipReg), is, f.daddr(vipReg), is)
}

// setBoth writes an address over source and destination.
func (f *family) setBoth(a netip.Addr) []expr.Any {
	out := one(&expr.Immediate{Register: vipReg, Data: a.AsSlice()})
	for _, at := range [][]expr.Any{f.saddr(vipReg), f.daddr(vipReg)} {
		p := *at[0].(*expr.Payload)
		p.OperationType, p.SourceRegister, p.DestRegister = expr.PayloadWrite, vipReg, 0
		out = append(out, &p)
	}
	return out
}

// setAliases makes the aliases addresses of this node, or no longer.
func (t *Table) setAliases() error {
	var errs []error
	for _, fam := range []*family{t.v4, t.v6} {
		f := fam.table.Family
		a := aliases[f]
		if fam.onLoopback(&t.cfg) {
			if err := t.routes.RouteReplace(aliasRoute(a, t.lo)); err != nil && !noFamily(err) && !errors.Is(err, unix.ENETDOWN) {
				// With the loopback interface down there is nobody to serve.
				errs = append(errs, fmt.Errorf("node ports on loopback: local route to %s (%s): %w", a, f, err))
			}
		} else if err := removeAlias(t.routes, a, t.lo); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeAlias(h *netlink.Handle, a netip.Addr, lo int) error {
	err := h.RouteDel(aliasRoute(a, lo))
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) && !noFamily(err) {
		return fmt.Errorf("delete the local route to %s: %w", a, err)
	}
	return nil
}

// noFamily tells the error of a kernel that has IPv6 turned off.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES)
}

func aliasRoute(a netip.Addr, lo int) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: lo, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
	}
	if a.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE // IPv6 routes have no other
	}
	return r
}
