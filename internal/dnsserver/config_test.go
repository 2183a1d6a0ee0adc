// SPDX-License-Identifier: Apache-2.0

package dnsserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfigErrors(t *testing.T) {
	for yaml, want := range map[string]string{
		"ttl: 5":                              `"5" is no duration: write it like 5s`,
		"ttl: -5s":                            "duration -5s is negative",
		"ttl: 48h":                            "ttl: 48h0m0s is more than 24h",
		"pods: yes":                           `pods: "yes": want insecure, verified or disabled`,
		"clusterDomain: a..b":                 "clusterDomain: name \"a..b\" has an empty label",
		"colour: red":                         "field colour not found",
		"forward: {policy: best}":             `forward.policy: "best": want random, sequential or round_robin`,
		"forward: {upstreams: [dns.example]}": `forward.upstreams[0]: upstream "dns.example": want an IP address`,
		"forward: {upstreams: ['1.1.1.1:0']}": "port 0",
		"stubDomains: [{zones: [a.b]}]":       "stubDomains[0].upstreams: name at least one resolver",
		"stubDomains: [{upstreams: [1.1.1.1], zones: [10.0.0.0/8]}]":      "stubDomains[0].zones[0]: 10.0.0.0/8 is a range of addresses: name the zone of its reverse names, such as 10.in-addr.arpa",
		"stubDomains: [{upstreams: [1.1.1.1], zones: ['2001:db8::/32']}]": "such as 8.b.d.0.1.0.0.2.ip6.arpa",
		"stubDomains: [{upstreams: [1.1.1.1]}]":                           "stubDomains[0].zones: name at least one zone",
		"reverseZones: [10.0.0.0]":                                        `"10.0.0.0" is no address range`,
		"hosts: {a.b: [c]}":                                               `"c" is no IP address`,
		"hosts: {a.b: []}":                                                "hosts: a.b has no address",
		"{hosts: {a.b: [1.1.1.1]}, aliases: {a.b: c}}":                    "aliases: a.b is in hosts, too",
		"limits: {upstream: -1}":                                          "limits.upstream: -1 is negative",
		"limits: {udpSize: 100}":                                          "limits.udpSize: 100: want 512 to 4096",
		"external: {service: dns}":                                        `external.service: "dns": want namespace/name`,
		"external: {zones: ['']}":                                         "external.zones[0]: a zone can't be the root",
	} {
		_, err := ParseConfig([]byte(yaml))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", yaml, err, want)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	for _, text := range []string{"", "{}", "# nothing\n"} {
		c, err := ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if c.Limits.UDPSize != 1232 || c.Cache.Entries != 50000 || !*c.Cache.Prefetch || time.Duration(c.Forward.Timeout) != 5*time.Second || c.Forward.Upstreams[0] != "/etc/resolv.conf" {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:53", "192.0.2.1:5353": "192.0.2.1:5353", "2001:db8::1": "[2001:db8::1]:53", "[2001:db8::1]:54": "[2001:db8::1]:54",
		"tcp://192.0.2.1": "tcp://192.0.2.1:53", "tls://192.0.2.1#dns.example": "tls://192.0.2.1:853", "dns://192.0.2.1": "192.0.2.1:53",
	} {
		u, err := ParseUpstream(in)
		if err != nil || u.String() != want {
			t.Errorf("%s: %s, %v", in, u, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# x\nsearch a.example b.example\nnameserver 192.0.2.1\n\nnameserver 2001:db8::1\noptions ndots:5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	us, search, err := readResolvConf(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.example", "b.example"}, search); diff != "" || len(us) != 2 || us[1].String() != "[2001:db8::1]:53" {
		t.Errorf("%v %v", us, search)
	}
	if err := os.WriteFile(path, []byte("nameserver dns.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readResolvConf(path); err == nil || !strings.Contains(err.Error(), `nameserver "dns.example" is no IP address`) {
		t.Error(err)
	}
}
