// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shimPID is the process that holds a pod.
func (n *node) shimPID(pod string) int {
	n.t.Helper()
	r, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	pid, err := strconv.Atoi(r.Info["pid"])
	if err != nil {
		n.t.Fatal(err)
	}
	return pid
}

func TestKilledServerLosesNothing(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("kept"))
	running := n.run(pod, ctr(probeImage, "count"))
	ending := n.run(pod, ctr(probeImage, "stop"))
	created := n.create(pod, ctr(probeImage, "exit", "0"))
	ended := n.run(pod, ctr(probeImage, "exit", "9"))
	n.wait(ended)
	n.eventually("it waits for its signal", func() bool { return len(n.logs(ending)) > 0 })
	before := n.status(running)
	shim := n.shimPID(pod)

	n.kill()
	// What happens while no server runs is not lost either.
	killIn(t, shim, "probe\x00stop")
	n.start()

	if got := n.status(running); got.State != runtimeapi.ContainerState_CONTAINER_RUNNING || got.StartedAt != before.StartedAt {
		t.Errorf("the running container: %v", got)
	}
	if got := n.wait(ending); got.ExitCode != 7 {
		t.Errorf("the container that ended meanwhile: %v", got)
	}
	if got := n.status(ended); got.State != runtimeapi.ContainerState_CONTAINER_EXITED || got.ExitCode != 9 || got.FinishedAt == 0 {
		t.Errorf("the container that had ended: %v", got)
	}
	if got := n.status(created); got.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("the created container: %v", got)
	}
	if _, err := n.StartContainer(n.ctx(), &runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
		t.Error("start the created container:", err)
	}
	n.wait(created)
	if out, code := n.execIn(running, "/probe", "exit", "2"); code != 2 {
		t.Errorf("exec: code %d, %s", code, out)
	}
	r, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || r.Status.Network.Ip != "10.9.8.7" || n.shimPID(pod) != shim {
		t.Errorf("sandbox %v", r.Status)
	}
	// Its log has every line.
	if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: running}); err != nil {
		t.Fatal(err)
	}
	for i, line := range n.logs(running) {
		if line != "stdout F line "+strconv.Itoa(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
}

// killIn sends SIGTERM to the child of a process whose command line has the given text.
func killIn(t *testing.T, parent int, text string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(parent) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		children, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(children)) {
			cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			if strings.Contains(string(cmdline), text) {
				p, _ := strconv.Atoi(pid)
				if err := syscall.Kill(p, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("no child of %d has the command line %q", parent, text)
}

func TestKilledShim(t *testing.T) {
	for _, alive := range []bool{true, false} {
		t.Run("while the server runs: "+strconv.FormatBool(alive), func(t *testing.T) {
			n := newNode(t)
			config := n.pod("lost")
			config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			pod := n.runPod(config)
			own := n.run(pod, ctr(probeImage))
			// A container in the node's process namespace, with a child that the kernel doesn't kill by itself.
			c := shell("sleep 3600 & sleep 7200")
			security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			onNode := n.run(pod, c)
			ended := n.run(pod, ctr(probeImage, "exit", "4"))
			n.wait(ended)
			shim := n.shimPID(pod)
			if !alive {
				n.kill()
			}
			if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if !alive {
				n.eventually("the shim is gone", func() bool { return len(processesWith(strconv.Itoa(shim))) == 0 })
				n.start()
			}
			for _, id := range []string{own, onNode} {
				if st := n.wait(id); st.ExitCode != 137 || st.Reason != "Error" || !strings.Contains(st.Message, "shim") {
					t.Errorf("container %v", st)
				}
			}
			if st := n.status(ended); st.ExitCode != 4 {
				t.Errorf("the container that had ended: %v", st)
			}
			r, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			if err != nil {
				t.Fatal(err)
			}
			if r.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("sandbox %v", r.Status)
			}
			n.eventually("no process is left", func() bool { return len(processesWith("sleep\x003600", "sleep\x007200", "/probe\x00")) == 0 })
		})
	}
}

// processesWith lists the processes whose ID is, or whose command line has, one of the texts.
func processesWith(texts ...string) []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []string
	for _, d := range dirs {
		cmdline, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(cmdline) == 0 { // gone, or a zombie that waits for this test's PID 1
			continue
		}
		for _, text := range texts {
			if filepath.Base(d) == text || strings.Contains(string(cmdline), text) {
				found = append(found, d)
			}
		}
	}
	return found
}

func TestSandboxLeftHalfWay(t *testing.T) {
	n := newNode(t)
	flag := filepath.Join(n.cniDir, "slow")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		// Never answered: the server dies in the middle.
		_, _ = n.RunPodSandbox(n.ctx(), &runtimeapi.RunPodSandboxRequest{Config: n.pod("half")})
	}()
	n.eventually("the plugin has begun", func() bool {
		entries, _ := os.ReadDir(n.cniDir)
		return len(entries) == 2
	})
	n.kill()
	os.Remove(flag)
	n.start()
	list, err := n.ListPodSandbox(n.ctx(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 0 {
		t.Errorf("sandboxes %v", list.Items)
	}
	for _, dir := range []string{n.cniDir, n.cfg.NetNSDir, filepath.Join(n.cfg.Root, "sandboxes")} {
		if entries, _ := os.ReadDir(dir); len(entries) != 0 {
			t.Errorf("%s has %v", dir, entries)
		}
	}
	n.eventually("its shim is gone", func() bool { return len(processesWith("weft-shim")) == 0 })
}

func TestAddressesOfNoPodAreFreed(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("valid"))
	stray := filepath.Join(n.cniDir, strings.Repeat("0", 64))
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.kill()
	n.start()
	if _, err := os.Stat(stray); err == nil {
		t.Error("the plugin was not told what is valid")
	}
	if _, err := os.Stat(filepath.Join(n.cniDir, pod)); err != nil {
		t.Error("the pod's own address was freed:", err)
	}
}
