// SPDX-License-Identifier: Apache-2.0

package inroot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a root with links that try to lead out of it, beside a secret.
func tree(t *testing.T) (root *os.File, outer string) {
	t.Helper()
	outer = t.TempDir()
	dir := filepath.Join(outer, "root")
	for _, d := range []string{"etc", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]string{"secret": "secret", "root/etc/file": "inside"} {
		if err := os.WriteFile(filepath.Join(outer, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"bin": "/usr/bin", "up": "../..", "abs": outer, "dangling": "/var/lib/new", "loop": "loop", "etc/secret": "../../secret",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, outer
}

func TestReadFile(t *testing.T) {
	root, outer := tree(t)
	for _, name := range []string{"etc/file", "/etc/file", "../../etc/file", "up/etc/file"} {
		if body, err := ReadFile(root.Name(), name); err != nil || string(body) != "inside" {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	for _, name := range []string{"etc/secret", "up/secret", "abs/secret", "../secret", outer + "/secret"} {
		if body, err := ReadFile(root.Name(), name); err == nil {
			t.Errorf("%s: read %q", name, body)
		}
	}
	if _, err := ReadFile(root.Name(), "etc"); err == nil {
		t.Error("a directory was read")
	}
}

func TestEnsure(t *testing.T) {
	root, outer := tree(t)
	for name, want := range map[string]string{ // the path below the root that comes to be
		"/a/b/c":          "a/b/c",
		"bin/prog":        "usr/bin/prog",
		"dangling":        "var/lib/new",
		"up/x":            "x",
		"abs/y":           "", // made below the root, whatever its name
		"/dev/log/../shm": "dev/shm",
	} {
		f, err := Ensure(root, name, false)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.Close()
		if want == "" {
			continue
		}
		if info, err := os.Lstat(filepath.Join(root.Name(), want)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	entries, err := os.ReadDir(outer)
	if err != nil || len(entries) != 2 {
		t.Errorf("beside the root: %v, %v", entries, err)
	}
	f, err := Ensure(root, "/new/dir", true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.IsDir() {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := Ensure(root, "loop/x", false); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop: %v", err)
	}
	if _, err := Ensure(root, "etc/file/x", false); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}
