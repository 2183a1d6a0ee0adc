// SPDX-License-Identifier: Apache-2.0

// Package procs finds the processes of a container by its mount namespace, which every process of the container
// has whatever PID namespace it lives in. The CRI server and the container shim use it, where other runtimes use a
// cgroup. It imports the standard library and golang.org/x/sys/unix.
package procs

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// All lists the PIDs that /proc shows.
func All() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// MountNamespace returns the inode of a process's mount namespace, 0 if the process has ended.
func MountNamespace(pid int) uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/mnt", &st) != nil {
		return 0
	}
	return st.Ino
}

// killLimit bounds KillMountNamespace. Only a process that hangs in the kernel lives that long.
const killLimit = 5 * time.Second

// KillMountNamespace kills every process whose mount namespace has the inode ns, and repeats that until none is
// left, since they may fork meanwhile.
func KillMountNamespace(ns uint64) {
	if ns == 0 || ns == MountNamespace(os.Getpid()) {
		return
	}
	for deadline := time.Now().Add(killLimit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		found := false
		for _, pid := range All() {
			if MountNamespace(pid) == ns {
				found = true
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !found {
			return
		}
	}
}
