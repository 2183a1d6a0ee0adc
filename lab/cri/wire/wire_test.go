// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pair is a shim's and a server's end of a connection, made through a directory too deep for a socket's own path.
func pair(t *testing.T) (a, b Conn) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before the shim is there: %v", err)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = Dial(dir); err != nil {
		t.Fatal(err)
	}
	u, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Dial(dir); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the shim has gone: %v", err)
	}
	b = Conn{u}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessagesWithFiles(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := []Request{{Op: OpList}, {Op: OpExec, Container: strings.Repeat("x", 200_000)}, {Op: OpSignal, Signal: 15}}
	go func() {
		_ = a.Send(sent[0])
		_ = a.Send(sent[1], w, w)
		_ = a.Send(sent[2])
		w.Close()
		a.Close()
	}()
	for i, want := range sent {
		var got Request
		files, err := b.Receive(&got)
		if err != nil {
			t.Fatal(err)
		}
		if got.Op != want.Op || got.Container != want.Container || got.Signal != want.Signal {
			t.Errorf("message %d: %.80v", i, got)
		}
		if n := len(files); (i == 1) != (n == 2) {
			t.Errorf("message %d came with %d files", i, n)
		}
		for _, f := range files {
			if _, err := f.WriteString("through"); err != nil {
				t.Error(err)
			}
			f.Close()
		}
	}
	if _, err := b.Receive(&Request{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if body, err := io.ReadAll(r); err != nil || string(body) != "throughthrough" {
		t.Errorf("%q, %v", body, err)
	}
}

func TestWhatIsTooLarge(t *testing.T) {
	a, b := pair(t)
	if err := a.Send(Request{Container: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("sent")
	}
	if _, err := a.U.Write([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(&Request{}); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("error %v", err)
	}
}

func TestStream(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Fd() // makes it blocking, as what is inherited has to be
	s, err := Stream(w)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write that nobody reads: %v", err)
	}
}

func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), StatusName)
	var got Status
	if err := ReadFile(name, &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	want := Status{ID: "x", State: Exited, ExitCode: 3}
	if err := WriteFile(name, want); err != nil {
		t.Fatal(err)
	}
	if err := ReadFile(name, &got); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
}
