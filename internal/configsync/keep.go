// SPDX-License-Identifier: Apache-2.0

package configsync

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/weft-net/weft/internal/route"
)

// keeper keeps a pod's tables in a file, so that the pod can start while no controller is there: the updates as they
// came, each a frame, the first of them complete. Private keys are in it, so the file must lie in memory (an emptyDir
// of medium Memory) and is for its owner only. When its length is twice that of the tables it is written anew, beside the
// updates that go on being appended: a confirmation never waits for what earlier updates were. add is for one goroutine.
type keeper struct {
	path    string
	running sync.WaitGroup // of what is written anew

	mu         sync.Mutex
	f          *os.File // nil after a failure: the next update is written in full
	size       int64
	floor      int64 // size of the complete update at the beginning
	rewriting  bool
	generation int   // of files: one that was begun before another took its place is of no use
	failed     error // of what was written anew, until add has tried once more
}

// keepSlack is how much may be appended, in bytes, however small the tables are.
const keepSlack = 1 << 20

// load reads what was kept, merged into one complete update; nil is nothing. What a process that was killed has left
// unfinished at the end is not missed: it was not confirmed.
func (k *keeper) load() (*update, error) {
	f, err := os.Open(k.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return k.read(f)
}

// read is load of an open file.
func (k *keeper) read(f io.Reader) (*update, error) {
	in := bufio.NewReaderSize(f, 64<<10)
	var out *update
	all := map[route.Ref]resource{}
	for {
		var u update
		if err := readFrame(in, &u, maxUpdate); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && out == nil {
				return nil, fmt.Errorf("%s: %w", k.path, err)
			}
			break
		}
		if u.Complete {
			clear(all)
		} else if out == nil {
			return nil, fmt.Errorf("%s does not begin with a complete configuration", k.path)
		}
		for _, ref := range u.Removed {
			delete(all, ref)
		}
		for _, r := range u.Resources {
			all[r.ref()] = r
		}
		out = &u
	}
	if out == nil {
		return nil, nil
	}
	out.Complete, out.Removed, out.Resources = true, nil, slices.Collect(maps.Values(all))
	if sum := digestOf(out.Resources); sum != out.Digest {
		return nil, fmt.Errorf("%s is damaged: its content has digest %x, not %x", k.path, sum, out.Digest)
	}
	return out, nil
}

func digestOf(all []resource) (d digest) {
	for _, r := range all {
		d.toggle(r.sum())
	}
	return d
}

// add keeps an update.
func (k *keeper) add(u *update) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	failed := k.failed
	if failed != nil { // now it is written anew with this update, or not at all
		k.failed = nil
		k.drop()
	}
	defer func() {
		if err != nil {
			k.drop()
			err = errors.Join(failed, err)
		}
	}()
	if !u.Complete && k.f != nil {
		before := k.size
		if err := writeFrame(counter{k}, u, maxUpdate); err != nil {
			return fmt.Errorf("keep the configuration: %w", err)
		}
		if k.size == before {
			return io.ErrShortWrite
		}
		if k.size >= 2*k.floor+keepSlack && !k.rewriting {
			return k.rewrite()
		}
		return nil
	}
	if !u.Complete {
		all, err := k.load()
		if err != nil {
			return err
		}
		if all == nil {
			return fmt.Errorf("%s is gone; it is written again with the next complete configuration", k.path)
		}
		whole := merged(all, u)
		if digestOf(whole.Resources) != u.Digest {
			return fmt.Errorf("%s lacks an update; it is written again with the next complete configuration", k.path)
		}
		u = whole
	}
	return k.replace(u)
}

// drop gives the file up: the next update is written in full. The caller holds the lock.
func (k *keeper) drop() {
	if k.f != nil {
		k.f.Close()
		k.f = nil
	}
}

// rewriting is a file that is written anew from another: of that, what was there when it began.
type rewriting struct {
	old        *os.File
	size       int64
	generation int
	f          *os.File
	floor      int64
}

