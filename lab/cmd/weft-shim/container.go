// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/procs"
	"github.com/weft-net/weft/lab/cri/wire"
)

// container is one started container.
type container struct {
	pod  *pod
	dir  string
	spec *wire.Container
	log  *logFile
	up   chan struct{} // closed once the start is written down
	done chan struct{} // closed once the end is written down

	mu      sync.Mutex
	status  wire.Status
	stdin   *os.File   // our end of its standard input, nil when it has none (any more)
	master  *os.File   // of its terminal
	held    []*os.File // the images that it uses, locked
	clients map[*client]struct{}
	output  sync.WaitGroup // the pumps of stdout and stderr
}

// client is one attached stream.
type client struct {
	stream string
	file   *os.File
}

func newContainer(p *pod, dir string, spec *wire.Container) *container {
	return &container{
		pod: p, dir: dir, spec: spec,
		log:     &logFile{path: spec.LogPath},
		up:      make(chan struct{}),
		done:    make(chan struct{}),
		clients: map[*client]struct{}{},
		status:  wire.Status{ID: spec.ID, State: wire.Running},
	}
}

func (c *container) snapshot() wire.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// pid is that of the container's process, 0 when it does not run.
func (c *container) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status.State != wire.Running {
		return 0
	}
	return c.status.PID
}

// start runs the container. After an error failed has to be called.
func (c *container) start() error {
	if err := c.log.reopen(); err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	root := filepath.Join(c.dir, "rootfs")
	l := launch{
		args:     []string{"init", filepath.Join(c.dir, wire.SpecName), root},
		stdio:    [3]*os.File{null, null, null},
		newMount: true,
	}
	switch c.spec.PID {
	case wire.PIDPrivate:
		l.newPID = true
	case wire.PIDPod:
		l.joinPIDOf = c.pod.pausePID
	case wire.PIDTarget:
		target, err := c.pod.get(c.spec.PIDTarget)
		if err != nil {
			null.Close()
			return fmt.Errorf("process namespace of the target: %w", err)
		}
		if l.joinPIDOf = target.pid(); l.joinPIDOf == 0 {
			null.Close()
			return fmt.Errorf("process namespace of the target: container %s is not running", c.spec.PIDTarget)
		}
	}
	defer null.Close()
	var theirs []*os.File // ends of the pipes that are the child's
	defer func() { closeAll(theirs) }()
	var readers [2]*os.File
	var stdin *os.File // our end of it
	held, err := holdImages(c.spec.Holds)
	if err != nil {
		return err
	}
	defer func() {
		if c.snapshot().PID == 0 { // it did not start
			closeAll(held)
			closeAll([]*os.File{stdin, readers[0], readers[1]})
		}
	}()
	if !c.spec.Process.TTY {
		if c.spec.Stdin {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			l.stdio[0], stdin, theirs = r, w, append(theirs, r)
		}
		for i := range readers {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			readers[i], l.stdio[i+1], theirs = r, w, append(theirs, w)
		}
	}
	child, err := c.pod.spawn.start(l, c.ended)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.stdin, c.held = stdin, held
	c.status.PID, c.status.MountNS, c.status.StartedAt = child.pid, procs.MountNamespace(child.pid), time.Now().UnixNano()
	st := c.status
	if child.master != nil {
		c.master = child.master
		c.output.Add(1)
		go c.pump("stdout", child.master)
	} else {
		c.output.Add(2)
		go c.pump("stdout", readers[0])
		go c.pump("stderr", readers[1])
	}
	c.mu.Unlock()
	c.record(st)
	close(c.up)
	return nil
}

// holdImages takes a shared lock on directories of the image store, which keeps them there.
func holdImages(dirs []string) ([]*os.File, error) {
	var held []*os.File
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err == nil {
			held = append(held, f)
			err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		}
		if err != nil {
			closeAll(held)
			return nil, fmt.Errorf("image %s: %w", dir, err)
		}
	}
	return held, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// failed writes down that the container never ran. 128 is the code other runtimes give to that.
func (c *container) failed(err error) {
	c.finish(128, err.Error())
}

// ended is called by the reaper.
func (c *container) ended(ws unix.WaitStatus) {
	<-c.up
	c.mu.Lock()
	ns := c.status.MountNS
	c.mu.Unlock()
	if c.spec.PID != wire.PIDPrivate {
		procs.KillMountNamespace(ns) // with a PID namespace of its own the kernel has done that
	}
	drained := make(chan struct{})
	go func() {
		c.output.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(2 * time.Second): // a process outside of the container holds the pipe
	}
	c.finish(exitCode(ws), "")
}

