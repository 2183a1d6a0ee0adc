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

	"github.com/weft-net/weft/internal/route"
)

// keeper keeps a pod's tables in a file, so that the pod can start while no controller is there: the updates as they
// came, each a frame, the first of them complete. Private keys are in it, so the file must lie in memory (an emptyDir
// of medium Memory) and is for its owner only. Its length stays within twice that of the tables.
type keeper struct {
	path  string
	f     *os.File // nil after a failure: the next update is written in full
	size  int64
	floor int64 // size of the complete update at the beginning
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
	defer func() {
		if err != nil && k.f != nil {
			k.f.Close()
			k.f = nil
		}
	}()
	if !u.Complete && k.f != nil && k.size < 2*k.floor+keepSlack {
		before := k.size
		if err := writeFrame(counter{k}, u, maxUpdate); err != nil {
			return fmt.Errorf("keep the configuration: %w", err)
		}
		if k.size == before {
			return io.ErrShortWrite
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

// replace begins the file anew, in one step.
func (k *keeper) replace(u *update) error {
	f, err := os.CreateTemp(filepath.Dir(k.path), ".tables-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep the configuration: %w", err)
	}
	if k.f != nil {
		k.f.Close()
	}
	k.f, k.size = f, 0
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
