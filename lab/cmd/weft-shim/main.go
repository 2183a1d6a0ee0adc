// SPDX-License-Identifier: Apache-2.0

// Command weft-shim holds one pod of the lab: it lives in the pod's network, IPC and UTS namespaces, starts the
// pod's containers as its children, carries their output to the log files, and writes down how they ended. It
// outlives the CRI server, so a restart of that server loses nothing; when the shim itself dies, the kernel kills
// its containers. It imports lab/cri/wire, lab/cri/inroot, the standard library and golang.org/x/sys/unix: it has to
// start in milliseconds and stay at a few megabytes.
//
// It is started by the CRI server and re-executes itself for each process of a container:
//
//	weft-shim pod DIR [--pause]   the shim of the sandbox whose directory is DIR
//	weft-shim init SPEC ROOT      first process of a container, until it executes the container's own
//	weft-shim exec                a further process in a container, likewise
//	weft-shim pause               PID 1 of a process namespace that a pod's containers share
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

// Namespaces, credentials and the parent death signal belong to a thread, so the main goroutine keeps the first one.
func init() { runtime.LockOSThread() }

func main() {
	debug.SetGCPercent(50)
	if len(os.Args) < 2 {
		fatal(fmt.Errorf("weft-shim is started by the lab's CRI server, not by hand"))
	}
	switch mode, args := os.Args[1], os.Args[2:]; {
	case mode == "pod" && len(args) >= 1:
		fatal(runPod(args[0], len(args) == 2 && args[1] == "--pause"))
	case mode == "init" && len(args) == 2:
		containerInit(args[0], args[1])
	case mode == "exec" && len(args) == 0:
		execInit()
	case mode == "pause":
		pause()
	default:
		fatal(fmt.Errorf("unknown mode %q", mode))
	}
}

func fatal(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "weft-shim:", err)
	os.Exit(1)
}
