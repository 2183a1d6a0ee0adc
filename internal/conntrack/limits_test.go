// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLimits: what is set, over files in place of the kernel's.
func TestLimits(t *testing.T) {
	const (
		limit       = "nf_conntrack_max"
		buckets     = "module/nf_conntrack/parameters/hashsize"
		cpus        = "devices/system/cpu/online"
		established = "nf_conntrack_tcp_timeout_established"
		closeWait   = "nf_conntrack_tcp_timeout_close_wait"
		liberal     = "nf_conntrack_tcp_be_liberal"
		udp         = "nf_conntrack_udp_timeout"
		stream      = "nf_conntrack_udp_timeout_stream"
	)
	kernel := map[string]string{limit: "65536", buckets: "16384", cpus: "0-7", established: "432000", closeWait: "60", liberal: "0", udp: "30", stream: "120"}
	for _, x := range []struct {
		name string
		l    Limits
		is   map[string]string // where it differs from kernel
		want map[string]string // where that is changed
		err  string
	}{
		{"defaults, eight CPUs", DefaultLimits, nil, map[string]string{limit: "262144", buckets: "65536", established: "86400", closeWait: "3600"}, ""},
		{"defaults, two CPUs: the least", DefaultLimits, map[string]string{cpus: "0,3"}, map[string]string{limit: "131072", buckets: "32768", established: "86400", closeWait: "3600"}, ""},
		{"many CPUs: the most", Limits{MaxPerCore: 32 << 10}, map[string]string{cpus: "0-255"}, map[string]string{limit: "1048576", buckets: "262144"}, ""},
		{"never lower", DefaultLimits, map[string]string{limit: "500000", buckets: "200000", established: "86400", closeWait: "3600"}, nil, ""},
		{"nothing", Limits{Min: 1 << 20}, nil, nil, ""},
		{"the rest", Limits{TCPBeLiberal: true, UDP: time.Minute, UDPStream: 5 * time.Minute}, nil, map[string]string{liberal: "1", udp: "60", stream: "300"}, ""},
		{"one that can't be set keeps no other", DefaultLimits, map[string]string{limit: "many"}, map[string]string{buckets: "65536", established: "86400", closeWait: "3600"}, "nf_conntrack_max"},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			want := map[string]string{}
			for name, v := range kernel {
				if is, ok := x.is[name]; ok {
					v = is
				}
				want[name] = v
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(v+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for name, v := range x.want {
				want[name] = v
			}
			if err := x.l.apply(dir, dir); (err == nil) != (x.err == "") || err != nil && !strings.Contains(err.Error(), x.err) {
				t.Errorf("error %v, want %q", err, x.err)
			}
			for name, v := range want {
				got, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || strings.TrimSpace(string(got)) != v {
					t.Errorf("%s is %q (%v), want %q", name, got, err, v)
				}
			}
		})
	}
}
