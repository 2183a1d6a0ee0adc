// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/dnszone"
)

// Note is about one line of the Corefile that has no place in the configuration.
type Note struct {
	Line      int    `json:"line"`
	Directive string `json:"directive"`
	// Lost says that weft has nothing for it. Otherwise it is a flag, or always so.
	Lost bool   `json:"lost"`
	Text string `json:"text"`
}

// String is the note as a line.
func (n Note) String() string {
	how := "note"
	if n.Lost {
		how = "NOT CARRIED OVER"
	}
	return fmt.Sprintf("line %d: %s: %s: %s", n.Line, n.Directive, how, n.Text)
}

// converter collects the configuration and the notes.
type converter struct {
	cfg   dnsserver.Config
	notes []Note
	cache bool // some block has a cache
}

// Convert reads a Corefile. The error is about its syntax; what has no counterpart is in the notes.
func Convert(text string) (*dnsserver.Config, []Note, error) {
	blocks, err := parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("read the Corefile: %w", err)
	}
	if len(blocks) == 0 {
		return nil, nil, fmt.Errorf("the Corefile has no server block")
	}
	c := &converter{}
	main := mainBlock(blocks)
	for i := range blocks {
		c.block(&blocks[i], i == main)
	}
	if !c.cache {
		c.cfg.Cache.Entries = -1
	}
	slices.SortStableFunc(c.notes, func(a, b Note) int { return a.Line - b.Line })
	return &c.cfg, c.notes, nil
}

// mainBlock is the block for all names: the root's, else the cluster's.
func mainBlock(blocks []block) int {
	main := 0
	for i, b := range blocks {
		for _, k := range b.keys {
			if zone, _, _ := splitKey(k); zone == "." {
				return i
			}
		}
		if slices.ContainsFunc(b.plugins, func(d directive) bool { return d.name == "kubernetes" }) {
			main = i
		}
	}
	return main
}

// splitKey takes a server block's key apart: scheme, zone, port.
func splitKey(k string) (zone, scheme, port string) {
	if s, rest, ok := strings.Cut(k, "://"); ok {
		scheme, k = s, rest
	}
	zone = k
	if i := strings.LastIndexByte(k, ':'); i >= 0 && !strings.Contains(k[i:], "]") {
		if _, err := netip.ParsePrefix(k[:i]); err == nil || strings.Count(k, ":") == 1 {
			zone, port = k[:i], k[i+1:]
		}
	}
	if zone == "" {
		zone = "."
	}
	return zone, scheme, port
}

// reverseZones are the zones of the reverse names of a range, of whole labels as CoreDNS makes them; zones that are no
// range stay as they are.
func reverseZones(zones []string) (out []string) {
	for _, z := range zones {
		p, err := netip.ParsePrefix(z)
		if err != nil {
			out = append(out, z)
			continue
		}
		p = p.Masked()
		per := 8
		if p.Addr().Is6() {
			per = 4
		}
		labels := (p.Bits() + per - 1) / per
		all := p.Addr().BitLen() / per
		for i := range 1 << (labels*per - p.Bits()) {
			b := p.Addr().AsSlice()
			if labels > 0 {
				at := (labels - 1) * per / 8
				b[at] |= byte(i) << (8 - per - (labels-1)*per%8)
			}
			a, _ := netip.AddrFromSlice(b)
			out = append(out, strings.Join(strings.Split(strings.TrimSuffix(dnszone.ReverseName(a), "."), ".")[all-labels:], "."))
		}
	}
	return out
}

// reverseRange is the range whose reverse names a zone holds.
func reverseRange(zone string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(zone); err == nil {
		return p.Masked(), true
	}
	return dnszone.ReversePrefix(zone)
}

func (c *converter) note(d *directive, format string, args ...any) {
	c.notes = append(c.notes, Note{Line: d.line, Directive: d.name, Text: fmt.Sprintf(format, args...)})
}

func (c *converter) lost(d *directive, format string, args ...any) {
	c.notes = append(c.notes, Note{Line: d.line, Directive: d.name, Lost: true, Text: fmt.Sprintf(format, args...)})
}

