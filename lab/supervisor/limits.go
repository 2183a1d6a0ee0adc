// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a lab takes of the inotify instances that a user may have (128 on most machines), as measured: without them
// components fail one by one, and their logs speak of "too many open files".
const (
	inotifyControl = 9
	inotifyNode    = 7
)

// checkInotify fails where this user has too few inotify instances left for a lab of so many nodes.
func checkInotify(nodes int) error {
	need := inotifyControl + inotifyNode*nodes
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for range need {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if errors.Is(err, unix.EMFILE) {
			return fmt.Errorf("%d nodes take %d inotify instances, and you have %d left: allow more with "+
				"`sudo sysctl -w fs.inotify.max_user_instances=1024`, end another lab, or start fewer --nodes", nodes, need, len(open))
		}
		if err != nil {
			return fmt.Errorf("inotify: %w", err)
		}
		open = append(open, fd)
	}
	return nil
}
