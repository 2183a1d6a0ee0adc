// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal joins our terminal to one that a command in the lab owns. The pair is made on this side, so the lab only
// hands its end to the command.
type terminal struct {
	ours, child *os.File
	state       *term.State
	copied      chan struct{} // closed when the command's output has ended
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// openTerminal makes the pair.
func openTerminal() (*terminal, error) {
	ours, child, err := pty.Open()
	if err != nil {
		return nil, err
	}
	return &terminal{ours: ours, child: child, copied: make(chan struct{})}, nil
}

// start joins the terminals, once the command has its end.
func (t *terminal) start() {
	t.child.Close() // so that the output ends with the command
	if state, err := term.MakeRaw(int(os.Stdin.Fd())); err == nil {
		t.state = state
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	resized <- syscall.SIGWINCH
	go func() {
		for range resized {
			pty.InheritSize(os.Stdin, t.ours)
		}
	}()
	go io.Copy(t.ours, os.Stdin)
	go func() {
		defer close(t.copied)
		io.Copy(os.Stdout, t.ours) // ends with EIO when nobody has the other end open
	}()
}

// drain waits for the last output, unless something that the command left behind keeps the terminal open.
func (t *terminal) drain() {
	select {
	case <-t.copied:
	case <-time.After(200 * time.Millisecond):
	}
}

// restore gives our terminal its own manners back.
func (t *terminal) restore() {
	if t.state != nil {
		term.Restore(int(os.Stdin.Fd()), t.state)
	}
}
