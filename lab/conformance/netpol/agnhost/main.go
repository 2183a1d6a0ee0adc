// SPDX-License-Identifier: Apache-2.0

// Agnhost stands before the real agnhost in the image that the conformance suite's pods run, which it starts for all
// that it is asked but one thing: where the kernel has no SCTP sockets it speaks SCTP itself, over raw IP sockets, so
// that the suite's SCTP tests send real packets through the node all the same. As /bin/bash it runs the one-line
// commands of the suite's manifests. It imports the standard library and golang.org/x/sys.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// real is the program as Kubernetes has it.
const real = "/agnhost.real"

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == "bash" {
		if len(args) != 2 || args[0] != "-c" {
			fail("bash: only -c COMMAND is understood here")
		}
		args = strings.Fields(args[1])
		if len(args) == 0 || args[0] != "/agnhost" {
			fail("bash: %q is not /agnhost", args)
		}
		args = args[1:]
	}
	if !kernelHasSCTP() {
		switch {
		case len(args) > 0 && args[0] == "porter" && serves("SERVE_SCTP_PORT_") != "":
			serve(serves("SERVE_SCTP_PORT_"))
		case len(args) > 0 && args[0] == "connect" && flag(args, "protocol") == "sctp":
			connect(args[len(args)-1], flag(args, "timeout"))
		}
	}
	if len(args) == 0 {
		args = []string{"pause"} // the image's own default
	}
	fail("%v", unix.Exec(real, append([]string{real}, args...), os.Environ()))
}

func fail(format string, a ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", a...)
	os.Exit(1)
}

func kernelHasSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}

// serves is the port in the name of an environment variable with this prefix; "" if there is none.
func serves(prefix string) string {
	for _, kv := range os.Environ() {
		if port, ok := strings.CutPrefix(kv, prefix); ok {
			port, _, _ = strings.Cut(port, "=")
			return port
		}
	}
	return ""
}

// flag is the value of --name=value.
func flag(args []string, name string) string {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v
		}
	}
	return ""
}
