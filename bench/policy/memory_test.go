// SPDX-License-Identifier: Apache-2.0

//go:build bench

package policy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"testing"

	"github.com/weft-net/weft/internal/node"
	"github.com/weft-net/weft/internal/policy/policytest"
)

// alone says, in the environment, that this process is the one that is measured.
const alone = "WEFT_BENCH_POLICIES"

// resident is the memory, in bytes, of a process that holds a cluster's objects and enforces so many policies: the
// policy part of the node's agent with all that it needs.
func resident(t *testing.T, policies int) uint64 {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestResident$", "-test.v", "-pods", strconv.Itoa(*pods))
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", alone, policies))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := regexp.MustCompile(`resident (\d+) bytes`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no figure in %s", out)
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestResident(t *testing.T) {
	policies, err := strconv.Atoi(os.Getenv(alone))
	if err != nil {
		return // only as a process of its own
	}
	d := generate(policies, spread).delta
	ns := policytest.NewNode(t)
	p, err := node.NewPolicy(node.PolicyConfig{Node: "n1", Netns: ns.FD, NamesFile: filepath.Join(t.TempDir(), "names.json")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Update(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	n, err := residentOf("self")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident %d bytes", n)
}

// residentOf is the memory, in bytes, of a process by its number.
func residentOf(pid string) (uint64, error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^VmRSS:\s*(\d+) kB$`).FindSubmatch(status)
	if m == nil {
		return 0, fmt.Errorf("process %s has no VmRSS: %s", pid, status)
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	return n << 10, err
}
