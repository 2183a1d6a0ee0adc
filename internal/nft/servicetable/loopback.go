// SPDX-License-Identifier: Apache-2.0

package servicetable

import (
	"fmt"
	"os"
	"strings"
)

// routeLocalnet lets the kernel route what comes from 127.0.0.1 to a node port on to a pod, and the answers back. It
// also lets in what claims 127.0.0.0/8 from outside, which is what the guard chain is for. IPv6 needs no such leave.
const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

// openLoopback opens the switch of the calling thread's network namespace.
func openLoopback() (*os.File, error) {
	f, err := os.OpenFile(routeLocalnet, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("node ports on 127.0.0.1 need %s: %w", routeLocalnet, err)
	}
	return f, nil
}

// setLoopback turns the switch on. It is called when the guard is in place, never before.
func (t *Table) setLoopback() error {
	if !t.cfg.LoopbackNodePorts || t.loopback == nil {
		return nil
	}
	var b [8]byte
	if n, err := t.loopback.ReadAt(b[:], 0); err == nil || n > 0 {
		if strings.TrimSpace(string(b[:n])) == "1" {
			return nil
		}
	}
	if _, err := t.loopback.WriteAt([]byte("1"), 0); err != nil {
		return fmt.Errorf("node ports on 127.0.0.1: write %s: %w", routeLocalnet, err)
	}
	return nil
}
