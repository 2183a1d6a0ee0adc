// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on an OS thread of its own that ends with it, so f may leave the thread in any namespace.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// shareNetNSDir makes dir a mount that shares what is mounted below it with copies of the node's mount namespace,
// so that a namespace that is pinned, or let go, is so in containers that mount dir too.
func shareNetNSDir(dir string) error {
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err == unix.EINVAL { // not a mount yet
		if err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("cri: share %s: %w", dir, err)
	}
	return nil
}

// newNetNS makes a network namespace with its loopback up and the given sysctls, pinned at path.
func newNetNS(path string, sysctls map[string]string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	f.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin network namespace at %s: %w", path, err)
		}
		return writeSysctls(sysctls)
	})
	if err != nil {
		return errors.Join(err, removeNetNS(path))
	}
	return nil
}

// removeNetNS lets go of a namespace that newNetNS pinned.
func removeNetNS(path string) error {
	if path == "" {
		return nil
	}
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err == unix.EINVAL || err == unix.ENOENT { // not mounted (any more)
			break
		}
		if err != nil {
			return fmt.Errorf("let go of network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// inNetNS runs f on a thread inside the network namespace at path; "" is the node's own.
func inNetNS(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return onOwnThread(func() error {
		if err := joinNetNS(path); err != nil {
			return err
		}
		return f()
	})
}

// joinNetNS moves the calling thread into the network namespace at path.
func joinNetNS(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join network namespace %s: %w", path, err)
	}
	return nil
}

// loopbackUp sets lo up in the calling thread's namespace; CNI leaves that to the runtime.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(ifr))); errno != 0 {
		return fmt.Errorf("set loopback up: %w", errno)
	}
	return nil
}

// writeSysctls sets sysctls in the calling thread's namespaces, which must be a thread of onOwnThread: where the node
// has /proc/sys read-only, for the host's sake, it goes on in a mount namespace of its own in which that is undone.
// The caller has made sure that all of them are namespaced.
func writeSysctls(values map[string]string) error {
	for name, value := range values {
		err := os.WriteFile(sysctlPath(name), []byte(value), 0)
		if errors.Is(err, unix.EROFS) {
			if err = writableSysctls(); err == nil {
				err = os.WriteFile(sysctlPath(name), []byte(value), 0)
			}
		}
		if err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
		}
	}
	return nil
}

// writableSysctls gives the calling thread a copy of the node's mounts with a writable /proc/sys.
func writableSysctls() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.MountSetattr(unix.AT_FDCWD, "/proc/sys", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
}

// sysctlPath is the file of a sysctl. As in sysctl(8), the first separator, "." or "/", is the separator; the other
// one then stands for a dot within a part, such as an interface's name.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	return filepath.Join("/proc/sys", filepath.Clean("/"+name))
}

// sysctlScope says which of a pod's namespaces a sysctl belongs to; "" for one that is not namespaced.
func sysctlScope(name string) string {
	dotted := strings.ReplaceAll(name, "/", ".")
	switch {
	case strings.HasPrefix(dotted, "net."):
		return "network"
	case strings.HasPrefix(dotted, "kernel.shm"), strings.HasPrefix(dotted, "kernel.msg"),
		dotted == "kernel.sem", strings.HasPrefix(dotted, "fs.mqueue."):
		return "ipc"
	}
	return ""
}
