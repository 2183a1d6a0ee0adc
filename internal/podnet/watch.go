// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	mnl "github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// news is what the kernel told, as far as it may concern weft.
type news struct {
	links    []string       // pods' links that may lack something
	gone     []netip.Prefix // routes of weft's between nodes that were removed
	underlay bool           // addresses, links or routes of the node changed
	table    bool           // someone, weft included, changed weft's nftables table
}

// pending collects news until Run takes them.
type pending struct {
	mu    sync.Mutex
	n     news
	links map[string]bool
	wake  chan struct{}
}

func newPending() *pending {
	return &pending{links: make(map[string]bool), wake: make(chan struct{}, 1)}
}

func (p *pending) add(n news) {
	if !p.merge(n) {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// merge adds without waking anybody, and tells whether there was anything to add.
func (p *pending) merge(n news) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range n.links {
		p.links[l] = true
	}
	p.n.gone = append(p.n.gone, n.gone...)
	p.n.underlay = p.n.underlay || n.underlay
	p.n.table = p.n.table || n.table
	return len(n.links)+len(n.gone) > 0 || n.underlay || n.table
}

func (p *pending) take() news {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.n
	for l := range p.links {
		n.links = append(n.links, l)
	}
	p.n = news{}
	clear(p.links)
	return n
}

func (p *pending) has(link string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[link]
}

func (p *pending) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)+len(p.n.gone) == 0 && !p.n.underlay && !p.n.table
}

// tell hands news to those who act on them.
func (n *Network) tell(w news) {
	n.lost.add(news{links: w.links})
	w.links = nil
	n.news.add(w)
}

// Run repairs, until ctx is done, what others change of weft's links, routes, tunnels and table, and follows the
// node's own addresses and links. It acts on the kernel's word alone and never polls.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var routes, tables *mnl.Conn
	if err := n.ns.do(func() (err error) {
		if routes, err = mnl.Dial(unix.NETLINK_ROUTE, &mnl.Config{Groups: unix.RTMGRP_LINK | unix.RTMGRP_NEIGH |
			unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE}); err != nil {
			return err
		}
		if tables, err = mnl.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			return errors.Join(err, routes.Close())
		}
		if err := tables.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			return errors.Join(err, routes.Close(), tables.Close())
		}
		return nil
	}); err != nil {
		return fmt.Errorf("pod network: follow the kernel: %w", err)
	}
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(routes.Close(), tables.Close())
	})
	own := make(map[uint32]string)
	links := make(map[uint32]linkState)
	g.Go(func() error {
		return receive(ctx, routes, news{underlay: true}, func(m mnl.Message) { n.tell(n.routeNews(m, own, links)) }, n)
	})
	g.Go(func() error {
		return receive(ctx, tables, news{table: true}, func(m mnl.Message) { n.tell(tableNews(m)) }, n)
	})
	g.Go(func() error { return n.act(ctx, n.news, n.repair) })
	// A pod may have to wait for its policy. Nobody else waits for that.
	g.Go(func() error { return n.act(ctx, n.lost, n.restoreAll) })
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// receive hands every message to fn. When the kernel had to drop some, everything may have changed.
func receive(ctx context.Context, c *mnl.Conn, everything news, fn func(mnl.Message), n *Network) error {
	_ = c.SetReadBuffer(4 << 20) // best effort: a loss is noticed
	for {
		ms, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			everything.links = n.linkNames()
			n.tell(everything)
		case err != nil:
			return fmt.Errorf("pod network: follow the kernel: %w", err)
		}
		for _, m := range ms {
			fn(m)
		}
	}
}

func (n *Network) linkNames() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for l := range n.pods {
		names = append(names, l)
	}
	return names
}

// act has fn act on the news, all that is there at once. What it fails on is tried again after a growing while;
// news of other things doesn't hurry it, nor does it hold them up.
func (n *Network) act(ctx context.Context, p *pending, fn func(context.Context, news) (failed news, err error)) error {
	const shortest, longest = 100 * time.Millisecond, 2 * time.Second
	wait := shortest
	held := newPending()
	var retry <-chan time.Time
	for {
		var w news
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
			w = p.take()
			w.links = slices.DeleteFunc(w.links, held.has)
		case <-retry:
			w, retry = held.take(), nil
		}
		failed, err := fn(ctx, w)
		if err != nil {
			n.log.Error("podnet: repair", "err", err, "again in", wait)
			held.merge(failed)
		}
		switch {
		case held.empty():
			wait, retry = shortest, nil
		case retry == nil:
			retry = time.After(wait)
			wait = min(2*wait, longest)
		}
	}
}

// repair puts the node's routes, tunnels and table right.
func (n *Network) repair(_ context.Context, w news) (failed news, err error) {
	err = n.repairRoutes(w)
	failed.underlay = err != nil
	if !w.table {
		return failed, err
	}
	repaired, terr := n.table.repair()
	failed.table = terr != nil
	if repaired {
		n.metrics.repairs.WithLabelValues("table").Inc()
		n.log.Warn("podnet: table "+TableName+" was changed by someone else, putting it right", "err", terr)
	}
	return failed, errors.Join(err, terr)
}

