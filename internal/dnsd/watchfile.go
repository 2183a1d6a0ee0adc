// SPDX-License-Identifier: Apache-2.0

package dnsd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// fileWatch notices changes of a file.
type fileWatch struct {
	path  string
	log   *slog.Logger
	open  func(dir string) (io.ReadCloser, error) // openEvents
	every time.Duration                           // how often to look where no events are to be had
}

// lookEvery is how often a file is looked at whose changes the kernel does not tell of.
const lookEvery = 5 * time.Second

// run calls changed with the file's content each time that it differs from before, until ctx is done. Where the kernel has
// no more events to give (fs.inotify.max_user_instances is for all of a user's processes, on a node all of root's), the
// file is read now and then: no reason for DNS to end.
func (w *fileWatch) run(ctx context.Context, last []byte, changed func([]byte)) {
	look := func() {
		if now, err := os.ReadFile(w.path); err == nil && !bytes.Equal(now, last) {
			last = now
			changed(now)
		}
	}
	err := w.events(ctx, look)
	if ctx.Err() != nil {
		return
	}
	w.log.Warn("changes of the configuration are looked for instead of being told", "every", w.every, "err", err)
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// events calls look for each event of the file's directory until ctx is done or there are no more.
func (w *fileWatch) events(ctx context.Context, look func()) error {
	f, err := w.open(filepath.Dir(w.path))
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		// Once before the first event, too: the file may have changed since it was last read.
		look()
		if _, err := f.Read(buf); err != nil {
			return fmt.Errorf("watch %s: %w", w.path, err)
		}
	}
}

// openEvents watches a directory, so that a file in it that is replaced is noticed, and a ConfigMap's, whose directory is
// a symbolic link that the kubelet swaps. Each read returns when something has happened.
func openEvents(dir string) (io.ReadCloser, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_DELETE); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return f, nil
}
