// SPDX-License-Identifier: Apache-2.0

// Package supervisor is the lab itself: PID 1 of its process namespace, owner of all its other namespaces, of the
// file system that holds all its state, and of every process in it. It stays in the host's network namespace, which
// it only listens in, on loopback, for the host's way into the lab.
//
// It imports the lab's other rooms, and no Kubernetes: it runs on every lab all the time, so it stays small.
package supervisor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/weft-net/weft/lab/topology"
	"golang.org/x/sys/unix"
)

// Config is what a lab is to be.
type Config struct {
	Name     string
	UID, GID int // the host's user that the lab belongs to
	Nodes    int
	Families topology.Families
	Segments int

	BinDir string // where weft-lab and the programs beside it are

	NoWeft bool
	Chart  string   // directory of weft's Helm chart
	Values []string // value files
	Sets   []string // key=value

	Rootless bool // in a user namespace
}

// Event is what the supervisor tells the guardian while a lab starts and ends.
type Event struct {
	Progress string `json:",omitempty"` // a step that began
	Ready    *Ready `json:",omitempty"` // the lab is as asked for
	Failed   string `json:",omitempty"` // the lab can't be: why, and what to do
	Down     bool   `json:",omitempty"` // the lab was asked to end
}

// Ready says where the lab is.
type Ready struct {
	Name   string
	Server string // the API server's URL on the host
}

// Descriptors that the supervisor is started with.
const (
	linkFD   = 3 // events to the guardian, connections from it
	bootFD   = 4 // the Config, in JSON
	mappedFD = 5 // yields a byte when the user namespace has its mapping; only with --unmapped
)

// BootFile is an unnamed file with v in JSON, to hand to a process at its start.
func BootFile(v any) (*os.File, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("boot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an unnamed file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "boot")
	if _, err := f.Write(raw); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
