// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/dnszone"
)

// complete fills in defaults that are not another package's.
func (c *Config) complete() {
	setDefault(&c.TTL, Duration(5*time.Second))
	setDefault(&c.NegativeTTL, *c.TTL)
	if len(c.Forward.Upstreams) == 0 {
		c.Forward.Upstreams = []string{resolvConf}
	}
	c.Forward.complete()
	for i := range c.StubDomains {
		c.StubDomains[i].complete()
	}
	l := &c.Limits
	l.Upstream = cmp.Or(l.Upstream, 2000)
	l.Waiting = cmp.Or(l.Waiting, 20000)
	l.Connections = cmp.Or(l.Connections, 4000)
	l.PerClient = cmp.Or(l.PerClient, 256)
	l.UDPSize = cmp.Or(l.UDPSize, 1232)
	l.IdleConnection = cmp.Or(l.IdleConnection, Duration(20*time.Second))
	k := &c.Cache
	k.MaxBytes = cmp.Or(k.MaxBytes, 64<<20)
	k.Entries = cmp.Or(k.Entries, 50000)
	k.MaxTTL = cmp.Or(k.MaxTTL, Duration(time.Hour))
	k.NegativeTTL = cmp.Or(k.NegativeTTL, Duration(30*time.Minute))
	setDefault(&k.ServFailTTL, Duration(2*time.Second))
	setDefault(&k.ServeStale, Duration(time.Hour))
	setDefault(&k.Prefetch, true)
	c.External.TTL = cmp.Or(c.External.TTL, Duration(5*time.Minute))
	c.External.QueriesPerSec = cmp.Or(c.External.QueriesPerSec, 200)
}

func (f *Forward) complete() {
	f.Policy = cmp.Or(f.Policy, Random)
	f.Timeout = cmp.Or(f.Timeout, Duration(5*time.Second))
}

// reverseZone is the first zone of whole labels in a range.
func reverseZone(p netip.Prefix) string {
	per := 8
	if p.Addr().Is6() {
		per = 4
	}
	labels := strings.Split(dnszone.ReverseName(p.Masked().Addr()), ".")
	return strings.TrimSuffix(strings.Join(labels[p.Addr().BitLen()/per-(p.Bits()+per-1)/per:], "."), ".")
}

func setDefault[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// faults gathers what is wrong with fields.
type faults []error

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }

func (f *faults) name(field, s string) {
	if _, err := dnszone.PackName(s); err != nil {
		f.add("%s: %w", field, err)
	}
}

// check tells what is wrong with the fields.
func (c *Config) check() error {
	var bad faults
	if _, ok := podModes[c.Pods]; !ok {
		bad.add("pods: %q: want insecure, verified or disabled", c.Pods)
	}
	bad.name("clusterDomain", c.ClusterDomain)
	c.checkForwarding(&bad)
	c.checkNames(&bad)
	c.checkBounds(&bad)
	return errors.Join(bad...)
}

func (c *Config) checkForwarding(bad *faults) {
	c.Forward.check("forward", bad)
	for i := range c.StubDomains {
		s := &c.StubDomains[i]
		field := fmt.Sprintf("stubDomains[%d]", i)
		s.check(field, bad)
		if len(s.Zones) == 0 {
			bad.add("%s.zones: name at least one zone", field)
		}
		if len(s.Upstreams) == 0 {
			bad.add("%s.upstreams: name at least one resolver", field)
		}
		for j, z := range s.Zones {
			if p, err := netip.ParsePrefix(z); err == nil {
				bad.add("%s.zones[%d]: %s is a range of addresses: name the zone of its reverse names, such as %s", field, j, z, reverseZone(p))
				continue
			}
			bad.name(fmt.Sprintf("%s.zones[%d]", field, j), z)
		}
	}
}

func (f *Forward) check(field string, bad *faults) {
	if !slices.Contains([]Policy{Random, Sequential, RoundRobin}, f.Policy) {
		bad.add("%s.policy: %q: want random, sequential or round_robin", field, f.Policy)
	}
	for i, u := range f.Upstreams {
		if strings.HasPrefix(u, "/") {
			continue // a resolv.conf
		}
		if _, err := ParseUpstream(u); err != nil {
			bad.add("%s.upstreams[%d]: %w", field, i, err)
		}
	}
}

func (c *Config) checkNames(bad *faults) {
	for n, addrs := range c.Hosts {
		bad.name("hosts", n)
		if len(addrs) == 0 {
			bad.add("hosts: %s has no address", n)
		}
	}
	for n, target := range c.Aliases {
		bad.name("aliases", n)
		bad.name("aliases: "+n, target)
		if _, both := c.Hosts[n]; both {
			bad.add("aliases: %s is in hosts, too: take it out of one", n)
		}
	}
	for i, d := range c.SearchPath.Domains {
		bad.name(fmt.Sprintf("searchPath.domains[%d]", i), d)
	}
	for i, z := range c.External.Zones {
		if bad.name(fmt.Sprintf("external.zones[%d]", i), z); strings.Trim(z, ".") == "" {
			bad.add("external.zones[%d]: a zone can't be the root", i)
		}
	}
	for i, z := range c.External.NameServers {
		bad.name(fmt.Sprintf("external.nameServers[%d]", i), z)
	}
	if s := c.External.Service; s != "" && strings.Count(s, "/") != 1 {
		bad.add("external.service: %q: want namespace/name", s)
	}
}

func (c *Config) checkBounds(bad *faults) {
	for _, d := range []struct {
		field string
		d     Duration
	}{{"ttl", *c.TTL}, {"negativeTTL", *c.NegativeTTL}, {"cache.maxTTL", c.Cache.MaxTTL}, {"external.ttl", c.External.TTL}} {
		if time.Duration(d.d) > 24*time.Hour {
			bad.add("%s: %s is more than 24h", d.field, time.Duration(d.d))
		}
	}
	l := &c.Limits
	for _, n := range []struct {
		field string
		n     int
	}{
		{"limits.upstream", l.Upstream}, {"limits.waiting", l.Waiting}, {"limits.connections", l.Connections},
		{"limits.perClient", l.PerClient}, {"limits.udpSize", l.UDPSize}, {"cache.maxBytes", c.Cache.MaxBytes},
	} {
		if n.n < 0 {
			bad.add("%s: %d is negative", n.field, n.n)
		}
	}
	if l.UDPSize < minUDP || l.UDPSize > maxUDP {
		bad.add("limits.udpSize: %d: want %d to %d", l.UDPSize, minUDP, maxUDP)
	}
	if l.QueriesPerSec < 0 {
		bad.add("limits.queriesPerSec: %g is negative", l.QueriesPerSec)
	}
}
