// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// retryLinks is how long after a failure the node's links are looked at again.
const retryLinks = time.Second

// watchLinks keeps links in step with the node's until ctx is done.
func (a *Announcer) watchLinks(ctx context.Context) {
	for ctx.Err() == nil {
		if err := a.followLinks(ctx); err != nil {
			a.opts.Log.Warn("following the node's links again from the start", "err", err)
			select {
			case <-time.After(retryLinks):
			case <-ctx.Done():
			}
		}
	}
}

// followLinks looks at the links, and again after each change, until the kernel's notifications end.
func (a *Announcer) followLinks(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	// The library's goroutines block on these channels until done is closed and the socket with it.
	defer func() {
		go func() {
			for range links {
			}
		}()
		go func() {
			for range addrs {
			}
		}()
	}()
	var ns *netns.NsHandle
	if a.opts.NetNS != 0 {
		h := netns.NsHandle(a.opts.NetNS)
		ns = &h
	}
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{Namespace: ns}); err != nil {
		close(links)
		close(addrs)
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{Namespace: ns}); err != nil {
		close(addrs)
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	for {
		a.mu.Lock()
		err := a.rescan()
		a.mu.Unlock()
		if err != nil {
			return err
		}
		a.poke()
		for seen := false; !seen; {
			select {
			case <-ctx.Done():
				return nil
			case u, ok := <-links:
				if !ok {
					return errors.New("the kernel's notifications about links ended")
				}
				seen = !isPodLink(u.Attrs().Name) // pods come and go: that concerns nobody here
			case _, ok := <-addrs:
				if !ok {
					return errors.New("the kernel's notifications about addresses ended")
				}
				seen = true
			}
		}
		// One change comes as several notifications: take what is there.
		for more := true; more; {
			select {
			case _, more = <-links:
			case _, more = <-addrs:
			default:
				more = false
			}
		}
	}
}

// rescan opens links that have become usable, closes those that no longer are, and gives each its addresses. The
// caller holds the lock.
func (a *Announcer) rescan() error {
	if a.closed {
		return nil
	}
	infos, err := listLinks(a.nl)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	now := time.Now()
	there := make(map[int]bool)
	changed := false
	for _, info := range infos {
		if !usable(info, a.opts.Links, a.nodes[a.opts.Node]) {
			continue
		}
		there[info.index] = true
		l := a.links[info.index]
		if l != nil && l.mac != info.mac {
			a.drop(l, "its Ethernet address changed")
			l = nil
		}
		if l == nil {
			if l, err = a.open(info, now); err != nil {
				a.opts.Log.Error("can't announce on the link; trying again", "link", info.name, "err", err)
				a.retry = now.Add(retryLinks)
				continue
			}
			a.links[info.index] = l
			changed = true
			continue
		}
		if !slices.EqualFunc(l.subnets, info.subnets, func(x, y netip.Prefix) bool { return x == y }) {
			l.subnets = info.subnets
			changed = true
		}
	}
	for index, l := range a.links {
		if !there[index] {
			a.drop(l, "it is down, gone, or without a subnet")
			changed = true
		}
	}
	if !changed {
		return nil
	}
	for _, l := range a.links {
		var o outcome
		for x := range a.wanted {
			if c := a.on(l, x); c != nil || l.seg.wanted[x] != nil {
				o.add(l.seg.want(now, x, c))
			}
		}
		a.apply(now, l, o)
	}
	return nil
}

// open begins to listen on a link.
func (a *Announcer) open(info linkInfo, now time.Time) (*link, error) {
	l := &link{
		linkInfo: info,
		tick:     a.ticks[info.name],
		seg:      newSegment(a.opts.Node, now),
		groups:   &groups{netns: a.opts.NetNS, ifindex: info.index, joined: make(map[netip.Addr]*membership)},
		foreign:  make(map[netip.Addr]*foreignHost),
	}
	l.seg.able = a.opts.Able == nil || a.opts.Able()
	var err error
	if l.hello, err = openPacket(a.opts.NetNS, info.index, helloType, nil); err != nil {
		return nil, err
	}
	if l.arp, err = openPacket(a.opts.NetNS, info.index, unix.ETH_P_ARP, nil); err != nil {
		l.hello.close()
		return nil, err
	}
	if l.ndp, err = openPacket(a.opts.NetNS, info.index, unix.ETH_P_IPV6, ndpFilter); err != nil {
		l.hello.close()
		l.arp.close()
		return nil, err
	}
	for _, r := range []struct {
		socket *packetSocket
		handle func(*link, []byte)
	}{{l.hello, a.hearHello}, {l.arp, a.hearARP}, {l.ndp, a.hearNDP}} {
		go func() {
			if err := r.socket.receive(func(frame []byte) { r.handle(l, frame) }); err != nil {
				a.opts.Log.Error("receiving on the link failed; opening it again", "link", l.name, "err", err)
				a.mu.Lock()
				defer a.mu.Unlock()
				if a.links[l.index] == l {
					a.drop(l, "receiving failed")
					a.retry = time.Now().Add(retryLinks)
					a.poke()
				}
			}
		}()
	}
	a.opts.Log.Info("LoadBalancer addresses are announced on the link", "link", l.name, "subnets", l.subnets)
	return l, nil
}

// drop ceases to announce on a link. The caller holds the lock.
func (a *Announcer) drop(l *link, why string) {
	delete(a.links, l.index)
	a.ticks[l.name] = l.tick
	a.opts.Log.Info("addresses are no longer announced on the link", "link", l.name, "why", why)
	for x := range l.seg.mine {
		a.metrics.moves.WithLabelValues("released").Inc()
		if a.opts.Moved != nil {
			a.opts.Moved(x, l.name, false)
		}
	}
	l.hello.close()
	l.arp.close()
	l.ndp.close()
	l.groups.close()
}

func (a *Announcer) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, l := range a.links {
		a.drop(l, "the agent stops")
	}
}