// rewrite begins to write the file anew. The caller holds the lock.
func (k *keeper) rewrite() error {
	r, err := k.begin()
	if err != nil {
		return err
	}
	k.running.Go(func() {
		if err := k.finish(r, k.compact(r)); err != nil {
			k.mu.Lock()
			k.failed = err
			k.mu.Unlock()
		}
	})
	return nil
}

// begin notes what is to be written anew. The caller holds the lock.
func (k *keeper) begin() (*rewriting, error) {
	old, err := os.Open(k.path)
	if err != nil {
		return nil, fmt.Errorf("keep the configuration: %w", err)
	}
	k.rewriting = true
	return &rewriting{old: old, size: k.size, generation: k.generation}, nil
}

// compact writes one complete update of what there was. It takes long, and no lock.
func (k *keeper) compact(r *rewriting) error {
	u, err := k.read(io.NewSectionReader(r.old, 0, r.size))
	if err != nil {
		return err
	}
	if u == nil {
		return fmt.Errorf("%s is empty", k.path)
	}
	if r.f, err = os.CreateTemp(filepath.Dir(k.path), tempPrefix+"*"); err != nil { // mode 0600
		return fmt.Errorf("keep the configuration: %w", err)
	}
	if err := writeFrame(r.f, u, maxUpdate); err != nil {
		return fmt.Errorf("keep the configuration: %w", err)
	}
	r.floor, err = r.f.Seek(0, io.SeekCurrent)
	return err
}

// finish appends what came meanwhile and puts the new file in the old one's place, unless a complete update did so. err
// is compact's.
func (k *keeper) finish(r *rewriting, err error) error {
	defer r.old.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rewriting = false
	discard := err != nil || k.generation != r.generation || k.f == nil
	if !discard {
		if _, err = io.Copy(r.f, io.NewSectionReader(r.old, r.size, k.size-r.size)); err == nil {
			err = os.Rename(r.f.Name(), k.path)
		}
		discard = err != nil
	}
	if discard {
		if r.f != nil {
			r.f.Close()
			_ = os.Remove(r.f.Name()) // what failed before is what matters
		}
		return err
	}
	k.f.Close()
	k.f, k.size, k.floor = r.f, r.floor+k.size-r.size, r.floor
	k.generation++
	return nil
}

// close waits for what is under way. The file stays.
func (k *keeper) close() {
	k.running.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop()
}

// tempPrefix is what the names of files begin with that are to take the file's place.
const tempPrefix = ".tables-"

// tidy removes what an earlier process that was killed has left unfinished. It holds private keys and takes memory.
func (k *keeper) tidy() {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(k.path), tempPrefix+"*")) // the pattern is a good one
	for _, path := range left {
		_ = os.Remove(path) // or the next process
	}
}

// merged is the complete update that comes of a complete one and a later one.
func merged(all, u *update) *update {
	byRef := make(map[route.Ref]resource, len(all.Resources))
	for _, r := range all.Resources {
		byRef[r.ref()] = r
	}
	for _, ref := range u.Removed {
		delete(byRef, ref)
	}
	for _, r := range u.Resources {
		byRef[r.ref()] = r
	}
	out := &update{Epoch: u.Epoch, Revision: u.Revision, Digest: u.Digest, Complete: true}
	for _, r := range byRef {
		out.Resources = append(out.Resources, r)
	}
	return out
}

// replace begins the file anew, in one step. The caller holds the lock.
func (k *keeper) replace(u *update) error {
	f, err := os.CreateTemp(filepath.Dir(k.path), tempPrefix+"*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep the configuration: %w", err)
	}
	if k.f != nil {
		k.f.Close()
	}
	k.f, k.size = f, 0
	k.generation++
	if err = writeFrame(counter{k}, u, maxUpdate); err == nil {
		err = os.Rename(f.Name(), k.path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // what failed before is what matters
		return fmt.Errorf("keep the configuration: %w", err)
	}
	k.floor = k.size
	return nil
}

// counter writes to the keeper's file and counts.
type counter struct{ k *keeper }

// Write implements io.Writer.
func (c counter) Write(b []byte) (int, error) {
	n, err := c.k.f.Write(b)
	c.k.size += int64(n)
	return n, err
}
