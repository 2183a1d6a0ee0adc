// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Limits are how many connections the kernel tracks and for how long, as kube-proxy sets them and under its names. Zero
// leaves what there is.
type Limits struct {
	MaxPerCore int // connections for each CPU of the host
	Min        int // and at least so many, if MaxPerCore is set

	TCPEstablished time.Duration // after the last packet of an established connection
	TCPCloseWait   time.Duration // of one that the server's side has closed
	TCPBeLiberal   bool          // only resets out of the window are invalid
	UDP, UDPStream time.Duration // of one that nobody has answered, of one that goes both ways
}

// DefaultLimits are kube-proxy's. The kernel's own CLOSE_WAIT of a minute is too short for clients that take their time
// to close: their last packets would go astray.
var DefaultLimits = Limits{MaxPerCore: 32 << 10, Min: 128 << 10, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}

// maxTracked bounds what MaxPerCore comes to on a host of many CPUs.
const maxTracked = 1 << 20

// max is how many connections are to be tracked; 0 leaves it.
func (l Limits) max(cpus int) int {
	if l.MaxPerCore <= 0 {
		return 0
	}
	return max(min(l.MaxPerCore*cpus, maxTracked), l.Min)
}

// Apply sets the limits in the network namespace of the calling thread; the number of connections is the host's and is
// never lowered. The error names what could not be set: the rest was. It imposes nothing that could not be done without,
// so a caller may go on.
func (l Limits) Apply() error { return l.apply("/proc/sys/net/netfilter", "/sys") }

func (l Limits) apply(sysctls, sys string) error {
	var errs []error
	if n := l.max(onlineCPUs(sys)); n > 0 {
		// With fewer buckets than a quarter of the connections, finding one takes long.
		errs = append(errs, raise(filepath.Join(sysctls, "nf_conntrack_max"), n),
			raise(filepath.Join(sys, "module/nf_conntrack/parameters/hashsize"), n/4))
	}
	liberal := 0
	if l.TCPBeLiberal {
		liberal = 1
	}
	for _, s := range []struct {
		name  string
		value int
	}{
		{"nf_conntrack_tcp_timeout_established", int(l.TCPEstablished / time.Second)},
		{"nf_conntrack_tcp_timeout_close_wait", int(l.TCPCloseWait / time.Second)},
		{"nf_conntrack_tcp_be_liberal", liberal},
		{"nf_conntrack_udp_timeout", int(l.UDP / time.Second)},
		{"nf_conntrack_udp_timeout_stream", int(l.UDPStream / time.Second)},
	} {
		if s.value > 0 {
			errs = append(errs, set(filepath.Join(sysctls, s.name), s.value, func(now int) bool { return now != s.value }))
		}
	}
	return errors.Join(errs...)
}

// raise writes a number where a lower one is.
func raise(path string, value int) error {
	return set(path, value, func(now int) bool { return now < value })
}

// set writes a number where another is that should not stay.
func set(path string, value int, replace func(now int) bool) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return fmt.Errorf("conntrack: %s: %w", path, err)
	}
	if !replace(now) {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(value)), 0o644); err != nil {
		return fmt.Errorf("conntrack: %s stays %d instead of %d: %w", filepath.Base(path), now, value, err)
	}
	return nil
}

// onlineCPUs counts the host's CPUs: the process may be confined to fewer.
func onlineCPUs(sys string) int {
	raw, err := os.ReadFile(filepath.Join(sys, "devices/system/cpu/online")) // "0-3,8"
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(string(raw)), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if err != nil || err1 != nil || err2 != nil || b < a {
			return 1
		}
		n += b - a + 1
	}
	return n
}
