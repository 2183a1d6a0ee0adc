// SPDX-License-Identifier: Apache-2.0

// Package inroot opens and creates paths below a directory as if it were "/": a symbolic link, absolute or with
// "..", never leads out of it. Container roots and image layers are written by strangers, so every path in them goes
// through here. It imports golang.org/x/sys/unix only, since the container shim uses it.
package inroot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens name below the directory root refers to, with openat2's RESOLVE_IN_ROOT. The file is the caller's.
func Open(root *os.File, name string, flags int, perm uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(perm)
	}
	rel := relative(name)
	for {
		fd, err := unix.Openat2(int(root.Fd()), rel, &how)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN: // a rename raced with the walk
			continue
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: path.Join(root.Name(), rel), Err: err}
		}
		return os.NewFile(uintptr(fd), path.Join(root.Name(), rel)), nil
	}
}

// ReadFile returns the content of a regular file below dir.
func ReadFile(dir, name string) ([]byte, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := Open(root, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	return io.ReadAll(f)
}

// maxLinks is how many dangling symbolic links Ensure follows, the kernel's own limit.
const maxLinks = 40

// Ensure opens name below root as an O_PATH file, creating it and its parents if need be: as a directory (mode
// 0755) when dir is true, as an empty file otherwise. A dangling link is followed and its target created.
func Ensure(root *os.File, name string, dir bool) (*os.File, error) {
	f, err := ensure(root, name, dir, 0)
	if err != nil {
		return nil, fmt.Errorf("make %s in the container's root: %w", name, err)
	}
	return f, nil
}

func ensure(root *os.File, name string, dir bool, links int) (*os.File, error) {
	if links > maxLinks {
		return nil, unix.ELOOP
	}
	f, err := Open(root, name, unix.O_PATH, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	name = path.Clean("/" + name)
	if name == "/" {
		return nil, unix.ENOENT
	}
	parent, err := ensure(root, path.Dir(name), true, links+1)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	base := path.Base(name)
	buf := make([]byte, unix.PathMax)
	if n, err := unix.Readlinkat(int(parent.Fd()), base, buf); err == nil {
		target := string(buf[:n])
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		return ensure(root, target, dir, links+1)
	}
	if dir {
		err = unix.Mkdirat(int(parent.Fd()), base, 0o755)
	} else {
		var fd int
		fd, err = unix.Openat(int(parent.Fd()), base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
		if err == nil {
			unix.Close(fd)
		}
	}
	if err != nil && err != unix.EEXIST {
		return nil, err
	}
	return Open(root, name, unix.O_PATH, 0)
}

func relative(name string) string {
	rel := strings.TrimLeft(path.Clean("/"+name), "/")
	if rel == "" {
		return "."
	}
	return rel
}
