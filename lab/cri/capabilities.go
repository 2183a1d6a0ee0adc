// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/wire"
)

// capabilityNames are in the order of their numbers in linux/capability.h.
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// defaultCapabilities are what a container has that asks for nothing, as with other runtimes.
var defaultCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

const allCapabilities = "ALL"

// capabilityBits turns names, with or without CAP_, into a mask; ALL is every capability.
func capabilityBits(names []string) (uint64, error) {
	var bits uint64
	for _, given := range names {
		name := strings.TrimPrefix(strings.ToUpper(given), "CAP_")
		if name == allCapabilities {
			return 1<<len(capabilityNames) - 1, nil
		}
		known := false
		for i, n := range capabilityNames {
			if n == name {
				bits, known = bits|1<<i, true
			}
		}
		if !known {
			return 0, fmt.Errorf("securityContext.capabilities: unknown capability %q", given)
		}
	}
	return bits, nil
}

// capabilities computes a container's sets. Add and drop are applied as ALL first, then each by name, drop last.
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext) (wire.Caps, error) {
	if sc.GetPrivileged() {
		all, _ := capabilityBits([]string{allCapabilities})
		return wire.Caps{Bounding: all, Effective: all, Permitted: all}, nil
	}
	bits, err := capabilityBits(defaultCapabilities)
	if err != nil {
		return wire.Caps{}, err
	}
	c := sc.GetCapabilities()
	add, err := capabilityBits(c.GetAddCapabilities())
	if err != nil {
		return wire.Caps{}, err
	}
	ambient, err := capabilityBits(c.GetAddAmbientCapabilities())
	if err != nil {
		return wire.Caps{}, err
	}
	drop, err := capabilityBits(c.GetDropCapabilities())
	if err != nil {
		return wire.Caps{}, err
	}
	if 1<<len(capabilityNames)-1 == drop { // ALL
		bits = add
	} else {
		bits = (bits | add) &^ drop
	}
	return wire.Caps{Bounding: bits | ambient, Effective: bits | ambient, Permitted: bits | ambient,
		Inheritable: ambient, Ambient: ambient}, nil
}
