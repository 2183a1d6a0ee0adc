// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/weft-net/weft/lab/control"
)

// LogsArgs are the arguments of OpLogs.
type LogsArgs struct {
	Component string
	Node      string // "": the control plane
	Follow    bool
}

// logs sends a component's log from its start, the part before its last rotation included.
func (l *lab) logs(reply *control.Reply, args LogsArgs) error {
	path, err := l.logPath(args)
	if err != nil {
		return err
	}
	if err := sendFile(reply, path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !args.Follow {
		return sendFile(reply, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	gone := reply.Signals()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := send(reply, f); err != nil {
			return err
		}
		// When the log was rotated, what we hold open is complete: go on with its successor.
		if next, err := os.Open(path); err == nil {
			if sameFile(f, next) {
				next.Close()
			} else {
				if err := send(reply, f); err != nil {
					return err
				}
				f.Close()
				f = next
				continue
			}
		}
		select {
		case _, ok := <-gone:
			if !ok {
				return errors.New("the client is gone")
			}
		case <-tick.C:
		}
	}
}

func (l *lab) logPath(args LogsArgs) (string, error) {
	if args.Node != "" {
		n, err := l.lockedNode(args.Node)
		if err != nil {
			return "", err
		}
		if args.Component == "init" {
			return l.files.log(n.Name), nil
		}
		path := l.nodeLog(n, args.Component)
		if _, err := os.Stat(path); err != nil {
			return "", errors.New("no log of " + args.Component + " on " + args.Node + ": want kubelet, cri or init")
		}
		return path, nil
	}
	s, err := l.service(args.Component)
	if err != nil {
		return "", err
	}
	return s.Log.Path, nil
}

func sendFile(reply *control.Reply, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return send(reply, f)
}

// send sends a file from where it was last read to its end.
func send(reply *control.Reply, f *os.File) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := reply.Data(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func sameFile(a, b *os.File) bool {
	ai, err1 := a.Stat()
	bi, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(ai, bi)
}
