// SPDX-License-Identifier: Apache-2.0

// Package lifecycle tests that a lab comes up, and that nothing is left of it and nothing of the host has changed,
// however it ends; as root and as an ordinary user.
package lifecycle

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/labtest"
)

const hostPod = `
apiVersion: v1
kind: Pod
metadata: {name: witness}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers: [{name: echo, image: ghcr.io/weft-net/echo:1}]
`

// ends are the ways in which a lab may end.
var ends = []struct {
	name string
	end  func(t *testing.T, l *labtest.Lab)
}{
	{"down", func(t *testing.T, l *labtest.Lab) {
		if _, err := l.Run(t.Context(), "down"); err != nil {
			t.Fatal(err)
		}
	}},
	{"ctrl-c", func(t *testing.T, l *labtest.Lab) { l.Stop() }},
	{"kill -9 of the guardian", func(t *testing.T, l *labtest.Lab) { kill(t, l.Pid()) }},
	{"kill -9 of the supervisor", func(t *testing.T, l *labtest.Lab) { kill(t, supervisorOf(t, l.Pid())) }},
}

func TestNothingIsLeft(t *testing.T) {
	labtest.Require(t, labtest.Possible())
	users := map[string][]labtest.Option{"own user": nil}
	if os.Getuid() == 0 {
		users = map[string][]labtest.Option{"root": nil, "ordinary user": labtest.OrdinaryUser(t)}
	}
	for user, options := range users {
		t.Run(user, func(t *testing.T) {
			before := snapshot(t)
			for _, e := range ends {
				// The same name each time: a lab that ended, however it did, is not in the way of the next.
				t.Run(e.name, func(t *testing.T) { startAndEnd(t, options, e.end) })
			}
			if diff := before.diff(snapshot(t)); diff != "" {
				t.Errorf("the host has changed:\n%s", diff)
			}
		})
	}
}

func startAndEnd(t *testing.T, options []labtest.Option, end func(*testing.T, *labtest.Lab)) {
	l, err := labtest.Start(labtest.Name("left"), []string{"--no-weft", "--nodes", "1"}, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	l.Apply(t, "default", hostPod)
	l.WaitFor(t, "default", "condition=Ready", "pod/witness")
	if out, err := l.Exec(t.Context(), "node1", "hostname"); err != nil || strings.TrimSpace(out) != "node1" {
		t.Errorf("hostname on node1: %q, %v", out, err)
	}

	processes := descendants(l.Pid())
	if len(processes) < 10 {
		t.Fatalf("the lab has only %d processes: this test doesn't see it all", len(processes))
	}
	namespaces := namespacesOf(processes)
	end(t, l)
	select {
	case <-l.Ended():
	case <-time.After(30 * time.Second):
		t.Fatal("the lab has not ended after 30 s")
	}
	labtest.Eventually(t, 30*time.Second, func() error {
		for pid, started := range processes {
			if startTime(pid) == started {
				return fmt.Errorf("process %d is left: %s", pid, commandOf(pid))
			}
		}
		return nil
	})
	labtest.Eventually(t, 30*time.Second, func() error {
		for pid := range allProcesses() {
			for ns := range namespacesOf(map[int]string{pid: ""}) {
				// One that is dead but for its new parent's asking holds on to nothing.
				if namespaces[ns] && startTime(pid) != "" {
					return fmt.Errorf("namespace %s is left, in process %d: %s", ns, pid, commandOf(pid))
				}
			}
		}
		return nil
	})
	if out, err := l.Run(context.Background(), "list"); err != nil || strings.Contains(out, l.Name) {
		t.Errorf("list after the end: %q, %v", out, err)
	}
}

// TestTwoLabs runs labs side by side.
func TestTwoLabs(t *testing.T) {
	labtest.Require(t, labtest.Possible())
	var labs []*labtest.Lab
	for _, name := range []string{labtest.Name("one"), labtest.Name("two")} {
		l, err := labtest.Start(name, []string{"--no-weft", "--nodes", "1", "--ip-family", "ipv4"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Stop)
		labs = append(labs, l)
	}
	labs[0].Kubectl(t, "create", "configmap", "here")
	if out, err := labs[1].Run(t.Context(), "kubectl", "get", "configmap", "here"); err == nil {
		t.Errorf("the second lab has the first one's objects: %s", out)
	}
	if out, err := labs[0].Run(t.Context(), "list"); err != nil || !strings.Contains(out, labs[0].Name) || !strings.Contains(out, labs[1].Name) {
		t.Errorf("list: %q, %v", out, err)
	}
	if _, err := labtest.Start(labs[0].Name, []string{"--no-weft"}); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second lab of the same name: %v", err)
	}
}

func TestNoSuchLab(t *testing.T) {
	bin, err := labtest.BinDir()
	labtest.Require(t, err)
	out, err := exec.Command(filepath.Join(bin, "weft-lab"), "--name", "no-such-lab", "status").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no lab named") {
		t.Errorf("status of a lab that isn't: %v, %s", err, out)
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
