// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExecSync(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("exec"))
	c := shell("sleep 3600")
	c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}}
	security(c).RunAsUser = id(1000)
	id := n.run(pod, c)
	run := func(timeout int64, script string) (*runtimeapi.ExecSyncResponse, error) {
		return n.ExecSync(n.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Timeout: timeout, Cmd: []string{"/bin/sh", "-c", script}})
	}
	t.Run("output, exit code, identity", func(t *testing.T) {
		r, err := run(0, "echo $A; id -u; tr '\\0' ' ' < /proc/1/cmdline | grep -c sleep; echo err >&2; cat; exit 4")
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.Stdout); !strings.HasPrefix(got, "1\n1000\n1\n") || string(r.Stderr) != "err\n" || r.ExitCode != 4 {
			t.Errorf("stdout %q, stderr %q, code %d", got, r.Stderr, r.ExitCode)
		}
	})
	t.Run("much output", func(t *testing.T) {
		r, err := run(0, "echo begin >&2; head -c 17000000 /dev/zero; echo end >&2")
		if err != nil {
			t.Fatal(err)
		}
		if n := len(r.Stdout); n < 15<<20 || n > 16<<20 || !strings.HasPrefix(string(r.Stderr), "begin\n") || r.ExitCode != 0 {
			t.Errorf("%d bytes, stderr %q, code %d", n, r.Stderr, r.ExitCode)
		}
	})
	t.Run("a child that keeps the streams doesn't keep the call", func(t *testing.T) {
		begin := time.Now()
		r, err := run(0, "sleep 3600 & echo started")
		if err != nil || string(r.Stdout) != "started\n" || time.Since(begin) > 20*time.Second {
			t.Errorf("%v, %v after %s", r, err, time.Since(begin))
		}
	})
	t.Run("a timeout kills the command", func(t *testing.T) {
		begin := time.Now()
		_, err := run(1, "exec sleep 1234")
		if status.Code(err) != codes.DeadlineExceeded || time.Since(begin) > 20*time.Second {
			t.Errorf("error %v after %s", err, time.Since(begin))
		}
		n.eventually("the command is gone", func() bool {
			r, err := run(0, "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep 1234'")
			return err == nil && strings.TrimSpace(string(r.Stdout)) == "0"
		})
	})
	t.Run("a program that isn't there", func(t *testing.T) {
		_, err := n.ExecSync(n.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"nowhere"}})
		if err == nil || !strings.Contains(err.Error(), "$PATH") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a container that has ended", func(t *testing.T) {
		if _, err := n.StopContainer(n.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := run(0, "true"); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("error %v", err)
		}
	})
}

// executors are the protocols by which kubelet passes streams on. Over WebSocket it uses the fourth version, which
// has no way to tell the end of the input.
var executors = map[string]func(string) (remotecommand.Executor, error){
	"WebSocket": func(u string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{Host: u}, "GET", u, "v4.channel.k8s.io")
	},
	"SPDY": func(u string) (remotecommand.Executor, error) {
		parsed, err := url.Parse(u)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{Host: u}, "POST", parsed)
	},
}

func TestExecStreams(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("streams"))
	id := n.run(pod, shell("sleep 3600"))
	for name, executor := range executors {
		start := func(t *testing.T, tty bool, script string) remotecommand.Executor {
			t.Helper()
			r, err := n.Exec(n.ctx(), &runtimeapi.ExecRequest{
				ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty,
			})
			if err != nil {
				t.Fatal(err)
			}
			e, err := executor(r.Url)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		t.Run(name+" without a terminal", func(t *testing.T) {
			var out, errOut bytes.Buffer
			err := start(t, false, "read x; echo $x; echo err >&2; exit 5").StreamWithContext(n.ctx(), remotecommand.StreamOptions{
				Stdin: strings.NewReader("input\n"), Stdout: &out, Stderr: &errOut,
			})
			var code utilexec.CodeExitError
			if !errors.As(err, &code) || code.Code != 5 {
				t.Errorf("error %v", err)
			}
			if out.String() != "input\n" || errOut.String() != "err\n" {
				t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
			}
		})
		t.Run(name+" with a terminal", func(t *testing.T) {
			in, keys := io.Pipe()
			var out syncBuffer
			sizes := make(sizeQueue, 2)
			sizes <- remotecommand.TerminalSize{Width: 99, Height: 33}
			done := make(chan error, 1)
			go func() {
				done <- start(t, true, "while test \"$(stty size)\" != '33 99'; do sleep 0.01; done; tty; read x; echo got $x; exit 6").
					StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
			}()
			n.eventually("the terminal is there and has the size", func() bool { return strings.Contains(out.String(), "/dev/pts/") })
			if _, err := io.WriteString(keys, "hello\r"); err != nil {
				t.Fatal(err)
			}
			err := <-done
			keys.Close()
			close(sizes)
			var code utilexec.CodeExitError
			if !errors.As(err, &code) || code.Code != 6 || !strings.Contains(out.String(), "got hello") {
				t.Errorf("error %v, output %q", err, out.String())
			}
		})
		t.Run(name+" whose client leaves", func(t *testing.T) {
			ctx, leave := context.WithCancel(n.ctx())
			var out syncBuffer
			done := make(chan error, 1)
			go func() {
				done <- start(t, false, "echo up; exec sleep 4321").StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &out, Stdin: blocked{ctx}})
			}()
			n.eventually("the command runs", func() bool { return strings.Contains(out.String(), "up") })
			leave()
			<-done
		})
	}
}

