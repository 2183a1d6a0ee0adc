// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/weft-net/weft/internal/dnszone"
)

// Config is the configuration file of `weft dns`: every field may be left out. docs/dns.md describes it for users.
type Config struct {
	// ClusterDomain is the cluster's domain; "cluster.local".
	ClusterDomain string `yaml:"clusterDomain,omitempty"`

	// TTL of the cluster's records, 5s, and NegativeTTL of the answer that there are none, by default the same; 0s is not
	// to be kept at all.
	TTL         *Duration `yaml:"ttl,omitempty"`
	NegativeTTL *Duration `yaml:"negativeTTL,omitempty"`

	// Pods says which names under pod.<domain> exist: "insecure" (any address in a namespace that exists, as
	// clusters are set up), "verified" (a pod of that namespace has the address; watches all pods), "disabled".
	Pods string `yaml:"pods,omitempty"`

	// ReverseZones are address ranges whose reverse names are the cluster's alone: an address that nothing in it
	// has is NXDOMAIN. In other ranges such a question is forwarded.
	ReverseZones []Prefix `yaml:"reverseZones,omitempty"`

	EndpointPodNames    bool     `yaml:"endpointPodNames,omitempty"`
	IgnoreEmptyServices bool     `yaml:"ignoreEmptyServices,omitempty"`
	Namespaces          []string `yaml:"namespaces,omitempty"`

	// Forward is where all other names are resolved.
	Forward Forward `yaml:"forward,omitempty"`

	// StubDomains are zones with upstreams of their own.
	StubDomains []StubDomain `yaml:"stubDomains,omitempty"`

	// Hosts are names with addresses written down here, and Aliases names that stand for another (a CNAME).
	Hosts   map[string][]Addr `yaml:"hosts,omitempty"`
	Aliases map[string]string `yaml:"aliases,omitempty"`

	Cache      CacheConfig `yaml:"cache,omitempty"`
	SearchPath SearchPath  `yaml:"searchPath,omitempty"`
	Limits     Limits      `yaml:"limits,omitempty"`
	External   External    `yaml:"external,omitempty"`

	// LogQueries writes a line for each query to the log. The same lines are there as a stream, for as long as
	// somebody reads, at /queries on the metrics port with StreamQueries.
	LogQueries    bool `yaml:"logQueries,omitempty"`
	StreamQueries bool `yaml:"streamQueries,omitempty"`
}

// Forward is a set of upstreams.
type Forward struct {
	// Upstreams: "192.0.2.1", "192.0.2.1:5353", "tcp://…", "tls://192.0.2.1#dns.example" (DNS over TLS, and the
	// name that the certificate must be for), or a resolv.conf's path, whose nameservers are meant.
	// Default for all other names: /etc/resolv.conf.
	Upstreams []string `yaml:"upstreams,omitempty"`
	Policy    Policy   `yaml:"policy,omitempty"`  // random (default), sequential, round_robin
	Timeout   Duration `yaml:"timeout,omitempty"` // for all attempts together; 5s
}

// StubDomain is the upstreams of some zones.
type StubDomain struct {
	Zones   []string `yaml:"zones,omitempty"`
	Forward `yaml:",inline"`
}

// CacheConfig bounds the cache of forwarded answers.
type CacheConfig struct {
	Entries     int       `yaml:"entries,omitempty"`     // 50000; 0 is the default, -1 none
	MaxBytes    int       `yaml:"maxBytes,omitempty"`    // 64 MiB
	MaxTTL      Duration  `yaml:"maxTTL,omitempty"`      // 1h
	NegativeTTL Duration  `yaml:"negativeTTL,omitempty"` // at most; 30m
	ServFailTTL *Duration `yaml:"servFailTTL,omitempty"` // 2s; 0s is not at all
	// ServeStale is for how long after its end an answer may be used when no upstream has a newer one (RFC 8767);
	// 1h, 0s is not at all.
	ServeStale *Duration `yaml:"serveStale,omitempty"`
	// Prefetch asks anew for what is asked often, in the last tenth of its life; true.
	Prefetch *bool `yaml:"prefetch,omitempty"`
}

// SearchPath has the server complete names that a pod's resolver asks with a search suffix (ndots:5).
type SearchPath struct {
	Enabled bool `yaml:"enabled,omitempty"`
	// Domains are the search domains that pods have beyond the cluster's own; default: those of /etc/resolv.conf.
	Domains []string `yaml:"domains,omitempty"`
}

// Limits bound the work. 0 is the default.
type Limits struct {
	Upstream       int      `yaml:"upstream,omitempty"`       // questions under way upstream; 2000
	Waiting        int      `yaml:"waiting,omitempty"`        // clients that wait for them; 20000
	Connections    int      `yaml:"connections,omitempty"`    // TCP connections; 4000
	PerClient      int      `yaml:"perClient,omitempty"`      // TCP connections of one address; 256
	QueriesPerSec  float64  `yaml:"queriesPerSec,omitempty"`  // over UDP, of one client address; 0 is unbounded
	UDPSize        int      `yaml:"udpSize,omitempty"`        // octets of an answer over UDP at most; 1232
	IdleConnection Duration `yaml:"idleConnection,omitempty"` // 20s
}

// External has zones served for the world outside, from Services' external-dns annotations.
type External struct {
	Zones []string `yaml:"zones,omitempty"`
	// NameServers are the names under which the zones are delegated to this server; default: ns.<zone>.
	NameServers []string `yaml:"nameServers,omitempty"`
	TTL         Duration `yaml:"ttl,omitempty"` // of records without the ttl annotation; 5m
	// Service, "namespace/name", is the one that the world reaches this server by: its addresses are those of
	// ns.<zone>.
	Service string `yaml:"service,omitempty"`
	// QueriesPerSec bounds the answers over UDP to one client network (/24, /56); 200, -1 is unbounded.
	QueriesPerSec float64 `yaml:"queriesPerSec,omitempty"`
}