func (c *container) finish(code int, startError string) {
	c.mu.Lock()
	now := time.Now().UnixNano()
	if c.status.StartedAt == 0 {
		c.status.StartedAt = now
	}
	c.status.State, c.status.ExitCode, c.status.FinishedAt, c.status.StartError = wire.Exited, code, now, startError
	st := c.status
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
	if c.master != nil {
		c.master.Close()
		c.master = nil
	}
	closeAll(c.held)
	c.held = nil
	c.mu.Unlock()
	c.log.close()
	c.record(st)
	close(c.done)
}

// record writes the status down and tells the watchers.
func (c *container) record(st wire.Status) {
	if err := wire.WriteFile(filepath.Join(c.dir, wire.StatusName), st); err != nil {
		fmt.Fprintln(os.Stderr, "weft-shim:", err)
	}
	c.pod.notify(st)
}

// signal sends sig to the container's process, or with all to every process of the container.
func (c *container) signal(sig unix.Signal, all bool) error {
	c.mu.Lock()
	pid, ns, running := c.status.PID, c.status.MountNS, c.status.State == wire.Running
	c.mu.Unlock()
	if !running || pid == 0 {
		return fmt.Errorf("container %s is not running", c.spec.ID)
	}
	if err := c.pod.spawn.kill(pid, sig); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal %d to container %s: %w", sig, c.spec.ID, err)
	}
	if all && sig == unix.SIGKILL && c.spec.PID != wire.PIDPrivate {
		procs.KillMountNamespace(ns)
	}
	return nil
}

func (c *container) resize(cols, rows uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.master == nil {
		return fmt.Errorf("container %s has no terminal", c.spec.ID)
	}
	return setSize(c.master, cols, rows)
}

// attach joins files to the streams of the same index and returns the function that parts them again.
func (c *container) attach(streams []string, files []*os.File) (detach func()) {
	var joined []*client
	var stdin *os.File
	c.mu.Lock()
	for i, stream := range streams {
		if stream == "stdin" {
			stdin = files[i]
			continue
		}
		cl := &client{stream: stream, file: files[i]}
		c.clients[cl] = struct{}{}
		joined = append(joined, cl)
	}
	c.mu.Unlock()
	if stdin != nil {
		go c.feed(stdin)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, cl := range joined {
			delete(c.clients, cl)
			cl.file.Close()
		}
		if stdin != nil {
			stdin.Close()
		}
	}
}

// feed copies a client's input to the container until the client closes it.
func (c *container) feed(from *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			c.mu.Lock()
			to := c.stdin
			if c.master != nil {
				to = c.master
			}
			c.mu.Unlock()
			if to == nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	if !c.spec.StdinOnce {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
	if c.master != nil {
		_, _ = c.master.Write([]byte{4}) // end of transmission: what a terminal knows of end-of-file
	}
}

// clientPatience is how long an attached client may block a container's output before it is left behind.
const clientPatience = time.Second

// pump carries one output stream to the log and the attached clients.
func (c *container) pump(stream string, from *os.File) {
	defer c.output.Done()
	if !c.spec.Process.TTY { // a terminal's master serves input as well: finish closes it
		defer from.Close()
	}
	buf := make([]byte, logLine)
	line := c.log.stream(stream)
	defer line.flush()
	for {
		n, err := from.Read(buf)
		if n > 0 {
			line.write(buf[:n])
			c.spread(stream, buf[:n])
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EIO) && !errors.Is(err, os.ErrClosed) {
				fmt.Fprintln(os.Stderr, "weft-shim: read", stream, "of", c.spec.ID+":", err)
			}
			return
		}
	}
}

func (c *container) spread(stream string, data []byte) {
	c.mu.Lock()
	var to []*client
	for cl := range c.clients {
		if cl.stream == stream {
			to = append(to, cl)
		}
	}
	c.mu.Unlock()
	for _, cl := range to {
		_ = cl.file.SetWriteDeadline(time.Now().Add(clientPatience))
		if _, err := cl.file.Write(data); err != nil {
			c.mu.Lock()
			delete(c.clients, cl)
			c.mu.Unlock()
			cl.file.Close()
		}
	}
}
