// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/inroot"
	"github.com/weft-net/weft/lab/cri/wire"
)

// capturedMount is a piece of the node's file system, cloned before the container's own view is built.
type capturedMount struct {
	wire.Mount
	tree *os.File
	dir  bool
}

// buildRoot makes the container's root in this process's new mount namespace and enters it. It never touches the
// node's mounts: the namespace is a copy whose every mount only receives from the node.
func buildRoot(spec *wire.Container, dir string) error {
	var mounts []capturedMount
	capture := func(ms []wire.Mount) error {
		for _, m := range ms {
			c, err := captureMount(m)
			if err != nil {
				return err
			}
			mounts = append(mounts, c)
		}
		return nil
	}
	if err := capture(append(deviceMounts(spec), spec.Devices...)); err != nil {
		return err
	}
	devices := len(mounts)
	if err := capture(spec.Mounts); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make the mounts of the container its own: %w", err)
	}
	if err := mountOverlay(spec, dir); err != nil {
		return err
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for i, d := range spec.HostDirs {
		if err := mountHostDir(spec, root, d, filepath.Join(filepath.Dir(dir), "host", strconv.Itoa(i))); err != nil {
			return err
		}
	}
	if err := kernelMounts(spec, root); err != nil {
		return err
	}
	for _, m := range mounts[:devices] {
		if err := m.attach(root); err != nil {
			return err
		}
	}
	if err := deviceLinks(root); err != nil {
		return err
	}
	for _, m := range mounts[devices:] {
		if err := m.attach(root); err != nil {
			return err
		}
	}
	return enterRoot(spec, root)
}

func captureMount(m wire.Mount) (capturedMount, error) {
	// A clone of the tree below Source, still a peer of the node's mounts.
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return capturedMount{}, fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
	}
	c := capturedMount{Mount: m, tree: os.NewFile(uintptr(fd), m.Source)}
	info, err := c.tree.Stat()
	if err != nil {
		return capturedMount{}, fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
	}
	c.dir = info.IsDir()
	return c, nil
}

func (m *capturedMount) attach(root *os.File) error {
	fail := func(what string, err error) error {
		return fmt.Errorf("mount %s at %s: %s: %w", m.Source, m.Target, what, err)
	}
	defer m.tree.Close()
	fd := int(m.tree.Fd())
	set := func(recursive uint, attr unix.MountAttr) error {
		return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|recursive, &attr)
	}
	var err error
	switch m.Propagation {
	case wire.PropagationPrivate:
		err = set(unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_PRIVATE})
	case wire.PropagationHostToContainer:
		err = set(unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_SLAVE})
	case wire.PropagationBidirectional:
		err = set(unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_SHARED})
	}
	if err != nil {
		return fail("propagation", err)
	}
	var attrs uint64
	for _, o := range m.Options {
		switch o {
		case "noexec":
			attrs |= unix.MOUNT_ATTR_NOEXEC
		case "nosuid":
			attrs |= unix.MOUNT_ATTR_NOSUID
		case "nodev":
			attrs |= unix.MOUNT_ATTR_NODEV
		case "noatime":
			attrs |= unix.MOUNT_ATTR_NOATIME
		default:
			return fail("options", fmt.Errorf("unknown mount option %q", o))
		}
	}
	if m.ReadOnly && !m.RecursiveReadOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if attrs != 0 {
		if err := set(0, unix.MountAttr{Attr_set: attrs}); err != nil {
			return fail("options", err)
		}
	}
	if m.RecursiveReadOnly {
		if err := set(unix.AT_RECURSIVE, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fail("recursive read-only", err)
		}
	}
	at, err := inroot.Ensure(root, m.Target, m.dir)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.MoveMount(fd, "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fail("attach", err)
	}
	return nil
}

// inUserNamespace reports whether root here is an ordinary user outside.
func inUserNamespace() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") != "0 0 4294967295"
}

func mountOverlay(spec *wire.Container, dir string) error {
	base := filepath.Dir(dir)
	if err := overlay(dir, spec.Lowers, filepath.Join(base, "upper"), filepath.Join(base, "work"), 0); err != nil {
		return fmt.Errorf("copy-on-write root over %s: overlay: %w", strings.Join(spec.Lowers, ", "), err)
	}
	return nil
}

// overlay mounts lowers, the top one first, with a writable layer over them.
func overlay(target string, lowers []string, upper, work string, flags uintptr) error {
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace
	escaped := make([]string, len(lowers))
	for i, l := range lowers {
		escaped[i] = escape(l)
	}
	opts := "lowerdir=" + strings.Join(escaped, ":") + ",upperdir=" + escape(upper) + ",workdir=" + escape(work)
	if inUserNamespace() {
		opts += ",userxattr"
	}
	return unix.Mount("overlay", target, "overlay", flags, opts)
}

