// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// table is this process's one Table.
var table = sync.OnceValue(NewTable)

func sh(script string) Spec {
	return Spec{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: os.Environ(), Attr: &syscall.SysProcAttr{Setsid: true}}
}

// eventually polls, since processes come and go when they like.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestExitCode(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137} {
		p, err := table().Start(sh(script))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.ExitCode(); got != want {
			t.Errorf("%s: got %d, want %d", script, got, want)
		}
		if err := table().Signal(p, syscall.SIGTERM); err != nil {
			t.Errorf("signal after the end: %v", err)
		}
	}
	if _, err := table().Start(Spec{Path: "/no/such/program", Args: []string{"x"}}); err == nil {
		t.Error("a program that isn't was started")
	}
}

func TestManyAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			p, err := table().Start(sh(fmt.Sprintf("exit %d", i)))
			if err != nil {
				t.Error(err)
				return
			}
			if got := p.ExitCode(); got != i {
				t.Errorf("got %d, want %d", got, i)
			}
		})
	}
	wg.Wait()
}

func TestService(t *testing.T) {
	dir := t.TempDir()
	s := table().Service(&Service{
		Name:  "test",
		Log:   NewLog(filepath.Join(dir, "log"), 1<<20),
		Grace: 10 * time.Second,
		Spec:  func() Spec { return sh(`trap "echo bye; exit 0" TERM; echo began; while :; do sleep 0.01; done`) },
	})
	if err := s.Kill(); err == nil {
		t.Error("a service that doesn't run was killed")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	began := func(times int) func() error {
		return func() error {
			if got := strings.Count(Tail(s.Log.Path, 1000), "began"); got < times {
				return fmt.Errorf("it began %d times, want %d", got, times)
			}
			return nil
		}
	}
	eventually(t, began(1))
	first := s.State()
	if first.Pid == 0 || !first.Wanted || first.Restarts != 0 {
		t.Errorf("state: %+v", first)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, began(2))
	if now := s.State(); now.Restarts != 1 || now.Pid == first.Pid || now.Error != "exit status 137" {
		t.Errorf("state after a kill: %+v", now)
	}
	s.Stop()
	s.Stop() // once more changes nothing
	if now := s.State(); now.Pid != 0 || now.Wanted {
		t.Errorf("state after stop: %+v", now)
	}
	eventually(t, func() error {
		if text := Tail(s.Log.Path, 1000); !strings.HasSuffix(text, "bye\n") {
			return fmt.Errorf("it was not asked to end: %q", text)
		}
		return nil
	})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, began(3))
	s.Stop()
}

func TestServiceThatIgnoresTerm(t *testing.T) {
	s := table().Service(&Service{
		Name:  "stubborn",
		Log:   NewLog(filepath.Join(t.TempDir(), "log"), 1<<20),
		Grace: 50 * time.Millisecond,
		Spec:  func() Spec { return sh(`trap "" TERM; echo began; while :; do sleep 0.01; done`) },
	})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if Tail(s.Log.Path, 100) == "" {
			return fmt.Errorf("it has not begun")
		}
		return nil
	})
	s.Stop()
	if s.State().Pid != 0 {
		t.Error("it still runs")
	}
}

func TestLogIsBounded(t *testing.T) {
	const limit = 10_000
	l := NewLog(filepath.Join(t.TempDir(), "log"), limit)
	w, err := l.Writer()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		if !strings.HasSuffix(Tail(l.Path, 100), "line 4999\n") {
			return fmt.Errorf("the end is missing: %q", Tail(l.Path, 100))
		}
		return nil
	})
	for _, path := range []string{l.Path, l.Path + ".1"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > limit+32<<10 { // one read of the pipe is never split
			t.Errorf("%s has %d bytes", path, info.Size())
		}
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if got := Tail(path, 10); got != "" {
		t.Errorf("of no file: %q", got)
	}
	if err := os.WriteFile(path, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int64]string{100: "one\ntwo\nthree\n", 12: "two\nthree\n", 8: "three\n"} {
		if got := Tail(path, n); got != want {
			t.Errorf("Tail(%d) = %q, want %q", n, got, want)
		}
	}
}
