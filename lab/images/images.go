// SPDX-License-Identifier: Apache-2.0

// Package images is the lab's image store: it turns an image reference into directories that a container's
// copy-on-write root lies over, and into what the image says about running it.
//
// One store serves all nodes of a lab; it is a directory that their CRI servers and the supervisor share, so what is
// loaded later is found by all. A reference resolves, in this order, to what was loaded by hand, to what the lab
// ships, and to what was pulled from a registry. Content is unpacked once and never changes.
//
// It imports go-containerregistry and lab/cri/inroot, nothing of Kubernetes.
package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Origin says how an image came into the store. A lower one wins where several carry the same reference.
type Origin int

const (
	Loaded  Origin = iota // registered by the lab's user
	Shipped               // registered by the lab itself
	Pulled                // from a registry
)

// Config is what an image says about running it.
type Config struct {
	Entrypoint, Cmd []string `json:",omitempty"`
	Env             []string `json:",omitempty"` // NAME=value
	User            string   `json:",omitempty"` // name or uid, optionally ":" group; "" is root
	WorkingDir      string   `json:",omitempty"`
	StopSignal      string   `json:",omitempty"` // as "SIGQUIT" or "3"; "" is SIGTERM
	ExposedPorts    []string `json:",omitempty"` // as "8080/tcp"
}

// Image is an unpacked image.
type Image struct {
	ID      string   // "sha256:" and the digest of its config
	Digest  string   `json:",omitempty"` // of its manifest, when it came from a registry or an OCI layout
	Lowers  []string // directories, top first
	Size    uint64   // bytes of its files
	Config  Config
	Created time.Time
	// HostPrograms is set for the tools image, which also shows the directories that HostDirs lists.
	HostPrograms bool `json:",omitempty"`
}

// Entry is a reference that the store knows.
type Entry struct {
	Pattern string // a normalised reference; ":*" at its end stands for any tag
	Origin  Origin
	Image   Image
}

// Store is a directory of images. Its methods may be called by several processes at once.
type Store struct{ dir string }

// Open opens the store at dir, creating it if need be.
func Open(dir string) (*Store, error) {
	for _, sub := range []string{"refs", "images", "content"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	return &Store{dir: dir}, nil
}

// Dir is the directory that holds the store.
func (s *Store) Dir() string { return s.dir }

// record is a file of refs/.
type record struct {
	Pattern string
	Origin  Origin
	ID      string
}

// add unpacks an image's content with fill, unless the store has it, and records that pattern means the image. Its
// Lowers are set to the content; Size too, if it is zero.
func (s *Store) add(pattern string, origin Origin, img *Image, fill func(dir string) error) error {
	for {
		dir, err := s.content(img.ID, fill)
		if err != nil {
			return err
		}
		img.Lowers = []string{dir}
		if img.Size == 0 {
			img.Size = treeSize(dir)
		}
		done, err := s.register(pattern, origin, *img)
		if done || err != nil {
			return err
		}
		// Another process cleared the content away in between, since nothing referred to it yet.
	}
}

// register records that pattern means img, and clears away what thereby lost its last reference. It reports false if
// the image's content is not there.
func (s *Store) register(pattern string, origin Origin, img Image) (done bool, err error) {
	return done, s.locked(func() error {
		for _, dir := range img.Lowers {
			if _, err := os.Stat(dir); err != nil {
				return nil
			}
		}
		if err := s.write(filepath.Join(s.dir, "images", hexID(img.ID)+".json"), img); err != nil {
			return err
		}
		if err := s.write(s.refFile(pattern, origin), record{pattern, origin, img.ID}); err != nil {
			return err
		}
		done = true
		return s.sweep()
	})
}

// locked runs f while no other process adds or removes references.
func (s *Store) locked(f func() error) error {
	l, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer l.Close()
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX)
		if err == nil {
			return f()
		}
		if err != unix.EINTR {
			return fmt.Errorf("image store: lock: %w", err)
		}
	}
}

// sweep removes images that no reference means and no container uses: a container's shim holds a shared flock on the
// image's directories. What is in use now is removed by a later sweep. The store is locked by the caller.
func (s *Store) sweep() error {
	all, err := s.records()
	if err != nil {
		return err
	}
	meant := map[string]bool{}
	for _, r := range all {
		meant[hexID(r.ID)] = true
	}
	files, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	for _, f := range files {
		id := strings.TrimSuffix(f.Name(), ".json")
		if meant[id] {
			continue
		}
		if gone, err := removeUnused(filepath.Join(s.dir, "content", id)); err != nil {
			return fmt.Errorf("image store: %w", err)
		} else if !gone {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, "images", f.Name())); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
	}
	return nil
}

