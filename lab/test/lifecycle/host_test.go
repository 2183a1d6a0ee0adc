// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// host is a picture of what a lab must not change: one line for each fact.
type host map[string]string

// snapshot takes a picture of the host.
func snapshot(t *testing.T) host {
	t.Helper()
	h := host{}
	h.addNetwork(t)
	h.addRuleset(t)
	h.addSysctls()
	h.addMounts(t)
	h.addFiles()
	return h
}

// diff lists the facts that differ.
func (h host) diff(now host) string {
	var b strings.Builder
	keys := maps.Clone(h)
	maps.Copy(keys, now)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if h[key] != now[key] {
			fmt.Fprintf(&b, "%s: was %q, is %q\n", key, h[key], now[key])
		}
	}
	return b.String()
}

func (h host) addNetwork(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		a := link.Attrs()
		addrs, err := netlink.AddrList(link, unix.AF_UNSPEC)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, addr := range addrs {
			texts = append(texts, addr.IPNet.String())
		}
		h["link "+a.Name] = fmt.Sprint(a.Index, link.Type(), a.MTU, a.Flags, a.HardwareAddr, a.MasterIndex, texts)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		// All tables; the kernel's cache of IPv6 routes comes and goes.
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Flags&unix.RTM_F_CLONED == 0 {
				h[fmt.Sprintf("route %d %v", r.Table, r.String())] = "there"
			}
		}
		rules, err := netlink.RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			h["rule "+r.String()] = "there"
		}
	}
}

// addRuleset adds the number of times that this network namespace's nftables ruleset was changed.
func (h host) addRuleset(t *testing.T) {
	t.Helper()
	const getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	req := nl.NewNetlinkRequest(getGeneration, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		t.Logf("nftables' generation can't be read, so changes of rules go unseen: %v", err)
		return
	}
	for _, a := range answers {
		attrs, err := nl.ParseRouteAttrAsMap(a[nl.SizeofNfgenmsg:])
		if err != nil {
			t.Fatal(err)
		}
		h["nftables generation"] = fmt.Sprintf("%x", attrs[unix.NFTA_GEN_ID].Value)
	}
}

// settings are the kernel's settings that networking, or a kubelet, would change.
var settings = []string{"/proc/sys/net", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic",
	"/proc/sys/kernel/panic_on_oops", "/proc/sys/kernel/keys", "/proc/sys/kernel/hostname"}

// measurements are settings that change by themselves.
var measurements = []string{"nf_conntrack_count", "/route/", "/neigh/"}

func (h host) addSysctls() {
	for _, root := range settings {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || slices.ContainsFunc(measurements, func(m string) bool { return strings.Contains(path, m) }) {
				return nil
			}
			if value, err := os.ReadFile(path); err == nil {
				h["sysctl "+path] = string(value)
			}
			return nil
		})
	}
}

func (h host) addMounts(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		h["mount "+line] = "there"
	}
}

// watched are the files and directories that a Kubernetes node, or a lab, would write to.
var watched = []string{
	"/etc/cni", "/etc/kubernetes", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
	"/opt", "/srv", "/media", "/mnt", "/run/netns", "/run/weft", "/run/weft-lab", "/usr/local/bin",
	"/var/lib/kubelet", "/var/lib/cni", "/var/lib/weft", "/var/lib/weft-lab", "/var/log/pods", "/var/log/containers",
}

func (h host) addFiles() {
	for _, dir := range watched {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if info, err := d.Info(); err == nil {
				h["file "+path] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime())
			}
			return nil
		})
	}
}

// allProcesses is every process of the machine, with its parent.
func allProcesses() map[int]int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	parents := map[int]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if fields := stat(pid); len(fields) > 1 {
				parents[pid], _ = strconv.Atoi(fields[1])
			}
		}
	}
	return parents
}

// stat is the fields of /proc/PID/stat after the command's name: state, parent, ...
func stat(pid int) []string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
}

// startTime tells a process from a later one with its number; "" where there is none, or it is dead but for its
// parent's asking.
func startTime(pid int) string {
	fields := stat(pid)
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// descendants is a process and everything that it, or what it started, started; with the times of their starts.
func descendants(root int) map[int]string {
	parents := allProcesses()
	found := map[int]string{}
	for pid := range parents {
		for p := pid; p != 0; p = parents[p] {
			if p == root {
				found[pid] = startTime(pid)
				break
			}
		}
	}
	return found
}

// namespacesOf is the namespaces of processes that are not ours too.
func namespacesOf(processes map[int]string) map[string]bool {
	found := map[string]bool{}
	for pid := range processes {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc", "user"} {
			theirs, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
			ours, err2 := os.Readlink("/proc/self/ns/" + kind)
			if err1 == nil && err2 == nil && theirs != ours {
				found[theirs] = true
			}
		}
	}
	return found
}

func supervisorOf(t *testing.T, guardian int) int {
	t.Helper()
	for pid, parent := range allProcesses() {
		if parent == guardian {
			return pid
		}
	}
	t.Fatal("the guardian has no supervisor")
	return 0
}

func commandOf(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(raw), "\x00", " ")
}
