// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Main is the TestMain of a package whose tests share one lab: it starts the lab with the arguments of `weft lab up`,
// stores it, runs the tests and ends it. Where there can be no lab it skips the tests and says why, and fails where CI
// is set.
func Main(m *testing.M, lab **Lab, name string, args ...string) {
	os.Exit(run(m, lab, name, args))
}

func run(m *testing.M, lab **Lab, name string, args []string) int {
	if err := Possible(); err != nil {
		if os.Getenv("CI") != "" {
			fmt.Println("FAIL:", err)
			return 1
		}
		fmt.Println("SKIP:", err)
		return 0
	}
	l, err := Start(name, args)
	if err != nil {
		fmt.Println("FAIL: start the lab:", err)
		return 1
	}
	defer l.Stop()
	*lab = l
	return m.Run()
}

// Possible says why there can be no lab here.
func Possible() error {
	if _, err := BinDir(); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		return nil
	}
	limit, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err == nil && string(limit) == "0\n" {
		return errors.New("this machine allows an ordinary user no namespaces (sysctl user.max_user_namespaces), and we are not root")
	}
	return nil
}

// Require skips the test where there can be no lab, and fails it where CI is set.
func Require(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// nobody is the ordinary user that root tests as.
const nobody = 65534

// OrdinaryUser makes labs run as an ordinary user: nobody, where we are root, and otherwise whoever we are.
func OrdinaryUser(t testing.TB) []Option {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	bin, err := BinDir()
	Require(t, err)
	as := As(nobody, nobody)
	probe := &Lab{Name: "probe", bin: bin}
	as(probe)
	if _, err := probe.Run(t.Context(), "--version"); err == nil {
		return []Option{as}
	}
	// A working copy below root's home is out of an ordinary user's reach.
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "bin"), os.DirFS(bin)); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return []Option{as, func(l *Lab) { l.bin = filepath.Join(dir, "bin") }}
}

// Name is a lab's name that no other process uses.
func Name(prefix string) string { return fmt.Sprintf("%s-%d", prefix, os.Getpid()) }
