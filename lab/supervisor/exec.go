// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weft-net/weft/lab/components"
	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/namespace"
	"github.com/weft-net/weft/lab/node"
	"github.com/weft-net/weft/lab/procs"
	"golang.org/x/sys/unix"
)

// ExecArgs are the arguments of OpExec.
type ExecArgs struct {
	In  string // a host of the lab
	Cmd []string
	Env []string // the client's
	Dir string
	TTY bool // the files are a terminal that becomes the command's own
}

// ExecResult is the result of OpExec.
type ExecResult struct{ Code int }

// exec runs a command on a host of the lab with the client's own files as its stdio. `outside` and `control` have the
// client's file system; a node has its own. The command dies with the client, and with the lab.
func (l *lab) exec(reply *control.Reply, args ExecArgs, files []*os.File) (any, error) {
	if len(files) != 3 || len(args.Cmd) == 0 {
		return nil, errors.New("exec wants a command and three files")
	}
	spec := procs.Spec{Files: files, Attr: &syscall.SysProcAttr{Setsid: true}}
	if args.TTY {
		spec.Attr.Setctty, spec.Attr.Ctty = true, 0
	}
	var enter func(func() error) error
	switch args.In {
	case Outside, Control:
		ns, err := l.netOf(args.In)
		if err != nil {
			return nil, err
		}
		enter = func(f func() error) error { return ns.Do(func() error { return l.withResolver(f) }) }
		spec.Dir = args.Dir
		spec.Env = setenv(args.Env, "KUBECONFIG", l.files.kubeconfig())
		// The lab's kubectl is the last resort: a person's own comes first.
		spec.Env = setenv(spec.Env, "PATH", getenv(args.Env, "PATH")+":"+l.files.bin())
	default:
		machine, err := l.machineOf(args.In)
		if err != nil {
			return nil, err
		}
		defer machine.Close()
		enter = machine.Do
		spec.Dir = "/"
		spec.Env = []string{
			"PATH=" + defaultPath + ":" + node.BinDir, "HOME=/root", "USER=root",
			"KUBECONFIG=" + filepath.Join(components.NodeConfigDir, "admin.conf"),
		}
		if term := getenv(args.Env, "TERM"); term != "" {
			spec.Env = append(spec.Env, "TERM="+term)
		}
	}
	spec.Env = setenv(spec.Env, "WEFT_LAB", l.cfg.Name)
	spec.Args = args.Cmd

	p, err := l.startIn(enter, spec)
	if err != nil {
		return nil, err
	}
	signals := reply.Signals()
	for {
		select {
		case <-p.Done():
			return ExecResult{Code: p.ExitCode()}, nil
		case sig, ok := <-signals:
			if ok {
				l.table.SignalGroup(p, sig)
				continue
			}
			return nil, l.abandon(p)
		}
	}
}

// withResolver runs f, on a thread of its own, in a mount namespace where the resolver is the one on `outside`: the
// host's can't be reached from the lab.
func (l *lab) withResolver(f func() error) error {
	if err := namespace.PrivateMounts(); err != nil {
		return err
	}
	// Follows links to wherever the host keeps the file; a host without one needs none.
	err := unix.Mount(l.files.resolv(), "/etc/resolv.conf", "", unix.MS_BIND, "")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("set the resolver: %w", err)
	}
	return f()
}

// abandon ends a command whose client is gone.
func (l *lab) abandon(p *procs.Process) error {
	l.table.SignalGroup(p, syscall.SIGHUP)
	select {
	case <-p.Done():
	case <-time.After(2 * time.Second):
		l.table.SignalGroup(p, syscall.SIGKILL)
	}
	return errors.New("the client is gone")
}

// startIn starts a command inside namespaces, where its program is looked up too.
func (l *lab) startIn(enter func(func() error) error, spec procs.Spec) (*procs.Process, error) {
	var p *procs.Process
	err := enter(func() error {
		var err error
		if spec.Path, err = lookPath(spec.Args[0], spec.Dir, getenv(spec.Env, "PATH")); err != nil {
			return err
		}
		p, err = l.table.Start(spec)
		return err
	})
	return p, err
}

func (l *lab) machineOf(name string) (*namespace.Machine, error) {
	n, err := l.lockedNode(name)
	if err != nil {
		return nil, fmt.Errorf("%w, or %s or %s", err, Outside, Control)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return nil, fmt.Errorf("node %s has no power: `weft lab node start %s`", name, name)
	}
	return namespace.MachineOf(n.init.Pid)
}

// lookPath finds a program as a shell would, on the file system that the calling thread sees.
func lookPath(name, dir, path string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	for _, d := range filepath.SplitList(path) {
		candidate := filepath.Join(d, name)
		if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("%s: no such program in %s", name, path)
}

func getenv(env []string, name string) string {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

func setenv(env []string, name, value string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, name+"=") })
	return append(env, name+"="+value)
}
