// SPDX-License-Identifier: Apache-2.0

package policytable

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetns runs f on a thread that is in another network namespace, given by a file descriptor; -1 is the caller's own.
func inNetns(netns int, f func() error) error {
	if netns < 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and nobody else gets it in a foreign namespace.
		runtime.LockOSThread()
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
