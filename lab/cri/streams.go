// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/weft-net/weft/lab/cri/wire"
)

// serveStreams begins serving exec, attach and port-forward streams. kubelet fetches the URLs that Exec, Attach and
// PortForward return and passes the streams on to the API server.
func (s *server) serveStreams() (io.Closer, error) {
	l, err := net.Listen("tcp", s.cfg.StreamAddress)
	if err != nil {
		return nil, fmt.Errorf("cri: streams: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: config.Addr}
	if s.stream, err = streaming.NewServer(config, streamRuntime{s}); err != nil {
		l.Close()
		return nil, fmt.Errorf("cri: streams: %w", err)
	}
	h := &http.Server{Handler: s.stream, ReadHeaderTimeout: 30 * time.Second}
	go func() {
		if err := h.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("streams", "error", err)
		}
	}()
	return h, nil
}

// Exec returns a URL at which the command's streams are served, once.
func (s *server) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, err := s.running(req.ContainerId); err != nil {
		return nil, err
	}
	return s.stream.GetExec(req)
}

// Attach returns a URL at which the container's streams are served, once.
func (s *server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, err := s.running(req.ContainerId); err != nil {
		return nil, err
	}
	return s.stream.GetAttach(req)
}

// PortForward returns a URL at which connections to the pod's ports are served.
func (s *server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	sb, err := s.sandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if !sb.ready() {
		return nil, status.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", req.PodSandboxId)
	}
	return s.stream.GetPortForward(req)
}

func (s *server) running(id string) (*container, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	if c.pid() == 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", c.rec.ID)
	}
	return c, nil
}

// outputLimit is the most that ExecSync returns of both streams together, in bytes, so that the answer stays within a
// gRPC message; the rest is dropped, as the CRI demands.
const outputLimit = maxMessage - 64<<10

// ExecSync runs a command in a container and returns its output. With a timeout (seconds; 0 for none) that passes,
// the command is killed and the call fails with DeadlineExceeded, by which kubelet knows it.
func (s *server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	var output execOutput
	code, err := s.exec(ctx, req.ContainerId, req.Cmd, nil, output.stream(0), output.stream(1), false, nil)
	if ctx.Err() == context.DeadlineExceeded {
		return nil, status.Errorf(codes.DeadlineExceeded, "command %q timed out after %ds", req.Cmd, req.Timeout)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: output.bytes(0), Stderr: output.bytes(1), ExitCode: int32(code)}, nil
}

// execOutput keeps the first outputLimit bytes of a command's two streams.
type execOutput struct {
	mu   sync.Mutex
	bufs [2]bytes.Buffer
}

func (o *execOutput) stream(i int) io.WriteCloser { return execStream{o, i} }

// bytes returns what has been written so far: a process that outlives the command may still write.
func (o *execOutput) bytes(i int) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.bufs[i].Bytes())
}

// execStream is one of the two streams.
type execStream struct {
	output *execOutput
	i      int
}

// Write takes everything and keeps what still fits.
func (s execStream) Write(p []byte) (int, error) {
	o := s.output
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bufs[s.i].Write(p[:min(len(p), outputLimit-o.bufs[0].Len()-o.bufs[1].Len())])
	return len(p), nil
}

// Close does nothing.
func (execStream) Close() error { return nil }

// streamRuntime is what the streaming server runs.
type streamRuntime struct{ s *server }

// Exec runs a command with streams. A non-zero exit code is a utilexec.ExitError, as the streaming server expects.
func (r streamRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	code, err := r.s.exec(ctx, id, cmd, in, out, errOut, tty, resize)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// drainTime is how long output may still come after the command has ended, from a child that kept its streams.
const drainTime = 500 * time.Millisecond

// exec runs a command in a container until it ends or ctx does. Any of the streams may be nil.
func (s *server) exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) (code int, err error) {
	if len(cmd) == 0 {
		return 0, status.Error(codes.InvalidArgument, "the command is empty")
	}
	c, err := s.running(id)
	if err != nil {
		return 0, err
	}
	sb, err := s.sandbox(c.rec.SandboxID)
	if err != nil {
		return 0, err
	}
	var spec wire.Container
	if err := wire.ReadFile(c.dir+"/"+wire.SpecName, &spec); err != nil {
		return 0, err
	}
	p := spec.Process
	p.Args, p.TTY = cmd, tty
	if tty {
		p.Env = append([]string{"TERM=xterm"}, p.Env...)
	}
	conn, err := dialShim(sb.dir)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	// The shim kills the command when the connection ends.
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	copies := &sync.WaitGroup{}
	var theirs, ours []*os.File
	closeAll := func(fs []*os.File) {
		for _, f := range fs {
			f.Close()
		}
	}
	defer func() { closeAll(ours) }()
	if !tty {
		theirs, ours, err = execPipes(in, out, errOut, copies)
		if err != nil {
			return 0, err
		}
	}
	err = conn.Send(wire.Request{Op: wire.OpExec, Container: c.rec.ID, Process: &p}, theirs...)
	closeAll(theirs)
	var reply wire.Reply
	var files []*os.File
	if err == nil {
		files, err = conn.Receive(&reply)
	}
	if err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, fmt.Errorf("exec: %w", errShimGone)
	}
	if reply.Error != "" {
		return 0, fmt.Errorf("exec in container %q: %s", c.rec.Config.Metadata.Name, reply.Error)
	}
	if tty {
		if len(files) != 1 {
			return 0, errors.New("exec: the shim sent no terminal")
		}
		master, err := wire.Stream(files[0])
		if err != nil {
			return 0, err
		}
		ours = append(ours, master)
		copyTerminal(master, in, out, copies)
	}
	stopResize := forwardResize(resize, func(cols, rows uint16) {
		_ = conn.Send(wire.Request{Op: wire.OpResize, Cols: cols, Rows: rows})
	})
	defer stopResize()
	var end wire.Reply
	if _, err := conn.Receive(&end); err != nil || end.Status == nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, fmt.Errorf("exec: %w", errShimGone)
	}
	drained := make(chan struct{})
	go func() {
		copies.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainTime):
	case <-ctx.Done():
	}
	return end.Status.ExitCode, nil
}

