// SPDX-License-Identifier: Apache-2.0

// Package nstest gives kernel tests their throw-away network namespaces, and says what happens where these or something
// else of the machine's are missing: the test is skipped, with the reason, and in CI it fails. Only tests import it. It
// imports the standard library and x/sys.
package nstest

import (
	"fmt"
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
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		Require(t, fmt.Errorf("make a network namespace: %w", err))
	}
}

// Require goes on if err is nil. Else it says what this machine lacks: the test is skipped, and fails where CI is set.
func Require(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("this machine lacks what the test needs: %v", err)
	default:
		t.Skipf("this machine lacks what the test needs (root or a user namespace gives it namespaces): %v", err)
	}
}
