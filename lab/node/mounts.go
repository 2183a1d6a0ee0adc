// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// enter makes this process's mount and UTS namespaces a machine of its own: the host's programs read-only, a disk
// (/etc and /opt copy-on-write, /var its own) that survives the node's restarts, and /run, /tmp, /dev, /proc and /sys
// that don't. Nothing that happens on the node can reach the host's files or its global sysctls.
func enter(b Boot) error {
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	steps := []struct {
		what string
		do   func(Boot) error
	}{
		{"make the host's files read-only", readOnlyHost},
		{"make /dev", mountDev},
		{"make /sys", mountSys},
		{"make the disk", mountDisk},
		{"make /proc", mountProc},
		{"make /run", mountRun},
		{"write /etc", writeEtc},
		{"hide the lab's state", hideState},
	}
	for _, step := range steps {
		if err := step.do(b); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	// Pods' volumes may ask for mounts to travel in either direction.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return os.Chdir("/")
}

// readOnlyHost turns every mount that is not the lab's read-only, in this mount namespace.
func readOnlyHost(b Boot) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		target := unescape(fields[4])
		if target == b.StateDir || strings.HasPrefix(target, b.StateDir+"/") {
			continue
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		err := unix.MountSetattr(unix.AT_FDCWD, target, 0, &attr)
		// Elsewhere than on the root, a mount may be out of reach (covered by another, or in a directory that is not
		// ours to enter): then nothing on the node can reach it either.
		if err != nil && (target == "/" || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES)) {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return lines.Err()
}

// unescape undoes the octal escapes of /proc/self/mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// devices are the host's device nodes that a node has. A node has no disks.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty", "net/tun", "fuse", "kmsg"}

func mountDev(b Boot) error {
	dev := filepath.Join(b.Dir, "dev")
	if err := mountAt(dev, "tmpfs", "mode=0755,size=64k", unix.MS_NOSUID); err != nil {
		return err
	}
	for _, name := range devices {
		host := filepath.Join("/dev", name)
		if _, err := os.Stat(host); err != nil {
			continue // machines differ
		}
		if err := bind(host, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	if err := mountAt(filepath.Join(dev, "pts"), "devpts", "newinstance,ptmxmode=0666,mode=0620", unix.MS_NOSUID|unix.MS_NOEXEC); err != nil {
		return err
	}
	if err := mountAt(filepath.Join(dev, "shm"), "tmpfs", "mode=1777", unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		return err
	}
	if err := mountAt(filepath.Join(dev, "mqueue"), "mqueue", "", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EPERM) {
		return err
	}
	for link, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dev, link)); err != nil {
			return err
		}
	}
	return unix.Mount(dev, "/dev", "", unix.MS_MOVE, "")
}

// mountSys makes a /sys that shows this node's network, with the host's cgroups (which the kubelet reads) in it.
func mountSys(b Boot) error {
	sys := filepath.Join(b.Dir, "sys")
	if err := mountAt(sys, "sysfs", "", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY); err != nil {
		return err
	}
	cgroup := filepath.Join(sys, "fs/cgroup")
	if _, err := os.Stat(cgroup); err == nil {
		if err := unix.Mount("/sys/fs/cgroup", cgroup, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind cgroups: %w", err)
		}
	}
	// Programs that pin eBPF objects want it; an ordinary user may not have it.
	_ = unix.Mount("bpf", filepath.Join(sys, "fs/bpf"), "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	return unix.Mount(sys, "/sys", "", unix.MS_MOVE, "")
}

func mountDisk(b Boot) error {
	for _, name := range []string{"etc", "opt"} {
		upper, work := filepath.Join(b.Dir, name), filepath.Join(b.Dir, "work-"+name)
		for _, dir := range []string{upper, work} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if _, err := os.Stat("/" + name); err != nil {
			continue
		}
		options := fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", name, upper, work)
		if b.Rootless {
			options += ",userxattr" // an ordinary user may not write overlayfs's usual attributes
		}
		if err := unix.Mount("overlay", "/"+name, "overlay", 0, options); err != nil {
			return fmt.Errorf("overlay on /%s: %w", name, err)
		}
	}
	disk := filepath.Join(b.Dir, "var")
	for _, dir := range []string{"cache", "tmp", "lib/kubelet", "lib/cni", "lib/weft", "lib/weft-lab/cri", "log/pods", "log/containers", "log/weft-lab"} {
		if err := os.MkdirAll(filepath.Join(disk, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(disk, "tmp"), os.ModeSticky|0o777); err != nil {
		return err
	}
	for link, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(disk, link)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := unix.Mount(disk, "/var", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /var: %w", err)
	}
	// The host's home of root is not the node's business, and an ordinary user can't even enter it.
	if _, err := os.Stat("/root"); err == nil {
		if err := unix.Mount("tmpfs", "/root", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			return err
		}
	}
	return unix.Mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
}

// tunables are kernel settings of the whole machine that the kubelet sets where they are not as it wants them. They
// are the host's, so the kubelet is shown files with the values that it wants.
var tunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

func mountProc(b Boot) error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger"} {
		if err := bindReadOnly(path, path); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	// On a file system of their own: the kubelet takes any mount of the disk's for the disk's place.
	fakes := filepath.Join(b.Dir, "tunables")
	if err := mountAt(fakes, "tmpfs", "mode=0755,size=64k", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return err
	}
	for name, value := range tunables {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); err != nil {
			continue
		}
		fake := filepath.Join(fakes, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(fake, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(fake, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind on %s: %w", target, err)
		}
	}
	// What is below net belongs to the node's network namespace, and may be written.
	const netSys = "/proc/sys/net"
	if err := unix.Mount(netSys, netSys, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", netSys, err)
	}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, netSys, 0, &attr); err != nil {
		return fmt.Errorf("make %s writable: %w", netSys, err)
	}
	return nil
}

func mountRun(b Boot) error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	if err := os.Mkdir("/run/lock", 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(BinDir, 0o755); err != nil {
		return err
	}
	// Each program is a mount of its own there, hence recursively.
	if err := unix.Mount(b.BinDir, BinDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", BinDir, err)
	}
	return nil
}

func writeEtc(b Boot) error {
	for name, content := range map[string][]byte{
		"hosts": b.Hosts, "resolv.conf": b.Resolv, "hostname": []byte(b.Name + "\n"),
	} {
		path := filepath.Join("/etc", name)
		// The host's may be a link to somewhere else.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/etc/cni/net.d", "/opt/cni/bin"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// hideState takes away the lab's state, which holds the keys of the cluster and the disks of other nodes. The images
// stay where they are, since they know themselves by their paths.
func hideState(b Boot) error {
	images, err := unix.OpenTree(unix.AT_FDCWD, b.ImageDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(images)
	if err := unix.Unmount(b.StateDir, unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", b.StateDir, "tmpfs", 0, "size=64k,mode=0755"); err != nil {
		return err
	}
	if err := os.MkdirAll(b.ImageDir, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(images, "", unix.AT_FDCWD, b.ImageDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move the images: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(unix.AT_FDCWD, b.StateDir, 0, &attr)
}

func mountAt(target, kind, options string, flags uintptr) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}

// bind makes source visible at target, which is made to be of the same kind.
func bind(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE, 0o644); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	return nil
}

func bindReadOnly(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(unix.AT_FDCWD, target, 0, &attr)
}
