// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/route"
)

// File is a Source that reads a complete route.Update from a YAML or JSON file, and again whenever the file changes. A
// changed file that can't be read or parsed is told of, and what was served before stays.
type File struct {
	Path string
	Log  *slog.Logger
}

// Load reads the file.
func (f File) Load() (*route.Update, error) { return f.changed(new([sha256.Size]byte)) }

// changed reads the file. The update is nil when the text has the sum that is told, which becomes the text's otherwise.
func (f File) changed(sum *[sha256.Size]byte) (*route.Update, error) {
	text, err := os.ReadFile(f.Path)
	if err != nil {
		return nil, err
	}
	now := sha256.Sum256(text)
	if now == *sum {
		return nil, nil
	}
	var u route.Update
	if err := yaml.UnmarshalStrict(text, &u); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	*sum, u.Complete = now, true
	return &u, nil
}

// Run implements Source. The file must be good at the start.
func (f File) Run(ctx context.Context, apply func(*route.Update) error) error {
	// The directory is watched, since editors and the kubelet replace files, and before the first read, so that no
	// change is missed.
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	defer watch.Close()
	const events = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(f.Path), events); err != nil {
		return fmt.Errorf("watch %s: %w", filepath.Dir(f.Path), err)
	}
	var sum [sha256.Size]byte // of the text that is served
	u, err := f.changed(&sum)
	if err != nil {
		return err
	}
	_ = apply(u) // told by apply's owner
	defer context.AfterFunc(ctx, func() { watch.Close() })()
	for buf := make([]byte, 16<<10); ; {
		if _, err := watch.Read(buf); err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
				return nil
			}
			return fmt.Errorf("inotify: %w", err)
		}
		switch u, err := f.changed(&sum); {
		case err != nil:
			f.Log.Error("the changed configuration is not used", "error", err)
		case u != nil:
			_ = apply(u)
		}
	}
}
