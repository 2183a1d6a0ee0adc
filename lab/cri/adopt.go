// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/wire"
)

// adopt takes over what an earlier server with the same state directory left: sandboxes that are complete, with
// their containers, running or not. What it left half-way is undone.
func (s *server) adopt(ctx context.Context) error {
	if err := shareNetNSDir(s.cfg.NetNSDir); err != nil {
		return err
	}
	if err := s.adoptContainers(); err != nil {
		return err
	}
	dirs, err := os.ReadDir(s.cfg.sandboxesDir())
	if err != nil {
		return fmt.Errorf("cri: %w", err)
	}
	for _, d := range dirs {
		if err := s.adoptSandbox(ctx, filepath.Join(s.cfg.sandboxesDir(), d.Name())); err != nil {
			return fmt.Errorf("cri: take over sandbox %s: %w", d.Name(), err)
		}
	}
	s.removeOrphans()
	return s.collectNetworks(ctx)
}

func (s *server) adoptContainers() error {
	dirs, err := os.ReadDir(s.cfg.containersDir())
	if err != nil {
		return fmt.Errorf("cri: %w", err)
	}
	for _, d := range dirs {
		dir := filepath.Join(s.cfg.containersDir(), d.Name())
		c := newContainer(dir, containerRecord{})
		if err := wire.ReadFile(filepath.Join(dir, containerFile), &c.rec); err != nil {
			// The server was killed in CreateContainer or RemoveContainer: kubelet knows of no such container, or
			// not any more.
			s.log.Warn("remove container that was left half-way", "container", d.Name(), "error", err)
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("cri: %w", err)
			}
			continue
		}
		s.containers[c.rec.ID] = c
	}
	return nil
}

func (s *server) adoptSandbox(ctx context.Context, dir string) error {
	sb := &sandbox{dir: dir}
	err := wire.ReadFile(filepath.Join(dir, sandboxFile), &sb.rec)
	switch {
	case errors.Is(err, os.ErrNotExist): // killed before it had done anything else, or while removing
		return os.RemoveAll(dir)
	case err != nil:
		return err
	case !sb.rec.Complete:
		s.log.Info("undo sandbox that was left half-way", "sandbox", sb.rec.ID)
		if err := s.takeDown(ctx, sb); err != nil {
			s.log.Error("undo sandbox that was left half-way", "sandbox", sb.rec.ID, "error", err)
			return nil // its record stays for the next try
		}
		return os.RemoveAll(dir)
	}
	s.sandboxes[sb.rec.ID] = sb
	if !sb.rec.Stopped {
		c, first, err := watchShim(dir)
		if err == nil {
			sb.alive = true
			// In this order: what ended before is on disk only if the shim has forgotten it, which it never does.
			for _, st := range first.Containers {
				s.observe(st)
			}
			go s.follow(sb, c, first)
			return nil
		}
		s.log.Warn("a pod's shim is gone", "sandbox", sb.rec.ID, "pod", podName(sb), "error", err)
	}
	s.settle(sb)
	return nil
}

// removeOrphans removes containers whose sandbox is not there: the server was killed in RemovePodSandbox.
func (s *server) removeOrphans() {
	for id, c := range s.containers {
		if s.sandboxes[c.rec.SandboxID] == nil {
			if err := os.RemoveAll(c.dir); err != nil {
				s.log.Error("remove orphaned container", "container", id, "error", err)
			}
			delete(s.containers, id)
		}
	}
}

// collectNetworks lets the CNI plugins free what belongs to no pod, and lets go of namespaces that no pod has.
func (s *server) collectNetworks(ctx context.Context) error {
	var valid []string
	pinned := map[string]bool{}
	for id, sb := range s.sandboxes {
		if sb.rec.NetNS == "" || sb.rec.Stopped {
			continue
		}
		valid = append(valid, id)
		pinned[sb.rec.NetNS] = true
	}
	entries, err := os.ReadDir(s.cfg.NetNSDir)
	if err != nil {
		return fmt.Errorf("cri: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.cfg.NetNSDir, e.Name())
		if ours, _ := filepath.Match("cni-*", e.Name()); ours && !pinned[path] && !s.halfWay(path) {
			if err := removeNetNS(path); err != nil && !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
	}
	// A plugin that fails here must not keep the node from starting.
	if err := s.net.collect(ctx, valid); err != nil {
		s.log.Warn("CNI garbage collection", "error", err)
	}
	return nil
}

// halfWay reports whether path belongs to a sandbox that could not be undone yet.
func (s *server) halfWay(path string) bool {
	dirs, _ := filepath.Glob(filepath.Join(s.cfg.sandboxesDir(), "*", sandboxFile))
	for _, f := range dirs {
		var rec sandboxRecord
		if wire.ReadFile(f, &rec) == nil && rec.NetNS == path {
			return true
		}
	}
	return false
}
