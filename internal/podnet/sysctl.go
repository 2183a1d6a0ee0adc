// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sysctl is one switch under /proc/sys/net and its value.
type sysctl struct{ key, value string }

// setSysctl writes a switch of the calling thread's namespace unless it has the value already, so that it works
// where /proc/sys is read-only and the administrator has set what is needed.
func setSysctl(s sysctl) error {
	path := "/proc/sys/net/" + s.key
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	if string(bytes.TrimSpace(old)) == s.value {
		return nil
	}
	if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
		return fmt.Errorf("sysctl: %w: set net.%s=%s on the node, or let the agent write /proc/sys", err, strings.ReplaceAll(s.key, "/", "."), s.value)
	}
	return nil
}

func setSysctls(all ...sysctl) error {
	for _, s := range all {
		if err := setSysctl(s); err != nil {
			return err
		}
	}
	return nil
}

// haveIPv6 tells whether the calling thread's namespace knows IPv6 at all.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// forwardPackets makes the calling thread's namespace a router, for both families.
//
// IPv6 has but one switch, and turning it on makes interfaces ignore router advertisements. Those that take them
// are told to go on, or a node would lose its own default route.
func forwardPackets() error {
	if err := setSysctl(sysctl{"ipv4/ip_forward", "1"}); err != nil {
		return err
	}
	if !haveIPv6() {
		return nil
	}
	on, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	if string(bytes.TrimSpace(on)) != "0" {
		return nil
	}
	conf := "/proc/sys/net/ipv6/conf"
	links, err := os.ReadDir(conf)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	for _, l := range links {
		if l.Name() == "all" || l.Name() == "default" || ownLink(l.Name()) {
			continue
		}
		path := filepath.Join(conf, l.Name(), "accept_ra")
		ra, err := os.ReadFile(path)
		if err == nil && string(bytes.TrimSpace(ra)) == "1" {
			err = os.WriteFile(path, []byte("2"), 0)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sysctl: keep router advertisements on %s: %w", l.Name(), err)
		}
	}
	return setSysctl(sysctl{"ipv6/conf/all/forwarding", "1"})
}