func (c *converter) block(b *block, main bool) {
	head := directive{name: strings.Join(b.keys, " "), line: b.line}
	var zones []string
	for _, k := range b.keys {
		zone, scheme, port := splitKey(k)
		switch {
		case scheme != "" && scheme != "dns":
			c.lost(&head, "clients are served over UDP and TCP only, not over %s", scheme)
			return
		case port != "" && port != "53":
			c.note(&head, "listen on that port with --listen :%s", port)
		}
		zones = append(zones, zone)
	}
	for i := range b.plugins {
		d := &b.plugins[i]
		switch {
		case d.name == "forward":
			c.forward(d, zones, main)
		case d.name == "cache":
			c.cacheOf(d, main)
		case d.name == "kubernetes":
			c.kubernetes(d, zones)
		default:
			c.plugin(d, main)
		}
	}
}

// builtIn is what weft does in any case.
var builtIn = map[string]string{
	"errors": "errors are in the log", "loop": "loops are always looked for", "reload": "changes are always taken at once",
	"ready": "/readyz on the metrics port (9153)", "loadbalance": "answers always take turns",
	"any": "ANY is always answered as RFC 8482 proposes", "multisocket": "there is a socket for each core",
	"minimal": "answers hold no more than they need", "metadata": "not needed", "cancel": "questions upstream have a time limit (forward.timeout)",
	"local": "names elsewhere are cached", "root": "not needed", "debug": "use --log-level=debug",
}

// plugin converts what is not forward, cache or kubernetes.
func (c *converter) plugin(d *directive, main bool) {
	if text, ok := builtIn[d.name]; ok {
		if len(d.args) == 0 || d.name != "loadbalance" || d.args[0] == "round_robin" {
			c.note(d, "%s", text)
			return
		}
	}
	switch d.name {
	case "health":
		c.note(d, "/livez on the metrics port (9153)")
		for _, s := range d.body {
			if s.name == "lameduck" && len(s.args) == 1 {
				c.note(&s, "use --lameduck=%s", s.args[0])
			}
		}
	case "prometheus":
		c.note(d, "use --metrics-bind-address=%s; the metrics' names are the same", append(d.args, ":9153")[0])
	case "bind":
		c.note(d, "use --listen with %s", strings.Join(d.args, ", "))
	case "log":
		c.cfg.LogQueries = true
		if len(d.args) > 0 || len(d.body) > 0 {
			c.lost(d, "all queries are logged, in weft's own format")
		}
	case "dnstap":
		c.cfg.StreamQueries = true
		c.note(d, "the stream of queries is at /queries on the metrics port, as lines of JSON")
	case "autopath":
		c.cfg.SearchPath.Enabled = true
		if len(d.args) > 0 && !slices.Contains(d.args, "@kubernetes") {
			c.lost(d, "only the search path of pods is completed; further domains belong into searchPath.domains")
		}
	case "bufsize":
		if n, err := strconv.Atoi(append(d.args, "1232")[0]); err == nil {
			c.cfg.Limits.UDPSize = n
		}
	case "hosts":
		c.hosts(d, main)
	case "rewrite":
		c.rewrite(d)
	case "k8s_external":
		c.lost(d, "for zones that the outside world asks, use external.zones and external-dns annotations")
	case "template":
		c.lost(d, "there are no templates; for single names use hosts or aliases")
	default:
		c.lost(d, "weft has nothing for this plugin")
	}
}

