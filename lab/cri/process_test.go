// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/images"
)

func security(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
	return c.Linux.SecurityContext
}

func id(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

// idScript prints who a process is and what it may do.
const idScript = `grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|CapAmb|NoNewPrivs):' /proc/self/status | tr -s '\t ' ' '`

func TestUsers(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("users"))
	for _, tc := range []struct {
		name string
		set  func(*runtimeapi.LinuxContainerSecurityContext)
		want []string
	}{
		{"root", func(*runtimeapi.LinuxContainerSecurityContext) {}, []string{
			"Uid: 0 0 0 0", "Gid: 0 0 0 0", "Groups: 0", "CapEff: 00000000a80425fb", "CapBnd: 00000000a80425fb", "NoNewPrivs: 0",
		}},
		{"a user with groups", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.RunAsUser, sc.RunAsGroup, sc.SupplementalGroups, sc.NoNewPrivs = id(1000), id(2000), []int64{3000, 4000}, true
		}, []string{
			"Uid: 1000 1000 1000 1000", "Gid: 2000 2000 2000 2000", "Groups: 2000 3000 4000", "CapEff: 0000000000000000", "NoNewPrivs: 1",
		}},
		{"a user of the image", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "nobody" },
			[]string{"Uid: 65534 65534 65534 65534", "Gid: 65534 65534 65534 65534"}},
		{"dropped and added", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN", "CAP_CHOWN"}}
		}, []string{"CapEff: 0000000000001001", "CapBnd: 0000000000001001"}},
		{"ambient for a user", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.RunAsUser = id(1000)
			sc.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}, []string{"CapEff: 0000000000000400", "CapAmb: 0000000000000400"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := shell(idScript)
			tc.set(security(c))
			got := strings.Split(n.output(pod, c), "\n")
			for i := range got {
				got[i] = strings.TrimSpace(got[i])
			}
			for _, w := range tc.want {
				if !strings.Contains(strings.Join(got, "\n")+"\n", w+"\n") {
					t.Errorf("no %q in %q", w, got)
				}
			}
		})
	}
	t.Run("the status tells", func(t *testing.T) {
		c := ctr(probeImage)
		security(c).RunAsUser, security(c).SupplementalGroups = id(1000), []int64{7}
		u := n.status(n.run(pod, c)).User.Linux
		if u.Uid != 1000 || u.Gid != 0 || len(u.SupplementalGroups) != 2 || u.SupplementalGroups[1] != 7 {
			t.Errorf("user %v", u)
		}
	})
	t.Run("an unknown name", func(t *testing.T) {
		c := ctr(probeImage)
		security(c).RunAsUsername = "nemo"
		_, err := n.CreateContainer(n.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
		if err == nil || !strings.Contains(err.Error(), `"nemo"`) || !strings.Contains(err.Error(), "runAsUser") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("an unknown capability", func(t *testing.T) {
		c := ctr(probeImage)
		security(c).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		_, err := n.CreateContainer(n.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
		if err == nil || !strings.Contains(err.Error(), `"FLY"`) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPrivileged(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("privileged"))
	const script = `touch /sys/kernel/x 2>&1 | grep -o 'Read-only' || echo writable; ` +
		`mkdir /m && mount -t tmpfs none /m 2>/dev/null && echo mounted || echo refused`
	if got := n.output(pod, shell(script)); got != "Read-only\nrefused" {
		t.Errorf("an ordinary container: %q", got)
	}
	c := shell(script)
	security(c).Privileged = true
	if got := n.output(pod, c); got != "writable\nmounted" {
		t.Errorf("a privileged container: %q", got)
	}
}

func TestEnvironment(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("env"))
	c := shell(`echo "$A $B $HOME $HOSTNAME $PATH"; pwd; hostname; echo $0`)
	c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "B", Value: []byte("two words")}}
	c.WorkingDir = "/made/for/it"
	if got, want := n.output(pod, c), "1 two words /root env /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/made/for/it\nenv\n/bin/sh"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestProcessNamespaces(t *testing.T) {
	n := newNode(t)
	t.Run("of the container", func(t *testing.T) {
		pod := n.runPod(n.pod("own"))
		n.run(pod, ctr(probeImage))
		if got := n.output(pod, shell("echo $$; ls -d /proc/[0-9]*")); got != "1\n/proc/1" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("of the pod", func(t *testing.T) {
		config := n.pod("shared")
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		pod := n.runPod(config)
		first := ctr(probeImage)
		security(first).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		n.run(pod, first)
		second := shell(`cat /proc/1/comm; tr '\0' ' ' < /proc/1/cmdline; grep -qs probe /proc/[2-9]*/comm && echo " and probe"; (sleep 0 & ) `)
		security(second).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		if got := n.output(pod, second); !strings.Contains(got, "weft-shim pause") || !strings.Contains(got, "and probe") {
			t.Errorf("got %q", got)
		}
		// Whatever a container has started ends with it, although the namespace lives on.
		third := shell("sleep 3600 & sleep 0.1")
		security(third).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		n.output(pod, third)
		fourth := shell(`grep -ls sleep /proc/[0-9]*/comm | grep -c . ; true`)
		security(fourth).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		if got := n.output(pod, fourth); got != "0" {
			t.Errorf("%s processes of an ended container are left", got)
		}
	})
	t.Run("of another container", func(t *testing.T) {
		pod := n.runPod(n.pod("debugged"))
		target := n.run(pod, ctr(probeImage))
		debug := shell(`tr '\0' ' ' < /proc/1/cmdline`)
		security(debug).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		security(debug).NamespaceOptions.TargetId = target
		if got := n.output(pod, debug); !strings.Contains(got, "/probe") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("of the node", func(t *testing.T) {
		config := n.pod("onnode")
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		pod := n.runPod(config)
		c := shell("readlink /proc/self/ns/pid")
		security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		own, err := os.Readlink("/proc/self/ns/pid")
		if err != nil {
			t.Fatal(err)
		}
		if got := n.output(pod, c); got != own {
			t.Errorf("got %q, want %q", got, own)
		}
	})
}

func TestIPCAndSharedMemory(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("shm"))
	n.output(pod, shell("echo shared > /dev/shm/file; stat -c %a /dev/shm"))
	if got := n.output(pod, shell("cat /dev/shm/file; readlink /proc/self/ns/ipc")); !strings.HasPrefix(got, "shared\n") {
		t.Errorf("got %q", got)
	} else if own, _ := os.Readlink("/proc/self/ns/ipc"); strings.Contains(got, own) {
		t.Errorf("the pod has the node's IPC namespace")
	}
}

func TestRoot(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("roots"))
	t.Run("written to, it is the container's own", func(t *testing.T) {
		file := "/usr/bin/new"
		if inUserNamespace() {
			file = "/etc/new" // the host's programs belong to a user that is not mapped, whose files stay as they are
		}
		if got := n.output(pod, shell("echo x > "+file+" && cat "+file)); got != "x" {
			t.Errorf("got %q", got)
		}
		if got := n.output(pod, shell("test -e "+file+" && echo there || echo gone")); got != "gone" {
			t.Errorf("got %q", got)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("the host's own file system was changed")
		}
	})
	t.Run("read-only", func(t *testing.T) {
		c := shell("touch /x 2>&1 | grep -o 'Read-only'; touch /dev/shm/y && echo shm; touch /v/z && echo volume")
		security(c).ReadonlyRootfs = true
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: n.made("ro-volume")}}
		if got := n.output(pod, c); got != "Read-only\nshm\nvolume" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("the host's secrets are hidden from tools", func(t *testing.T) {
		got := n.output(pod, shell("ls -A /root /home /var/lib /etc/shadow /etc/ssh 2>/dev/null | grep -v : | grep -c . ; ls /"))
		if !strings.HasPrefix(got, "0\n") {
			t.Errorf("visible: %q", got)
		}
		for _, name := range []string{"work", "opt"} {
			if _, err := os.Stat("/" + name); err == nil && strings.Contains(got+"\n", "\n"+name+"\n") {
				t.Errorf("/%s is visible", name)
			}
		}
	})
	t.Run("masked and read-only paths", func(t *testing.T) {
		c := shell("cat /proc/masked-check/x 2>/dev/null; wc -c < /proc/interrupts; ls /sys/class | grep -c .; { echo 1 > /proc/sys/net/ipv4/ip_forward && echo writable; } 2>/dev/null; true")
		security(c).MaskedPaths = []string{"/proc/interrupts", "/sys/class", "/no/such"}
		if got := n.output(pod, c); got != "0\n0" {
			t.Errorf("got %q", got)
		}
	})
}

// made makes a directory on the node.
func (n *node) made(name string) string {
	n.t.Helper()
	dir := filepath.Join(n.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

func TestDevicesAndTerminal(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("devices"))
	got := n.output(pod, shell(`echo x > /dev/null && head -c 4 /dev/zero | wc -c; test -c /dev/urandom && echo random; `+
		`readlink /dev/fd; test -p /dev/stdout && echo pipe; tty; ls /dev | grep -c -E 'sda|vda|mem|kmsg'; true`))
	if want := "4\nrandom\n/proc/self/fd\npipe\nnot a tty\n0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c := shell("tty; test -c /dev/console && echo console")
	c.Tty = true
	id := n.run(pod, c)
	if st := n.wait(id); st.ExitCode != 0 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	if got := strings.Join(n.logs(id), "|"); !strings.Contains(got, "/dev/pts/0") || !strings.Contains(got, "console") {
		t.Errorf("log %q", got)
	}
}

// mount mounts a file system until the test's end.
func mount(t *testing.T, fstype, dir string) {
	t.Helper()
	if err := unix.Mount(fstype, dir, fstype, 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestMounts(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("mounts"))
	dir := n.made("volume")
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("file", "content")
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	t.Run("directories and files", func(t *testing.T) {
		c := shell("cat /a/file /b /deep/er/c /d; echo y > /a/new; (echo z > /ro/new) 2>/dev/null || echo refused")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/deep/er/c", HostPath: file}, {ContainerPath: "/a", HostPath: dir},
			{ContainerPath: "/b", HostPath: file, Readonly: true}, {ContainerPath: "/d", HostPath: filepath.Join(dir, "link")},
			{ContainerPath: "/ro", HostPath: dir, Readonly: true}, {ContainerPath: "/a/inner", HostPath: n.made("inner")},
		}
		if got := n.output(pod, c); got != strings.Repeat("content", 4)+"refused" {
			t.Errorf("got %q", got)
		}
		if body, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(body) != "y\n" {
			t.Errorf("new: %q, %v", body, err)
		}
	})
	t.Run("kubelet's files and the pod's own", func(t *testing.T) {
		c := shell("cat /etc/hosts /etc/resolv.conf /etc/hostname; echo bye > /dev/termination-log")
		message := write("message", "")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/dev/termination-log", HostPath: message},
			{ContainerPath: "/etc/hosts", HostPath: write("hosts", "10.1.1.1 here\n")},
		}
		want := "10.1.1.1 here\nsearch default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\nmounts"
		if got := n.output(pod, c); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if body, _ := os.ReadFile(message); string(body) != "bye\n" {
			t.Errorf("termination message %q", body)
		}
	})
	t.Run("a link in the image never leads out", func(t *testing.T) {
		root := n.made("evil")
		if err := os.Symlink("/../../../../"+n.dir, filepath.Join(root, "escape")); err != nil {
			t.Fatal(err)
		}
		probe, err := os.ReadFile(filepath.Join(base, "probe"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "probe"), probe, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := n.store.LoadRootfs("example.com/evil:*", images.Loaded, root); err != nil {
			t.Fatal(err)
		}
		c := ctr("example.com/evil:any", "exit", "0")
		c.Command = []string{"/probe"}
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/escape/trap", HostPath: dir}}
		n.output(pod, c)
		if _, err := os.Stat(filepath.Join(n.dir, "trap")); err == nil {
			t.Error("the mount's target was made on the node")
		}
	})
	t.Run("an image as a volume", func(t *testing.T) {
		root := n.made("data")
		if err := os.MkdirAll(filepath.Join(root, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "sub/data"), []byte("from the image"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := n.store.LoadRootfs("example.com/data:v1", images.Loaded, root); err != nil {
			t.Fatal(err)
		}
		c := shell("cat /all/sub/data /part/data; touch /part/x 2>/dev/null || echo refused")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/all", Image: &runtimeapi.ImageSpec{Image: "example.com/data:v1"}},
			{ContainerPath: "/part", Image: &runtimeapi.ImageSpec{Image: "example.com/data:v1"}, ImageSubPath: "sub"},
		}
		if got := n.output(pod, c); got != "from the imagefrom the imagerefused" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("recursive read-only", func(t *testing.T) {
		outer := n.made("outer")
		inner := n.made("outer/inner")
		mount(t, "tmpfs", inner)
		c := shell("touch /o/inner/x 2>/dev/null && echo written; touch /r/inner/x 2>/dev/null || echo refused")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/o", HostPath: outer, Readonly: true},
			{ContainerPath: "/r", HostPath: outer, Readonly: true, RecursiveReadOnly: true},
		}
		if got := n.output(pod, c); got != "written\nrefused" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("propagation", func(t *testing.T) {
		shared := n.made("shared")
		mount(t, "tmpfs", shared)
		if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
		n.made("shared/late")
		n.made("shared/theirs")
		c := shell("while ! test -e /slave/late/x; do sleep 0.01; done; test -e /private/late/x || echo hidden; " +
			"mount -t tmpfs none /both/theirs && touch /both/theirs/y && echo mounted; while ! test -e /both/end; do sleep 0.01; done; umount /both/theirs")
		security(c).Privileged = true
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/private", HostPath: shared},
			{ContainerPath: "/slave", HostPath: shared, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{ContainerPath: "/both", HostPath: shared, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		}
		id := n.run(pod, c)
		mount(t, "tmpfs", filepath.Join(shared, "late"))
		if err := os.WriteFile(filepath.Join(shared, "late/x"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		n.eventually("a mount of the container shows on the node", func() bool {
			_, err := os.Stat(filepath.Join(shared, "theirs/y"))
			return err == nil
		})
		if err := os.WriteFile(filepath.Join(shared, "end"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if st := n.wait(id); st.ExitCode != 0 {
			t.Errorf("exit code %d, log %q", st.ExitCode, n.logs(id))
		}
		if got := n.logs(id); len(got) != 2 || got[0] != "stdout F hidden" || got[1] != "stdout F mounted" {
			t.Errorf("log %q", got)
		}
	})
	t.Run("options", func(t *testing.T) {
		c := shell("cp /bin/true /noexec/t && /noexec/t 2>/dev/null || echo refused")
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/noexec", HostPath: n.made("noexec"), MountOptions: []string{"noexec", "nosuid"}}}
		if got := n.output(pod, c); got != "refused" {
			t.Errorf("got %q", got)
		}
	})
}

func TestZombies(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("zombies"))
	n.run(pod, ctr(probeImage))
	tools := n.run(pod, shell("sleep 3600"))
	for range 3 {
		if out, code := n.execIn(tools, "/bin/sh", "-c", "exit 3"); code != 3 {
			t.Errorf("exit code %d: %s", code, out)
		}
	}
	r, err := n.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	n.eventually("the shim has reaped all that ended", func() bool {
		children, err := os.ReadFile("/proc/" + r.Info["pid"] + "/task/" + r.Info["pid"] + "/children")
		if err != nil {
			t.Fatal(err)
		}
		return len(strings.Fields(string(children))) == 2
	})
}
