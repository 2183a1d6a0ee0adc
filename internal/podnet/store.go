// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/model"
)

// record is what the node remembers of one attachment, a file named after its link. It is immutable: change means
// a new record in its place.
type record struct {
	Boot        string       `json:"boot"` // the kernel's boot id
	Link        string       `json:"link"`
	ContainerID string       `json:"containerID"` // "" where only the kernel knew of the link
	IfName      string       `json:"ifName"`
	NetNS       string       `json:"netns"`
	Namespace   string       `json:"namespace"`
	Name        string       `json:"name"`
	UID         string       `json:"uid"`
	IPs         []netip.Addr `json:"ips"`
	HostPorts   []hostPort   `json:"hostPorts,omitempty"`
	MTU         int          `json:"mtu"`
	Created     time.Time    `json:"created"`

	// Wired is set when everything was in place and the pod's policy in force, before ADD answered.
	Wired bool `json:"wired"`

	// Remaking is set while the lost link of a wired pod is made anew, so that half a link is not taken for whole.
	Remaking bool `json:"remaking,omitempty"`
}

func (r *record) localPod(linkIndex int) model.LocalPod {
	return model.LocalPod{
		Name: model.Name{Namespace: r.Namespace, Name: r.Name}, UID: r.UID,
		Sandbox: r.ContainerID, Link: r.Link, LinkIndex: linkIndex, IPs: r.IPs,
	}
}

// who names the pod for messages.
func (r *record) who() string {
	if r.Name != "" {
		return "pod " + r.Namespace + "/" + r.Name
	}
	if r.ContainerID != "" {
		return "container " + r.ContainerID
	}
	return "link " + r.Link
}

// rangeState is the part of the pool that outlives the agent.
type rangeState struct {
	Cursor map[netip.Prefix]netip.Addr `json:"cursor"`
	Freed  map[netip.Addr]time.Time    `json:"freed"`
}

// store is the folder of records. Every write is a rename, so a reader after kill -9 finds the old or the new; there
// is no fsync, since nothing in it means anything after a boot.
type store struct {
	dir  string
	boot string
	lock *os.File
}

// openStore takes the folder for this process alone. A second agent waits here until the first is gone, which is
// how an upgrade hands over.
func openStore(dir string) (*store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("boot id: %w", err)
	}
	s := &store{dir: dir, boot: strings.TrimSpace(string(boot))}
	if err := os.MkdirAll(filepath.Join(dir, "pods"), 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	for {
		if err = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX); err == nil {
			return s, nil
		}
		if err != syscall.EINTR {
			s.lock.Close()
			return nil, fmt.Errorf("lock the state folder %s: %w", dir, err)
		}
	}
}

func (s *store) close() error { return s.lock.Close() }

func (s *store) path(link string) string { return filepath.Join(s.dir, "pods", link+".json") }

// load reads all records of this boot and removes what is of another or unreadable, which it reports in errs.
func (s *store) load() (recs []*record, errs []error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "pods"))
	if err != nil {
		return nil, []error{err}
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, "pods", e.Name())
		link, isRecord := strings.CutSuffix(e.Name(), ".json")
		r := new(record)
		if isRecord {
			b, err := os.ReadFile(path)
			if err == nil {
				err = json.Unmarshal(b, r)
			}
			if err == nil && r.Link != link {
				err = fmt.Errorf("it names link %q", r.Link)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("record %s: %w", path, err))
			} else if r.Boot == s.boot {
				recs = append(recs, r)
				continue
			}
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
		}
	}
	return recs, errs
}

func (s *store) put(r *record) error {
	r.Boot = s.boot
	return writeJSON(s.path(r.Link), r)
}

func (s *store) remove(link string) error {
	if err := os.Remove(s.path(link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of link %s: %w", link, err)
	}
	return nil
}

func (s *store) loadRanges() rangeState {
	st := rangeState{Cursor: make(map[netip.Prefix]netip.Addr), Freed: make(map[netip.Addr]time.Time)}
	b, err := os.ReadFile(filepath.Join(s.dir, "ranges.json"))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil || st.Cursor == nil || st.Freed == nil {
		// What is lost is only the order in which addresses are handed out.
		return rangeState{Cursor: make(map[netip.Prefix]netip.Addr), Freed: make(map[netip.Addr]time.Time)}
	}
	return st
}

func (s *store) putRanges(p *pool) error {
	return writeJSON(filepath.Join(s.dir, "ranges.json"), rangeState{Cursor: p.cursor, Freed: p.freed})
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, b, 0o600)
}

// writeFile replaces a file in one step.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	return copyFile(path, bytes.NewReader(b), mode)
}

// copyFile is writeFile of what is read, however much that is.
func copyFile(path string, from io.Reader, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