// execPipes makes the pipes of a command without a terminal, and starts copying. theirs are for the command: always
// three, /dev/null for a stream that nobody wants.
func execPipes(in io.Reader, out, errOut io.WriteCloser, copies *sync.WaitGroup) (theirs, ours []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range append(theirs, ours...) {
				f.Close()
			}
		}
	}()
	add := func(child, here *os.File) {
		theirs = append(theirs, child)
		if here != nil {
			ours = append(ours, here)
		}
	}
	if in == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return theirs, ours, err
		}
		add(null, nil)
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, ours, err
		}
		add(r, w)
		go func() { // not waited for: a client may keep its input open after the command has ended
			_, _ = io.Copy(w, in)
			w.Close()
		}()
	}
	for _, to := range []io.WriteCloser{out, errOut} {
		if to == nil {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return theirs, ours, err
			}
			add(null, nil)
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, ours, err
		}
		add(w, r)
		copies.Add(1)
		go func() {
			defer copies.Done()
			_, _ = io.Copy(to, r)
		}()
	}
	return theirs, ours, nil
}

// copyTerminal joins a terminal's master with the client's streams.
func copyTerminal(master *os.File, in io.Reader, out io.Writer, copies *sync.WaitGroup) {
	if in != nil {
		go func() { _, _ = io.Copy(master, in) }()
	}
	if out != nil {
		copies.Add(1)
		go func() {
			defer copies.Done()
			_, _ = io.Copy(out, master) // ends with EIO when the last process has closed the terminal
		}()
	}
}

// forwardResize hands on terminal sizes until the returned function is called.
func forwardResize(resize <-chan remotecommand.TerminalSize, set func(cols, rows uint16)) (stop func()) {
	done := make(chan struct{})
	if resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-resize:
					if !ok {
						return
					}
					set(size.Width, size.Height)
				case <-done:
					return
				}
			}
		}()
	}
	return sync.OnceFunc(func() { close(done) })
}

// Attach joins the client's streams to the container's until the container ends or the client leaves.
func (r streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := r.s.running(id)
	if err != nil {
		return err
	}
	sb, err := r.s.sandbox(c.rec.SandboxID)
	if err != nil {
		return err
	}
	conn, err := dialShim(sb.dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	req := wire.Request{Op: wire.OpAttach, Container: c.rec.ID}
	copies := &sync.WaitGroup{}
	var theirs, ours []*os.File
	defer func() {
		for _, f := range ours {
			f.Close()
		}
	}()
	pipe := func(stream string) (r, w *os.File, err error) {
		r, w, err = os.Pipe()
		if err == nil {
			req.Streams = append(req.Streams, stream)
		}
		return r, w, err
	}
	if in != nil && c.rec.Config.Stdin {
		pr, pw, err := pipe("stdin")
		if err != nil {
			return err
		}
		theirs, ours = append(theirs, pr), append(ours, pw)
		go func() {
			_, _ = io.Copy(pw, in)
			pw.Close()
		}()
	}
	for _, s := range []struct {
		name string
		to   io.WriteCloser
	}{{"stdout", out}, {"stderr", errOut}} {
		if s.to == nil {
			continue
		}
		pr, pw, err := pipe(s.name)
		if err != nil {
			return err
		}
		theirs, ours = append(theirs, pw), append(ours, pr)
		copies.Add(1)
		go func() {
			defer copies.Done()
			_, _ = io.Copy(s.to, pr)
		}()
	}
	err = conn.Send(req, theirs...)
	for _, f := range theirs {
		f.Close()
	}
	var reply wire.Reply
	if err == nil {
		_, err = conn.Receive(&reply)
	}
	if err != nil {
		return fmt.Errorf("attach: %w", errShimGone)
	}
	if reply.Error != "" {
		return errors.New(reply.Error)
	}
	stopResize := forwardResize(resize, func(cols, rows uint16) {
		_, _ = sb.ask(ctx, wire.Request{Op: wire.OpResize, Container: c.rec.ID, Cols: cols, Rows: rows})
	})
	defer stopResize()
	// The second answer comes when the container has ended.
	_, _ = conn.Receive(&reply)
	copies.Wait()
	return nil
}

// dialTimeout bounds the connection to a port of a pod.
const dialTimeout = 10 * time.Second

// PortForward carries one connection to a port of the pod's loopback, as the API demands.
func (r streamRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	sb, err := r.s.sandbox(id)
	if err != nil {
		return err
	}
	var conn net.Conn
	err = inNetNS(sb.rec.NetNS, func() error {
		d := net.Dialer{Timeout: dialTimeout}
		var errs error
		for _, host := range []string{"127.0.0.1", "::1"} {
			c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c
				return nil
			}
			errs = errors.Join(errs, err)
		}
		return errs
	})
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, podName(sb), err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	back := make(chan error, 1)
	go func() {
		_, err := io.Copy(stream, conn)
		back <- err
	}()
	go func() {
		_, _ = io.Copy(conn, stream)
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	}()
	if err := <-back; err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("port %d of pod %s: %w", port, podName(sb), err)
	}
	return nil
}
