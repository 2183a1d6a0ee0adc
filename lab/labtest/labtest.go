// SPDX-License-Identifier: Apache-2.0

// Package labtest starts a lab for a test and talks to it: kubectl in, packets out. A lab that a test started dies
// with the test's process, however that ends.
//
// It runs the programs that `make build` made (in $WEFT_BIN, or else in bin/ of the repository) as a person would, and
// imports the standard library only.
package labtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Lab is a lab that runs.
type Lab struct {
	Name string

	bin  string
	cred *syscall.Credential // nil: our own user
	cmd  *exec.Cmd
	done chan struct{}

	mu     sync.Mutex
	stderr bytes.Buffer
}

// Option changes how a lab is started.
type Option func(*Lab)

// As runs the lab, and every command on it, as an ordinary user. Only root can.
func As(uid, gid uint32) Option {
	return func(l *Lab) { l.cred = &syscall.Credential{Uid: uid, Gid: gid} }
}

// BinDir is where the lab's programs are, or an error that says how to make them.
func BinDir() (string, error) {
	dir := os.Getenv("WEFT_BIN")
	if dir == "" {
		_, file, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(file), "../../bin")
	}
	if _, err := os.Stat(filepath.Join(dir, "weft-lab")); err != nil {
		return "", fmt.Errorf("no lab to test with: %w: run `make build`, or set WEFT_BIN", err)
	}
	return filepath.Abs(dir)
}

