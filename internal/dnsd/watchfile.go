// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watchFile calls changed with a file's content each time that it differs from before, until ctx is done. It watches
// the file's directory, so a file that is replaced is noticed, and a ConfigMap's, whose directory is a symbolic link
// that the kubelet swaps.
func watchFile(ctx context.Context, path string, last []byte, changed func([]byte)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	dir := filepath.Dir(path)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_DELETE); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	events := make([]byte, 16<<10)
	for {
		// Once before the first event, too: the file may have changed since it was last read.
		if now, err := os.ReadFile(path); err == nil && !bytes.Equal(now, last) {
			last = now
			changed(now)
		}
		if _, err := f.Read(events); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
}