// Duration is a time.Duration written as Go does: "5s", "1m30s".
type Duration time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %q is no duration: write it like 5s or 1m30s", n.Line, n.Value)
	}
	if v < 0 {
		return fmt.Errorf("line %d: duration %s is negative", n.Line, n.Value)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Prefix is a netip.Prefix in a configuration.
type Prefix struct{ netip.Prefix }

// UnmarshalYAML implements yaml.Unmarshaler.
func (p *Prefix) UnmarshalYAML(n *yaml.Node) error {
	v, err := netip.ParsePrefix(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %q is no address range: write it like 10.96.0.0/12", n.Line, n.Value)
	}
	p.Prefix = v.Masked()
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (p Prefix) MarshalYAML() (any, error) { return p.String(), nil }

// Addr is a netip.Addr in a configuration.
type Addr struct{ netip.Addr }

// UnmarshalYAML implements yaml.Unmarshaler.
func (a *Addr) UnmarshalYAML(n *yaml.Node) error {
	v, err := netip.ParseAddr(n.Value)
	if err != nil || v.Zone() != "" {
		return fmt.Errorf("line %d: %q is no IP address", n.Line, n.Value)
	}
	a.Addr = v.Unmap()
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (a Addr) MarshalYAML() (any, error) { return a.String(), nil }

// ParseConfig reads a configuration. An empty one is all defaults. The error names each field that is wrong.
func ParseConfig(data []byte) (*Config, error) {
	c := &Config{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("DNS configuration: %w", err)
	}
	c.complete()
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("DNS configuration: %w", err)
	}
	return c, nil
}

var podModes = map[string]dnszone.PodNames{
	"": dnszone.PodsInsecure, "insecure": dnszone.PodsInsecure, "verified": dnszone.PodsVerified, "disabled": dnszone.PodsDisabled,
}

func zoneTTL(d Duration) time.Duration {
	if time.Duration(d) < time.Second {
		return dnszone.NoTTL
	}
	return time.Duration(d)
}

// Zone is the part of the configuration that concerns the cluster's names.
func (c *Config) Zone() dnszone.Options {
	o := dnszone.Options{
		Domain: c.ClusterDomain, TTL: zoneTTL(*c.TTL), NegativeTTL: zoneTTL(*c.NegativeTTL), Pods: podModes[c.Pods],
		EndpointPodNames: c.EndpointPodNames, IgnoreEmptyServices: c.IgnoreEmptyServices, Namespaces: c.Namespaces,
	}
	for _, p := range c.ReverseZones {
		o.Reverse = append(o.Reverse, p.Prefix)
	}
	for name, addrs := range c.Hosts {
		o.YieldNames = append(o.YieldNames, name)
		for _, a := range addrs {
			o.YieldNames = append(o.YieldNames, dnszone.ReverseName(a.Addr))
		}
	}
	for name := range c.Aliases {
		o.YieldNames = append(o.YieldNames, name)
	}
	for _, s := range c.StubDomains {
		o.YieldZones = append(o.YieldZones, s.Zones...)
	}
	return o
}

// ExternalZones is the part of the configuration that concerns the zones for the outside world.
func (c *Config) ExternalZones() dnszone.ExternalOptions {
	o := dnszone.ExternalOptions{Zones: c.External.Zones, NameServers: c.External.NameServers, TTL: time.Duration(c.External.TTL)}
	o.Service.Namespace, o.Service.Name, _ = strings.Cut(c.External.Service, "/")
	return o
}

// resolvConf is where a machine's own resolvers are written.
const resolvConf = "/etc/resolv.conf"

// ParseUpstream reads one of Forward.Upstreams, but for paths.
func ParseUpstream(s string) (Upstream, error) {
	u, rest := Upstream{}, s
	port := uint16(53)
	for prefix, t := range map[string]Transport{"tcp://": PlainTCP, "tls://": OverTLS, "dns://": PlainUDP} {
		if r, ok := strings.CutPrefix(s, prefix); ok {
			u.Transport, rest = t, r
		}
	}
	if u.Transport == OverTLS {
		port = 853
		rest, u.ServerName, _ = strings.Cut(rest, "#")
	}
	if ap, err := netip.ParseAddrPort(rest); err == nil {
		u.Addr = ap
	} else if a, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		u.Addr = netip.AddrPortFrom(a, port)
	} else {
		return u, fmt.Errorf("upstream %q: want an IP address with or without port, after tcp:// or tls:// if it is not UDP; or the path of a resolv.conf", s)
	}
	if u.Addr.Port() == 0 {
		return u, fmt.Errorf("upstream %q: port 0", s)
	}
	return u, nil
}

// readResolvConf gives the nameservers and search domains of a resolv.conf (resolv.conf(5)).
func readResolvConf(path string) (servers []Upstream, search []string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("forward.upstreams: %w", err)
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			a, err := netip.ParseAddr(f[1])
			if err != nil {
				return nil, nil, fmt.Errorf("%s: nameserver %s is no IP address", path, strconv.Quote(f[1]))
			}
			servers = append(servers, Upstream{Addr: netip.AddrPortFrom(a, 53)})
		case "search", "domain":
			search = f[1:]
		}
	}
	return servers, search, sc.Err()
}

// upstreams resolves the configured list.
func (f *Forward) upstreams() ([]Upstream, error) {
	var out []Upstream
	for _, s := range f.Upstreams {
		if strings.HasPrefix(s, "/") {
			us, _, err := readResolvConf(s)
			if err != nil {
				return nil, err
			}
			out = append(out, us...)
			continue
		}
		u, err := ParseUpstream(s)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}