// restoreAll puts pods' links right, several at a time.
func (n *Network) restoreAll(ctx context.Context, w news) (failed news, err error) {
	const atATime, patience = 8, 10 * time.Second
	var mu sync.Mutex
	var errs []error
	var g errgroup.Group
	g.SetLimit(atATime)
	for _, l := range w.links {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if err := n.restore(ctx, l); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
				failed.links = append(failed.links, l)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	return failed, errors.Join(errs...)
}

func (n *Network) repairRoutes(w news) error {
	n.routing.Lock()
	defer n.routing.Unlock()
	if !n.complete || n.topo.self == nil || len(n.topo.self.PodCIDRs) == 0 {
		return nil // Update begins it
	}
	look := w.underlay
	for _, d := range w.gone {
		if _, ours := n.router.have[d]; ours {
			look = true
			n.metrics.repairs.WithLabelValues("route").Inc()
			n.log.Warn("podnet: a route was removed by someone else, putting it back", "route", d)
		}
	}
	if !look {
		return nil
	}
	return n.resync(false)
}

// linkState is what matters of a link that is not weft's.
type linkState struct {
	flags uint32
	mtu   uint32
}

// routeNews reads a message of rtnetlink (rtnetlink(7)). own and links are the reader's memory: the names of weft's
// links by index, and the state of the others.
func (n *Network) routeNews(m mnl.Message, own map[uint32]string, links map[uint32]linkState) news {
	hdr := map[mnl.HeaderType]int{
		unix.RTM_NEWLINK: unix.SizeofIfInfomsg, unix.RTM_DELLINK: unix.SizeofIfInfomsg,
		unix.RTM_NEWADDR: unix.SizeofIfAddrmsg, unix.RTM_DELADDR: unix.SizeofIfAddrmsg,
		unix.RTM_NEWROUTE: unix.SizeofRtMsg, unix.RTM_DELROUTE: unix.SizeofRtMsg,
		unix.RTM_NEWNEIGH: unix.SizeofNdMsg, unix.RTM_DELNEIGH: unix.SizeofNdMsg,
	}[m.Header.Type]
	if hdr == 0 || len(m.Data) < hdr {
		return news{}
	}
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return n.linkNews(m, hdr, own, links)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return n.ownOr(own[binary.NativeEndian.Uint32(m.Data[4:])], m.Header.Type == unix.RTM_DELADDR, news{underlay: true})
	case unix.RTM_DELNEIGH:
		index := binary.NativeEndian.Uint32(m.Data[4:])
		if name := own[index]; name != "" {
			return n.ownOr(name, true, news{})
		}
		return news{}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return n.routeChange(m, hdr, own)
	}
	return news{}
}

// ownOr makes news about a link of weft's if name is one and something of it is missing, else says what else it is.
func (n *Network) ownOr(name string, missing bool, other news) news {
	switch {
	case name == "":
		return other
	case !missing:
		return news{}
	case podLink(name):
		n.mu.Lock()
		defer n.mu.Unlock()
		if a := n.pods[name]; a != nil && a.rec.Wired && !a.going {
			return news{links: []string{name}}
		}
		return news{}
	}
	return news{underlay: true} // a tunnel's: resync looks at its entries too
}

func (n *Network) linkNews(m mnl.Message, hdr int, own map[uint32]string, links map[uint32]linkState) news {
	if m.Data[0] == unix.AF_BRIDGE {
		return news{} // a bridge's port
	}
	index, flags := binary.NativeEndian.Uint32(m.Data[4:]), binary.NativeEndian.Uint32(m.Data[8:])
	ad, err := mnl.NewAttributeDecoder(m.Data[hdr:])
	if err != nil {
		return news{}
	}
	state := linkState{flags: flags & (unix.IFF_UP | unix.IFF_RUNNING)}
	name := ""
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			name = ad.String()
		case unix.IFLA_MTU:
			state.mtu = ad.Uint32()
		}
	}
	gone := m.Header.Type == unix.RTM_DELLINK
	if ownLink(name) {
		own[index] = name
		if gone {
			delete(own, index)
		}
		return n.ownOr(name, gone || flags&unix.IFF_UP == 0, news{})
	}
	delete(own, index) // renamed
	old, known := links[index]
	links[index] = state
	if gone {
		delete(links, index)
	}
	return news{underlay: gone || !known || old != state}
}

func (n *Network) routeChange(m mnl.Message, hdr int, own map[uint32]string) news {
	proto, kind := m.Data[5], m.Data[7]
	if binary.NativeEndian.Uint32(m.Data[8:])&unix.RTM_F_CLONED != 0 {
		return news{}
	}
	ad, err := mnl.NewAttributeDecoder(m.Data[hdr:])
	if err != nil {
		return news{}
	}
	var dst netip.Prefix
	oif := uint32(0)
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(ad.Bytes()); ok {
				dst = netip.PrefixFrom(a, int(m.Data[1]))
			}
		case unix.RTA_OIF:
			oif = ad.Uint32()
		}
	}
	removed := m.Header.Type == unix.RTM_DELROUTE
	switch name := own[oif]; {
	case podLink(name):
		return n.ownOr(name, removed && proto == routeProtocol, news{})
	case proto == routeProtocol && removed && dst.IsValid():
		return news{gone: []netip.Prefix{dst}}
	case proto == routeProtocol || name != "":
		return news{}
	}
	return news{underlay: kind == unix.RTN_UNICAST}
}

// tableNews reads a message of nf_tables. Whatever object it is about, its first attribute is the table's name.
func tableNews(m mnl.Message) news {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || m.Header.Type&0xff == unix.NFT_MSG_NEWGEN || len(m.Data) < 4 {
		return news{}
	}
	ad, err := mnl.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return news{}
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_TABLE_NAME && ad.String() == TableName {
			return news{table: true}
		}
	}
	return news{}
}
