// SPDX-License-Identifier: Apache-2.0

// Package nstest gives kernel tests their throw-away network namespaces, and says what happens where there are none:
// the test is skipped, with the reason, and in CI it fails. Only tests import it. It imports the standard library and
// x/sys.
package nstest

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Enter puts the test's goroutine on a thread of its own in a new network namespace, with nothing up in it. Both are
// thrown away when the goroutine ends.
func Enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread goes with the namespace
	Require(t, unix.Unshare(unix.CLONE_NEWNET))
}

// Require goes on if a namespace could be had.
func Require(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("a network namespace can't be had: %v", err)
	default:
		t.Skipf("needs network namespaces (root, or a user namespace): %v", err)
	}
}
