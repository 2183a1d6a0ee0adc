// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri"
	"github.com/weft-net/weft/lab/images"
)

// Environment variables by which the test program knows what it is to be.
const (
	asTests  = "WEFT_CRI_TEST_NAMESPACES" // the tests, inside throw-away namespaces
	asServer = "WEFT_CRI_TEST_SERVE"      // the CRI server, with this configuration
	asUser   = "WEFT_CRI_TEST_USER"       // the tests, as an ordinary user that root has become
)

// base is a tmpfs of this test program's own mount namespace.
const base = "/mnt"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asServer) != "":
		os.Exit(serve())
	case os.Getenv(asUser) != "":
		// Not root any more: from here it is as if an ordinary user had started the tests.
		programs := os.Getenv(asUser)
		os.Unsetenv(asUser)
		if err := again(programs, os.Args[1:]...).Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(asTests) != "":
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	os.Exit(inNamespaces())
}

// inNamespaces runs the tests in namespaces of their own, which the kernel clears away whatever happens.
func inNamespaces() int {
	programs, err := os.MkdirTemp("", "cri-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	for name, pkg := range map[string]string{"weft-shim": "../cmd/weft-shim", "probe": "./testdata/probe"} {
		build := exec.Command("go", "build", "-o", filepath.Join(programs, name), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	err = again(programs, os.Args[1:]...).Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	case os.Getenv("CI") != "":
		fmt.Fprintln(os.Stderr, "FAIL: the tests need namespaces:", err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "SKIP: the tests need namespaces:", err)
	return 0
}

// again is this test program once more, inside new namespaces; for an ordinary user, also a user namespace.
func again(programs string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asTests+"="+programs)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

func prepare() error {
	programs := os.Getenv(asTests)
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("proc", "/proc", "proc", 0, "") },
		func() error {
			files := map[string][]byte{}
			for _, name := range []string{"weft-shim", "probe"} {
				body, err := os.ReadFile(filepath.Join(programs, name))
				if err != nil {
					return err
				}
				files[name] = body
			}
			if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=755"); err != nil {
				return err
			}
			for name, body := range files {
				if err := os.WriteFile(filepath.Join(base, name), body, 0o755); err != nil {
					return err
				}
			}
			return nil
		},
		func() error { return unix.Sethostname([]byte("test-node")) },
		loopbackUp,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// loopbackUp sets lo up, over which the streams of exec, attach and port-forward go.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func serve() int {
	var cfg cri.Config
	if err := json.Unmarshal([]byte(os.Getenv(asServer)), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := cri.Run(context.Background(), cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// node is a CRI server under test with its clients.
type node struct {
	t      *testing.T
	cfg    cri.Config
	dir    string
	cniDir string // where the test's CNI plugin keeps its notes
	store  *images.Store
	server *exec.Cmd
	conn   *grpc.ClientConn
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
}

const (
	probeImage = "example.com/probe:v1"
	toolsImage = "example.com/tools:latest"
)

// newNode starts a server with a network, and the images probe and tools.
func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp(base, "node-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, cniDir: filepath.Join(dir, "cni-state")}
	n.cfg = cri.Config{
		Socket: filepath.Join(dir, "cri.sock"), Root: filepath.Join(dir, "root"), Node: "test-node",
		ImageDir: filepath.Join(dir, "images"), Shim: filepath.Join(base, "weft-shim"),
		CNIConfDir: filepath.Join(dir, "net.d"), CNIBinDirs: []string{base}, NetNSDir: filepath.Join(dir, "netns"),
	}
	for _, d := range []string{n.cniDir, n.cfg.CNIConfDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.installNetwork()
	if n.store, err = images.Open(n.cfg.ImageDir); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.LoadBinary(probeImage, images.Loaded, filepath.Join(base, "probe")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.LoadTools(toolsImage, images.Shipped); err != nil {
		t.Fatal(err)
	}
	n.start()
	t.Cleanup(n.clear)
	return n
}

func (n *node) installNetwork() {
	n.t.Helper()
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"test","plugins":[{"type":"probe","dir":%q,
		"capabilities":{"portMappings":true}}]}`, n.cniDir)
	if err := os.WriteFile(filepath.Join(n.cfg.CNIConfDir, "10-test.conflist"), []byte(conf), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// start starts the server and waits until it answers.
func (n *node) start() {
	n.t.Helper()
	body, err := json.Marshal(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.server = exec.Command("/proc/self/exe")
	n.server.Env = append(os.Environ(), asServer+"="+string(body))
	n.server.Stderr = os.Stderr
	if err := n.server.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("the server has a socket", func() bool {
		c, err := net.Dial("unix", n.cfg.Socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	n.conn, err = grpc.NewClient("unix://"+n.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(n.conn)
	n.images = runtimeapi.NewImageServiceClient(n.conn)
	if _, err := n.Version(n.ctx(), &runtimeapi.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		n.t.Fatal("server does not answer:", err)
	}
}

// kill kills the server as a power cut would.
func (n *node) kill() {
	n.t.Helper()
	n.conn.Close()
	if err := n.server.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	_ = n.server.Wait()
}

// clear removes all pods and checks that nothing is left of them.
func (n *node) clear() {
	pods, err := n.ListPodSandbox(n.ctx(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Error(err)
		return
	}
	for _, p := range pods.Items {
		if _, err := n.RemovePodSandbox(n.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			n.t.Errorf("remove pod %s: %v", p.Metadata.Name, err)
		}
	}
	for _, d := range []string{n.cniDir, n.cfg.NetNSDir, filepath.Join(n.cfg.Root, "sandboxes"), filepath.Join(n.cfg.Root, "containers")} {
		entries, err := os.ReadDir(d)
		if err != nil {
			n.t.Error(err)
		}
		for _, e := range entries {
			if d == n.cniDir && len(e.Name()) != 64 {
				continue
			}
			n.t.Errorf("left behind: %s/%s", d, e.Name())
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, n.dir) && !strings.Contains(line, n.cfg.NetNSDir+" ") {
			n.t.Errorf("left behind: mount %s", line)
		}
	}
	n.kill()
	_ = unix.Unmount(n.cfg.NetNSDir, unix.MNT_DETACH)
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

func (n *node) ctx() context.Context {
	// Ended by the process's end; long enough for the slowest call on a busy machine.
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	_ = cancel
	return ctx
}

// pod is the configuration of a sandbox.
func (n *node) pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(n.dir, "logs", name),
		Labels:       map[string]string{"app": name},
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func (n *node) runPod(config *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.RunPodSandbox(n.ctx(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.t.Fatal("RunPodSandbox:", err)
	}
	return r.PodSandboxId
}

// logNames counts the log files.
var logNames atomic.Int64

// ctr is the configuration of a container.
func ctr(image string, args ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Args:     args,
		LogPath:  fmt.Sprintf("main/%d.log", logNames.Add(1)),
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			MaskedPaths:      []string{"/proc/kcore", "/proc/scsi"},
			ReadonlyPaths:    []string{"/proc/sys", "/proc/irq"},
		}},
	}
}

// shell is a container of the host's own programs that runs a script.
func shell(script string) *runtimeapi.ContainerConfig {
	c := ctr(toolsImage)
	c.Command = []string{"/bin/sh", "-c", script}
	return c
}

func (n *node) create(pod string, config *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	r, err := n.CreateContainer(n.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
	if err != nil {
		n.t.Fatal("CreateContainer:", err)
	}
	return r.ContainerId
}

func (n *node) run(pod string, config *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id := n.create(pod, config)
	if _, err := n.StartContainer(n.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatal("StartContainer:", err)
	}
	return id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	r, err := n.ContainerStatus(n.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.t.Fatal("ContainerStatus:", err)
	}
	return r.Status
}

// eventually polls until ok, and fails with what after half a minute.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	n.t.Fatal("never happened:", what)
}

// wait waits for the container's end.
func (n *node) wait(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	n.eventually("the container ends", func() bool {
		return n.status(id).State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return n.status(id)
}

// logs returns the lines of the container's log without their times: "stdout F text".
func (n *node) logs(id string) []string {
	n.t.Helper()
	body, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		n.t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
		stamp, rest, _ := strings.Cut(line, " ")
		if line == "" {
			continue
		}
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			n.t.Fatalf("log line %q: %v", line, err)
		}
		lines = append(lines, rest)
	}
	return lines
}

// output runs a script to its end, which must be success, and returns what it printed.
func (n *node) output(pod string, config *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id := n.run(pod, config)
	st := n.wait(id)
	var text []string
	for _, line := range n.logs(id) {
		f := strings.SplitN(line, " ", 3)
		text = append(text, f[2])
	}
	if st.ExitCode != 0 {
		n.t.Fatalf("exit code %d (%s %s): %s", st.ExitCode, st.Reason, st.Message, strings.Join(text, "\n"))
	}
	if _, err := n.RemoveContainer(n.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatal(err)
	}
	return strings.Join(text, "\n")
}

// execIn runs a command in a container and returns its output and exit code.
func (n *node) execIn(id string, cmd ...string) (string, int32) {
	n.t.Helper()
	r, err := n.ExecSync(n.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		n.t.Fatal("ExecSync:", err)
	}
	return string(r.Stdout) + string(r.Stderr), r.ExitCode
}