// mountHostDir shows a directory of the node in the container, copy on write with the layer below base, or where
// the kernel can't do that (file systems of the node are mounted below it) read-only.
func mountHostDir(spec *wire.Container, root *os.File, dir, base string) error {
	at, err := inroot.Ensure(root, dir, true)
	if err != nil {
		return err
	}
	defer at.Close()
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("copy-on-write %s: %w", dir, err)
		}
	}
	var flags uintptr
	if spec.ReadOnlyRoot {
		flags = unix.MS_RDONLY
	}
	err = overlay(viaFD(at), []string{dir}, upper, work, flags)
	if err == nil {
		return nil
	}
	if err != unix.EINVAL {
		return fmt.Errorf("copy-on-write %s: overlay: %w", dir, err)
	}
	m, err := captureMount(wire.Mount{Source: dir, Target: dir, ReadOnly: true, RecursiveReadOnly: true})
	if err != nil {
		return err
	}
	return m.attach(root)
}

// kernelMounts mounts /proc, /dev and /sys.
func kernelMounts(spec *wire.Container, root *os.File) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	sys := uintptr(safe | unix.MS_RDONLY)
	if spec.Privileged {
		sys = safe
	}
	steps := []struct {
		source, target, fstype string
		flags                  uintptr
		data                   []string // the first that the kernel takes
		optional               bool
	}{
		{"proc", "/proc", "proc", safe, []string{""}, false},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_STRICTATIME, []string{"mode=755,size=65536k"}, false},
		// The second form is for a user namespace in which group 5 (tty) is not mapped.
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC,
			[]string{"newinstance,ptmxmode=0666,mode=0620,gid=5", "newinstance,ptmxmode=0666,mode=0620"}, false},
		{"mqueue", "/dev/mqueue", "mqueue", safe, []string{""}, true},
		{"sysfs", "/sys", "sysfs", sys, []string{""}, true},
	}
	for _, s := range steps {
		at, err := inroot.Ensure(root, s.target, true)
		if err != nil {
			return err
		}
		for _, data := range s.data {
			if err = unix.Mount(s.source, viaFD(at), s.fstype, s.flags, data); err == nil {
				break
			}
		}
		at.Close()
		if err != nil && !s.optional {
			return fmt.Errorf("mount %s: %w", s.target, err)
		}
	}
	return nil
}

func viaFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// deviceMounts are the node's devices that every container sees, and the few more of a privileged one. They are
// bound rather than made, which works in a user namespace as well. A disk is never among them.
func deviceMounts(spec *wire.Container) []wire.Mount {
	names := []string{"null", "zero", "full", "random", "urandom", "tty"}
	if spec.Privileged {
		names = append(names, "net/tun", "fuse", "kmsg")
	}
	var ms []wire.Mount
	for _, n := range names {
		path := "/dev/" + n
		if _, err := os.Stat(path); err == nil {
			ms = append(ms, wire.Mount{Source: path, Target: path})
		}
	}
	return ms
}

func deviceLinks(root *os.File) error {
	dev, err := inroot.Open(root, "/dev", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	for _, l := range [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
	} {
		if err := unix.Symlinkat(l[0], int(dev.Fd()), l[1]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("link /dev/%s: %w", l[1], err)
		}
	}
	return nil
}

// enterRoot makes root this namespace's only root and applies what needs the final paths.
func enterRoot(spec *wire.Container, root *os.File) error {
	cwd, err := inroot.Ensure(root, spec.Process.Cwd, true)
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	cwd.Close()
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root is now mounted over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the node's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, p := range spec.ReadonlyPaths {
		if err := readonlyPath(p); err != nil {
			return fmt.Errorf("read-only path %s: %w", p, err)
		}
	}
	for _, p := range spec.MaskedPaths {
		if err := maskPath(p); err != nil {
			return fmt.Errorf("masked path %s: %w", p, err)
		}
	}
	if spec.ReadOnlyRoot {
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("read-only root: %w", err)
		}
	}
	return nil
}

func readonlyPath(path string) error {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func maskPath(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	if info.IsDir() {
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "size=0k")
	}
	return unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
}

// openTerminal makes a terminal in the container's own devpts, gives its slave side to this process as standard
// input, output, error and controlling terminal, and returns the master side.
func openTerminal(owner wire.User, console bool) (master int, err error) {
	master, err = unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, fmt.Errorf("unlock terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, fmt.Errorf("terminal number: %w", err)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	slave, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("terminal: %w", err)
	}
	_ = unix.Fchown(slave, int(owner.UID), -1) // an unmapped owner is told of when the process becomes that user
	if console {
		f, err := os.OpenFile("/dev/console", os.O_CREATE, 0o620)
		if err != nil {
			return -1, fmt.Errorf("console: %w", err)
		}
		f.Close()
		if err := unix.Mount(name, "/dev/console", "", unix.MS_BIND, ""); err != nil {
			return -1, fmt.Errorf("console: %w", err)
		}
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return -1, err
		}
	}
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return -1, fmt.Errorf("controlling terminal: %w", err)
	}
	return master, nil
}

// hungUp reports whether the peer of the control socket is gone.
func hungUp() bool {
	fds := []unix.PollFd{{Fd: controlFD, Events: unix.POLLIN}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLHUP != 0
}

// lookupEnv returns the last value of a variable in an environment.
func lookupEnv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(env[i], "="); ok && k == name {
			return v
		}
	}
	return ""
}
