// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/internal/nft/policytable"
	"github.com/weft-net/weft/internal/policy"
)

const (
	// nameGrace is how long an answer counts beyond its TTL: a client that has just been told may take a moment.
	nameGrace = 30 * time.Second

	// maxNames bounds how many addresses are learned, of all names together.
	maxNames = 65536

	// DefaultNamesFile is where a node's agent keeps what names resolved to. It is to outlive the agent, not the node.
	DefaultNamesFile = "/run/weft/names.json"
)

// followNames takes resolvers' answers to pods whose policies go by name, until ctx is done.
func (p *Policy) followNames(ctx context.Context) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		start := time.Now()
		err := p.table.Answers(ctx, func(a *policytable.Answer) {
			if err := p.answer(a, time.Now()); err != nil {
				p.log.Error("a resolver's answer could not be put in force; its addresses stay closed", "pod", a.Pod, "err", err)
			}
			if err := p.table.Deliver(a); err != nil {
				p.log.Warn("a resolver's answer is lost", "err", err)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > retryMax {
			wait = retryMin
		}
		p.log.Warn("policies that go by name learn no new address for now; trying again", "err", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// answer puts what an answer says in force. It returns once the kernel has it.
func (p *Policy) answer(a *policytable.Answer, now time.Time) error {
	var errs []error
	for _, m := range a.Messages {
		errs = append(errs, p.learn(m, now))
	}
	return errors.Join(errs...)
}

// learn puts what one message says in force.
func (p *Policy) learn(message []byte, now time.Time) error {
	names, addrs, ttl := resolutions(message)
	if len(addrs) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	until := now.Add(ttl + nameGrace)
	var errs []error
	var changed []*expiring
	for _, name := range names {
		if !p.compiler.NamesMatter(name) {
			continue
		}
		var kept []netip.Addr // only what lapses one day may be opened
		for _, addr := range addrs {
			r := resolution{name, addr}
			if !p.expiry.knows(r) && p.expiry.len() >= maxNames {
				errs = append(errs, fmt.Errorf("%s: %s stays closed, for %d addresses are known already: make the policies' domainNames narrower", name, addr, maxNames))
				continue
			}
			kept = append(kept, addr)
			changed = append(changed, p.expiry.extend(r, until))
		}
		change := p.compiler.Learn(name, kept...)
		if !change.Empty() {
			errs = append(errs, p.enforce(change))
		}
	}
	errs = append(errs, p.names.keep(changed, p.expiry))
	p.alarm(now)
	return errors.Join(errs...)
}

// resolutions reads of a DNS response which names lead to which addresses: the question's name and its aliases
// (CNAME) within the same response, and the smallest TTL on the way.
func resolutions(wire []byte) (names []string, addrs []netip.Addr, ttl time.Duration) {
	var m dns.Msg
	if wire == nil || m.Unpack(wire) != nil || !m.Response || m.Rcode != dns.RcodeSuccess || len(m.Question) != 1 {
		return nil, nil, 0
	}
	least := ^uint32(0)
	names = []string{policy.NormalName(m.Question[0].Name)}
	for grown := true; grown; {
		grown = false
		for _, rr := range m.Answer {
			c, ok := rr.(*dns.CNAME)
			if !ok || !slices.Contains(names, policy.NormalName(c.Hdr.Name)) || slices.Contains(names, policy.NormalName(c.Target)) {
				continue
			}
			names, grown = append(names, policy.NormalName(c.Target)), true
			least = min(least, c.Hdr.Ttl)
		}
	}
	for _, rr := range m.Answer {
		var ip []byte
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A.To4()
		case *dns.AAAA:
			ip = rr.AAAA.To16()
		}
		if a, ok := netip.AddrFromSlice(ip); ok && slices.Contains(names, policy.NormalName(rr.Header().Name)) {
			addrs = append(addrs, a.Unmap())
			least = min(least, rr.Header().Ttl)
		}
	}
	return names, addrs, time.Duration(least) * time.Second
}

// nameCount is how many addresses are open by name.
func (p *Policy) nameCount() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return float64(p.expiry.len())
}

// alarm sees to it that what is too old lapses. Callers hold mu.
func (p *Policy) alarm(now time.Time) {
	next := p.expiry.first()
	if next.IsZero() || !p.nextLapse.IsZero() && !next.Before(p.nextLapse) {
		return
	}
	if p.lapser != nil {
		p.lapser.Stop()
	}
	p.nextLapse = next
	p.lapser = time.AfterFunc(next.Sub(now), func() {
		if err := p.lapse(time.Now()); err != nil {
			p.log.Error("can't take back addresses of names whose answers are too old; trying again", "err", err)
		}
	})
}

// lapse takes back what is too old. New connections to it are refused then; open ones go on.
func (p *Policy) lapse(now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	var errs []error
	for name, addrs := range p.expiry.due(now) {
		errs = append(errs, p.enforce(p.compiler.Lapse(name, addrs...)))
	}
	p.nextLapse = time.Time{}
	p.alarm(now)
	return errors.Join(errs...)
}

// recallNames takes over what an earlier agent of this node has kept.
func (p *Policy) recallNames(now time.Time) error {
	list, err := p.names.read()
	for _, l := range list {
		if l.Until.After(now) {
			p.expiry.extend(l.resolution, l.Until)
			p.compiler.Learn(l.Name, l.Addr)
		}
	}
	p.alarm(now)
	return err
}