// blocked reads nothing until its context ends.
type blocked struct{ ctx context.Context }

func (b blocked) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, io.EOF
}

type sizeQueue chan remotecommand.TerminalSize

// Next returns the next size, nil at the end.
func (q sizeQueue) Next() *remotecommand.TerminalSize {
	if s, ok := <-q; ok {
		return &s
	}
	return nil
}

// syncBuffer is a buffer for one writer and one reader at a time.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("attach"))
	t.Run("two clients, one of which types", func(t *testing.T) {
		c := shell("while read x; do echo got $x; done; echo end; exit 3")
		c.Stdin, c.StdinOnce = true, true
		id := n.run(pod, c)
		attach := func(stdin bool) remotecommand.Executor {
			r, err := n.Attach(n.ctx(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: stdin, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			e, err := executors["SPDY"](r.Url)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		// One client that only looks on, one that types.
		var seen, out syncBuffer
		looking := make(chan error, 1)
		go func() {
			looking <- attach(false).StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdout: &seen, Stderr: &seen})
		}()
		in, keys := io.Pipe()
		typing := make(chan error, 1)
		go func() {
			typing <- attach(true).StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &out})
		}()
		i := 0
		n.eventually("both see the output", func() bool {
			i++
			if _, err := fmt.Fprintf(keys, "%d\n", i); err != nil {
				t.Fatal(err)
			}
			return strings.Contains(seen.String(), "got ") && strings.Contains(out.String(), "got ")
		})
		keys.Close() // with stdinOnce the container's input ends
		for _, done := range []chan error{typing, looking} {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if st := n.wait(id); st.ExitCode != 3 {
			t.Errorf("exit code %d", st.ExitCode)
		}
		if !strings.Contains(out.String(), "end") || !strings.Contains(strings.Join(n.logs(id), "\n"), "stdout F end") {
			t.Errorf("output %q, log %q", out.String(), n.logs(id))
		}
	})
	t.Run("to a terminal", func(t *testing.T) {
		c := shell("stty -echo; read x; echo got $x")
		c.Stdin, c.Tty = true, true
		id := n.run(pod, c)
		r, err := n.Attach(n.ctx(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		e, err := executors["WebSocket"](r.Url)
		if err != nil {
			t.Fatal(err)
		}
		in, keys := io.Pipe()
		var out syncBuffer
		done := make(chan error, 1)
		go func() {
			done <- e.StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true})
		}()
		if _, err := io.WriteString(keys, "hello\r"); err != nil {
			t.Fatal(err)
		}
		if st := n.wait(id); st.ExitCode != 0 {
			t.Errorf("exit code %d", st.ExitCode)
		}
		keys.Close()
		<-done
		if got := strings.Join(n.logs(id), "\n"); !strings.Contains(got, "got hello") {
			t.Errorf("log %q", got)
		}
	})
}

func TestPortForward(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("forward"))
	id := n.run(pod, ctr(probeImage, "serve", "127.0.0.1:7000"))
	six := n.run(pod, ctr(probeImage, "serve", "[::1]:7001"))
	n.eventually("both serve", func() bool { return len(n.logs(id)) > 0 && len(n.logs(six)) > 0 })
	r, err := n.PortForward(n.ctx(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{7000, 7001, 7002}})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: r.Url})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	fw, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", parsed),
		[]string{"0:7000", "0:7001", "0:7002"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports[:2] {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.Local))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "ping"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "ping" {
			t.Errorf("port %d: %q, %v", p.Remote, buf, err)
		}
		c.Close()
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[2].Local))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case err := <-done:
		if !errors.Is(err, portforward.ErrLostConnectionToPod) {
			t.Errorf("error %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the client was not told that nobody serves the port")
		close(stop)
	}
}