// Start starts a lab with the arguments of `weft lab up` and waits until it is ready.
func Start(name string, args []string, options ...Option) (*Lab, error) {
	bin, err := BinDir()
	if err != nil {
		return nil, err
	}
	l := &Lab{Name: name, bin: bin, done: make(chan struct{})}
	for _, o := range options {
		o(l)
	}
	l.cmd = l.command(context.Background(), append([]string{"up"}, args...)...)
	l.cmd.Stderr = lockedWriter{&l.mu, &l.stderr}
	l.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that starts the process, so that thread waits for it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := l.cmd.Start()
		started <- err
		if err == nil {
			l.cmd.Wait()
			close(l.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return l, l.waitReady(3 * time.Minute)
}

func (l *Lab) waitReady(limit time.Duration) error {
	deadline := time.After(limit)
	for !strings.Contains(l.Stderr(), fmt.Sprintf("lab %q is ready", l.Name)) {
		select {
		case <-l.done:
			return fmt.Errorf("the lab ended while it started: %s", l.Stderr())
		case <-deadline:
			l.Stop()
			return fmt.Errorf("the lab is not ready after %v: %s", limit, l.Stderr())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Stderr is what `weft lab up` said so far.
func (l *Lab) Stderr() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stderr.String()
}

// Pid is the process number of the lab's guardian.
func (l *Lab) Pid() int { return l.cmd.Process.Pid }

// Stop ends the lab as Ctrl-C does, and waits until it has ended.
func (l *Lab) Stop() {
	l.cmd.Process.Signal(os.Interrupt)
	<-l.done
}

// Ended is closed when the lab has ended.
func (l *Lab) Ended() <-chan struct{} { return l.done }

// command is a command of `weft lab` on this lab.
func (l *Lab) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, "weft-lab"), append([]string{"--name", l.Name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.cred}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME=/nonexistent") // no kuberc of whoever runs the tests
	return cmd
}

// Run runs a command of `weft lab` and gives its output; the error holds what it said.
func (l *Lab) Run(ctx context.Context, args ...string) (string, error) {
	return l.RunWith(ctx, "", args...)
}

// RunWith is Run with text on standard input.
func (l *Lab) RunWith(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := l.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("weft lab %s: %w: %s%s", strings.Join(args, " "), err, said.String(), out.String())
	}
	return out.String(), nil
}

// Kubectl runs kubectl, and fails the test where kubectl fails.
func (l *Lab) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := l.Run(t.Context(), append([]string{"kubectl"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Apply applies manifests, to the namespace where they name none.
func (l *Lab) Apply(t testing.TB, namespace, manifests string) {
	t.Helper()
	if _, err := l.RunWith(t.Context(), manifests, "kubectl", "apply", "-n", namespace, "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// Namespace makes a namespace of the test's own, and deletes it after the test.
func (l *Lab) Namespace(t testing.TB) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	name = strings.Trim(fmt.Sprintf("%.40s", name), "-")
	l.Kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		// In the background: the lab's end is quicker, and no later test uses the name.
		if _, err := l.Run(context.Background(), "kubectl", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Log(err)
		}
	})
	// Pods need it. After an outage of the API server, controllers may take a minute to look again: their pauses grow to that.
	Eventually(t, 2*time.Minute, func() error {
		_, err := l.Run(t.Context(), "kubectl", "get", "serviceaccount", "default", "-n", name)
		return err
	})
	return name
}

// Exec runs a command on a host of the lab (outside, control or a node), and gives its output.
func (l *Lab) Exec(ctx context.Context, host string, command ...string) (string, error) {
	return l.Run(ctx, append([]string{"exec", "--in", host, "--"}, command...)...)
}

// Echo is where a host of the lab has the echo program. A node sees little of this machine's files, and has its own.
func (l *Lab) Echo(host string) string {
	if host == "outside" || host == "control" {
		return filepath.Join(l.bin, "echo")
	}
	return "/run/weft-lab/bin/echo"
}

// PodExec runs a command in a pod. The pod may be written as TYPE/NAME.
func (l *Lab) PodExec(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	return l.Run(ctx, append([]string{"kubectl", "exec", "-n", namespace, pod, "--"}, command...)...)
}

// WaitFor waits with `kubectl wait`: for=condition=Ready, for=delete, for=jsonpath=...
func (l *Lab) WaitFor(t testing.TB, namespace, condition string, objects ...string) {
	t.Helper()
	l.Kubectl(t, append([]string{"wait", "-n", namespace, "--for", condition, "--timeout=60s"}, objects...)...)
}

// Established waits until the API server serves a CustomResourceDefinition's kind. To ask `kubectl wait` once is not
// enough: it fails at once, with "accessor error", while the definition's conditions are null, as they are at first.
func (l *Lab) Established(t testing.TB, crd string) {
	t.Helper()
	Eventually(t, 60*time.Second, func() error {
		_, err := l.Run(t.Context(), "kubectl", "wait", "--for=condition=Established", "--timeout=10s", "crd/"+crd)
		return err
	})
}

// Rollout waits until a workload has rolled out.
func (l *Lab) Rollout(t testing.TB, namespace, workload string) {
	t.Helper()
	l.Kubectl(t, "rollout", "status", "-n", namespace, workload, "--timeout=90s")
}

// Get reads one value by its JSONPath.
func (l *Lab) Get(t testing.TB, namespace, object, jsonpath string) string {
	t.Helper()
	return l.Kubectl(t, "get", "-n", namespace, object, "-o", "jsonpath="+jsonpath)
}

// Eventually calls f until it gives no error, and fails the test when it still does after the limit.
func Eventually(t testing.TB, limit time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Traffic is requests that run beside a test; see Background.
type Traffic struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error
}

// Background runs a command of `weft lab` (an endless client, say) beside the test until Stop.
func (l *Lab) Background(t testing.TB, args ...string) *Traffic {
	t.Helper()
	tr := &Traffic{t: t, cmd: l.command(context.Background(), args...), done: make(chan error, 1)}
	tr.cmd.Stdout, tr.cmd.Stderr = &tr.out, &tr.out
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { tr.done <- tr.cmd.Wait() }()
	t.Cleanup(func() { tr.cmd.Process.Kill() })
	return tr
}

// Stop sends the command SIGINT, and gives what it printed and how it ended.
func (tr *Traffic) Stop() (string, error) {
	tr.t.Helper()
	tr.cmd.Process.Signal(os.Interrupt)
	return tr.Wait()
}

// Wait waits for the command's end, which the test has brought about, and gives what it printed and how it ended.
func (tr *Traffic) Wait() (string, error) {
	tr.t.Helper()
	select {
	case err := <-tr.done:
		return tr.out.String(), err
	case <-time.After(15 * time.Second):
		tr.cmd.Process.Kill()
		<-tr.done
		return tr.out.String(), errors.New("it did not end within 15 s")
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (w lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(b)
}