// removeUnused removes a directory unless somebody holds a lock on it.
func removeUnused(dir string) (gone bool, err error) {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil // an image whose files lie elsewhere
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return false, nil
	} else if err != nil {
		return false, err
	}
	// First out of sight, so that nobody finds it half removed.
	trash := dir + ".removed"
	if err := os.Rename(dir, trash); err != nil {
		return false, err
	}
	return true, os.RemoveAll(trash)
}

// refFile is where a reference of one origin is recorded.
func (s *Store) refFile(pattern string, origin Origin) string {
	key := sha256.Sum256([]byte(fmt.Sprintf("%d %s", origin, pattern)))
	return filepath.Join(s.dir, "refs", hex.EncodeToString(key[:])+".json")
}

// write replaces a file in one step: a reader in another process sees the old or the new one.
func (s *Store) write(name string, v any) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, "new-*")
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(body)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return os.Rename(f.Name(), name)
}

func (s *Store) records() ([]record, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, "refs"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var all []record
	for _, f := range files {
		var r record
		body, err := os.ReadFile(filepath.Join(s.dir, "refs", f.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err == nil {
			err = json.Unmarshal(body, &r)
		}
		if err != nil {
			return nil, fmt.Errorf("image store: %s: %w", f.Name(), err)
		}
		all = append(all, r)
	}
	// Exact references before patterns within an origin.
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.Origin != b.Origin {
			return a.Origin < b.Origin
		}
		if wa, wb := isPattern(a.Pattern), isPattern(b.Pattern); wa != wb {
			return wb
		}
		return a.Pattern < b.Pattern
	})
	return all, nil
}

func (s *Store) image(id string) (Image, error) {
	var img Image
	body, err := os.ReadFile(filepath.Join(s.dir, "images", hexID(id)+".json"))
	if err == nil {
		err = json.Unmarshal(body, &img)
	}
	if err != nil {
		return img, fmt.Errorf("image store: image %s: %w", id, err)
	}
	return img, nil
}

// Find returns what ref means without asking a registry. ref is a reference, an image ID or a prefix of one. ok is
// false when the store has no such image; an error tells of a malformed reference or an unreadable store.
func (s *Store) Find(ref string) (e Entry, ok bool, err error) {
	all, err := s.records()
	if err != nil {
		return Entry{}, false, err
	}
	var match func(r record, img Image) bool
	if id, isID := imageID(ref); isID {
		match = func(r record, _ Image) bool { return strings.HasPrefix(hexID(r.ID), id) }
	} else {
		want, err := Parse(ref)
		if err != nil {
			return Entry{}, false, err
		}
		match = func(r record, img Image) bool {
			return want.matchesName(r.Pattern) && (want.Digest == "" || want.Digest == img.Digest || want.Digest == img.ID)
		}
	}
	for _, r := range all {
		img, err := s.image(r.ID)
		if errors.Is(err, os.ErrNotExist) {
			return s.Find(ref) // replaced meanwhile
		}
		if err != nil {
			return Entry{}, false, err
		}
		if match(r, img) {
			return Entry{Pattern: r.Pattern, Origin: r.Origin, Image: img}, true, nil
		}
	}
	return Entry{}, false, nil
}

// List returns all references with their images, in the order in which Find tries them.
func (s *Store) List() ([]Entry, error) {
	all, err := s.records()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(all))
	for _, r := range all {
		img, err := s.image(r.ID)
		if errors.Is(err, os.ErrNotExist) {
			continue // replaced meanwhile
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, Entry{Pattern: r.Pattern, Origin: r.Origin, Image: img})
	}
	return entries, nil
}

// Unload forgets what was loaded under ref, so that it means again what the lab ships or a registry has. Running
// containers keep their files.
func (s *Store) Unload(ref string) error {
	want, err := ParsePattern(ref)
	if err != nil {
		return err
	}
	return s.locked(func() error {
		err := os.Remove(s.refFile(want, Loaded))
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("image %s has not been loaded", want)
		}
		if err != nil {
			return err
		}
		return s.sweep()
	})
}

// content calls fill with a fresh directory and makes that the content of image id, unless it is there already. Of
// two processes that do so at once, the second finds the work done and throws its own away.
func (s *Store) content(id string, fill func(dir string) error) (string, error) {
	final := filepath.Join(s.dir, "content", hexID(id))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tmp, err := os.MkdirTemp(s.dir, "unpack-*")
	if err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := fill(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, final); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return "", fmt.Errorf("image store: %w", err)
	}
	return final, nil
}

func hexID(id string) string { return strings.TrimPrefix(id, "sha256:") }

// imageID reports whether ref is the ID of an image, or 12 or more digits of one.
func imageID(ref string) (string, bool) {
	digits, prefixed := strings.CutPrefix(ref, "sha256:")
	if !prefixed && len(digits) < 12 || len(digits) > 64 || digits == "" {
		return "", false
	}
	for _, c := range digits {
		if !strings.ContainsRune("0123456789abcdef", c) {
			return "", false
		}
	}
	return digits, true
}
