// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/labtest"
)

// rootless are the tests that must pass in a user namespace where only one user is mapped.
const rootless = "^(TestPodRuns|TestHowContainersEnd|TestStop|TestLogs|TestNetwork|TestEnvironment|TestProcessNamespaces|" +
	"TestIPCAndSharedMemory|TestRoot|TestDevicesAndTerminal|TestMounts|TestExecStreams|TestAttach|TestPortForward|" +
	"TestKilledServerLosesNothing|TestKilledShim|TestAsOrdinaryUser)$"

const nobody = 65534

func inUserNamespace() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") != "0 0 4294967295"
}

func TestAsOrdinaryUser(t *testing.T) {
	if inUserNamespace() { // the ordinary user's own run, which the other one below starts
		userThatIsNotMapped(t)
		return
	}
	dir, err := os.MkdirTemp(base, "user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"/proc/self/exe": "tests", base + "/weft-shim": "weft-shim", base + "/probe": "probe"} {
		copyProgram(t, from, filepath.Join(dir, to))
	}
	cmd := exec.Command(filepath.Join(dir, "tests"), "-test.run", rootless, "-test.v", "-test.timeout", "120s")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), asTests+"=", asUser+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		text := string(out)
		if strings.Contains(text, "operation not permitted") && !strings.Contains(text, "--- ") {
			labtest.Require(t, fmt.Errorf("this machine has no user namespaces for ordinary users: %w", err))
		}
		t.Errorf("%v\n%s", err, text)
	}
	if !strings.Contains(string(out), "--- PASS: TestAsOrdinaryUser") {
		t.Errorf("the tests did not run:\n%s", out)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}

// userThatIsNotMapped wants a clear error where a pod names a user that the namespace lacks.
func userThatIsNotMapped(t *testing.T) {
	t.Helper()
	n := newNode(t)
	pod := n.runPod(n.pod("unmapped"))
	c := ctr(probeImage)
	security(c).RunAsUser = id(1000)
	created := n.create(pod, c)
	_, err := n.StartContainer(n.ctx(), &runtimeapi.StartContainerRequest{ContainerId: created})
	if err == nil || !strings.Contains(err.Error(), "user 1000") || !strings.Contains(err.Error(), "/etc/subuid") {
		t.Errorf("error %v", err)
	}
}