func (c *converter) kubernetes(d *directive, zones []string) {
	if len(d.args) > 0 {
		zones = d.args
	}
	var reverse []netip.Prefix
	domain := ""
	for _, z := range zones {
		z = strings.TrimSuffix(z, ".")
		if p, ok := reverseRange(z); ok {
			reverse = append(reverse, p)
			continue
		}
		if domain == "" {
			domain = z
		} else {
			c.lost(d, "zone %s: the cluster has one domain, %s", z, domain)
		}
	}
	if domain != "" && domain != "cluster.local" {
		c.cfg.ClusterDomain = domain
	}
	through := make(map[netip.Prefix]bool)
	c.cfg.Pods = "disabled"
	ttl := 5
	for i := range d.body {
		s := &d.body[i]
		switch s.name {
		case "pods":
			c.cfg.Pods = append(s.args, "disabled")[0]
		case "ttl":
			if n, err := strconv.Atoi(append(s.args, "")[0]); err == nil {
				ttl = n
			}
		case "fallthrough":
			if len(s.args) == 0 {
				c.lost(s, "names of the cluster that do not exist are not forwarded; reverse names are")
				for _, r := range reverse {
					through[r] = true
				}
			}
			for _, z := range s.args {
				z = strings.TrimSuffix(z, ".")
				if p, ok := reverseRange(z); ok {
					through[p] = true
				}
				if z == domain {
					c.lost(s, "names of %s that do not exist are not forwarded", z)
				}
			}
		case "endpoint_pod_names":
			c.cfg.EndpointPodNames = true
		case "ignore":
			c.cfg.IgnoreEmptyServices = slices.Contains(s.args, "empty_service")
		case "namespaces":
			c.cfg.Namespaces = s.args
		case "endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight", "startup_timeout":
			c.note(s, "access to the API server is by --kubeconfig, or the pod's service account")
		default:
			c.lost(s, "weft has nothing for this option")
		}
	}
	if c.cfg.Pods == "insecure" {
		c.cfg.Pods = "" // the default
	}
	if ttl != 5 {
		v := dnsserver.Duration(time.Duration(ttl) * time.Second)
		c.cfg.TTL = &v
	}
	for _, r := range reverse {
		if through[r] {
			continue
		}
		c.cfg.ReverseZones = append(c.cfg.ReverseZones, dnsserver.Prefix{Prefix: r})
	}
}

func (c *converter) forward(d *directive, zones []string, main bool) {
	if len(d.args) < 2 {
		c.lost(d, "it has no upstream")
		return
	}
	from := strings.TrimSuffix(d.args[0], ".")
	var f dnsserver.Forward
	tcp, serverName := false, ""
	for i := range d.body {
		s := &d.body[i]
		switch s.name {
		case "policy":
			f.Policy = dnsserver.Policy(append(s.args, "random")[0])
			if f.Policy == dnsserver.Random {
				f.Policy = ""
			}
		case "force_tcp":
			tcp = true
		case "tls_servername":
			serverName = append(s.args, "")[0]
		case "max_concurrent":
			if n, err := strconv.Atoi(append(s.args, "")[0]); err == nil && n != 2000 {
				c.cfg.Limits.Upstream = max(c.cfg.Limits.Upstream, n)
			}
		case "prefer_udp", "expire", "max_idle_conns", "max_age", "max_fails", "health_check", "failfast_all_unhealthy_upstreams", "max_connect_attempts", "failover", "next", "source_address":
			c.note(s, "upstreams are watched, and connections to them kept, without settings")
		default:
			c.lost(s, "weft has nothing for this option")
		}
	}
	for _, to := range d.args[1:] {
		if tcp && !strings.Contains(to, "://") && !strings.HasPrefix(to, "/") {
			to = "tcp://" + to
		}
		if serverName != "" && strings.HasPrefix(to, "tls://") {
			to += "#" + serverName
		}
		if !strings.HasPrefix(to, "/") {
			if _, err := dnsserver.ParseUpstream(to); err != nil {
				c.lost(d, "%v", err)
				continue
			}
		}
		f.Upstreams = append(f.Upstreams, to)
	}
	if len(f.Upstreams) == 0 {
		return
	}
	if from != "" {
		zones = []string{from}
	}
	if main && slices.ContainsFunc(zones, func(z string) bool { return z == "." || z == "cluster.local" || z == c.cfg.ClusterDomain }) {
		if slices.Equal(f.Upstreams, []string{"/etc/resolv.conf"}) {
			f.Upstreams = nil // the default
		}
		c.cfg.Forward = f
		return
	}
	c.cfg.StubDomains = append(c.cfg.StubDomains, dnsserver.StubDomain{Zones: reverseZones(zones), Forward: f})
}

func (c *converter) cacheOf(d *directive, main bool) {
	c.cache = true
	if !main {
		c.note(d, "there is one cache for all zones; the main block's settings hold")
		return
	}
	seconds := func(s string) dnsserver.Duration {
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0
		}
		return dnsserver.Duration(time.Duration(n) * time.Second)
	}
	k := &c.cfg.Cache
	args := d.args
	if len(args) > 0 {
		if ttl := seconds(args[0]); ttl > 0 {
			k.MaxTTL, k.NegativeTTL = ttl, ttl
			args = args[1:]
		}
	}
	if len(args) > 0 && !slices.Equal(args, []string{"."}) {
		c.lost(d, "the cache is for all zones, not only %s", strings.Join(args, " "))
	}
	stale := false
	for i := range d.body {
		s := &d.body[i]
		switch s.name {
		case "success", "denial":
			if len(s.args) > 0 {
				n, _ := strconv.Atoi(s.args[0])
				k.Entries += n
			}
			if len(s.args) > 1 {
				if s.name == "success" {
					k.MaxTTL = seconds(s.args[1])
				} else {
					k.NegativeTTL = seconds(s.args[1])
				}
			}
			if len(s.args) > 2 && s.args[2] != "0" {
				c.lost(s, "answers are kept for no longer than their TTL, however short (here at least %s s)", s.args[2])
			}
		case "serve_stale":
			stale = true
			if len(s.args) > 0 {
				if v, err := time.ParseDuration(s.args[0]); err == nil {
					v := dnsserver.Duration(v)
					k.ServeStale = &v
				}
			}
			switch mode := append(slices.Clone(s.args), "", "")[1]; {
			case len(s.args) < 2:
				c.note(s, "the upstream has 1.8 s for a newer answer before a stale one is given")
			case mode == "verify":
				c.note(s, "always so; but after 1.8 s, or when it fails, the stale answer is given")
			default:
				c.lost(s, "%s: the upstream has 1.8 s for a newer answer before a stale one is given", mode)
			}
		case "servfail":
			if v, err := time.ParseDuration(append(s.args, "")[0]); err == nil {
				v := dnsserver.Duration(v)
				k.ServFailTTL = &v
			}
		case "prefetch":
			c.note(s, "what is asked often is asked anew in the last tenth of its life, without settings")
		case "disable":
			domain := cmp.Or(c.cfg.ClusterDomain, "cluster.local")
			if len(s.args) > 1 && !slices.ContainsFunc(s.args[1:], func(z string) bool { return strings.TrimSuffix(z, ".") != domain }) {
				c.note(s, "names of the cluster are never cached")
			} else {
				c.lost(s, "weft has nothing for this option")
			}
		default:
			c.lost(s, "weft has nothing for this option")
		}
	}
	if !stale {
		c.note(d, "unlike here, weft serves stale answers for an hour while no upstream answers; cache.serveStale: 0s turns that off")
	}
}

func (c *converter) hosts(d *directive, main bool) {
	if !main {
		c.note(d, "the names are served whatever the zone")
	}
	if len(d.args) > 0 && strings.HasPrefix(d.args[0], "/") {
		c.lost(d, "no file is read: write its lines into hosts")
	}
	for i := range d.body {
		s := &d.body[i]
		a, err := netip.ParseAddr(s.name)
		if err != nil {
			if s.name != "fallthrough" {
				c.lost(s, "weft has nothing for this option")
			}
			continue
		}
		for _, name := range s.args {
			if c.cfg.Hosts == nil {
				c.cfg.Hosts = make(map[string][]dnsserver.Addr)
			}
			c.cfg.Hosts[name] = append(c.cfg.Hosts[name], dnsserver.Addr{Addr: a.Unmap()})
		}
	}
}

// rewrite carries over the one kind that is used to give a name inside the cluster to a name outside.
func (c *converter) rewrite(d *directive) {
	args := d.args
	if len(args) > 0 && (args[0] == "stop" || args[0] == "continue") {
		args = args[1:]
	}
	if len(args) > 0 && args[0] == "name" {
		args = args[1:]
		if len(args) > 0 && args[0] == "exact" {
			args = args[1:]
		}
		if len(args) == 2 && len(d.body) == 0 {
			if c.cfg.Aliases == nil {
				c.cfg.Aliases = make(map[string]string)
			}
			c.cfg.Aliases[strings.TrimSuffix(args[0], ".")] = strings.TrimSuffix(args[1], ".")
			c.note(d, "an alias: the answer has a CNAME to %s, unless the cluster itself has the name", args[1])
			return
		}
	}
	c.lost(d, "only single names can stand for another (aliases)")
}
