// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/guardian"
	"github.com/weft-net/weft/lab/supervisor"
	"github.com/weft-net/weft/lab/topology"
	"golang.org/x/sys/unix"
)

// readyFD is where a detached guardian tells the command that started it how the start went.
const readyFD = 3

func newUpCommand() *cobra.Command {
	var cfg supervisor.Config
	var family string
	var detach, detached bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab",
		Long: `Start a lab and wait until its nodes are ready and weft is installed. The lab stays until Ctrl-C, or with --detach
until "weft lab down".`,
		Example: `  weft lab up
  weft lab up --detach --nodes 1 --ip-family ipv4 --name small
  weft lab up --subnets 2                       # nodes on two networks with a router between them
  weft lab up --set controller.replicas=1       # as with helm install
  weft lab up --no-weft                         # to install another CNI, or weft by hand`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := complete(&cfg, family); err != nil {
				return err
			}
			switch {
			case detached:
				return guardDetached(cfg)
			case detach:
				return detachGuardian()
			}
			return guardHere(cfg)
		},
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Nodes, "nodes", 3, "how many nodes; \"weft lab node add\" adds more")
	f.StringVar(&family, "ip-family", "dual", "IP `families` of the cluster: dual, ipv4 or ipv6")
	f.IntVar(&cfg.Segments, "subnets", 1, "how many networks the nodes are spread over")
	f.BoolVar(&detach, "detach", false, "return when the lab is ready, and leave it running")
	f.BoolVar(&cfg.NoWeft, "no-weft", false, "don't install weft: nodes stay NotReady until there is a CNI configuration")
	f.StringVar(&cfg.Chart, "chart", "", "`directory` of the Helm chart to install; default: the one that weft was built with")
	f.StringArrayVar(&cfg.Values, "values", nil, "`file` with values for the chart; may be repeated")
	f.StringArrayVar(&cfg.Sets, "set", nil, "value for the chart, as `key=value`; may be repeated")
	f.BoolVar(&detached, "detached", false, "be the guardian of a detached lab")
	f.MarkHidden("detached")
	return cmd
}

// complete checks the configuration and fills in what is not a flag.
func complete(cfg *supervisor.Config, family string) error {
	var err error
	if cfg.Families, err = topology.ParseFamilies(family); err != nil {
		return fmt.Errorf("--ip-family: %w", err)
	}
	if cfg.Nodes < 1 || cfg.Nodes > topology.MaxNodes {
		return fmt.Errorf("--nodes %d: want 1 to %d", cfg.Nodes, topology.MaxNodes)
	}
	if cfg.Segments < 1 || cfg.Segments > topology.MaxSegments {
		return fmt.Errorf("--subnets %d: want 1 to %d", cfg.Segments, topology.MaxSegments)
	}
	for _, path := range append([]*string{&cfg.Chart}, pointers(cfg.Values)...) {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if _, err := os.Stat(*path); err != nil {
			return fmt.Errorf("--chart or --values: %w", err)
		}
	}
	cfg.Name, cfg.UID, cfg.GID = labName, os.Getuid(), os.Getgid()
	cfg.BinDir, err = binDir()
	return err
}

func pointers(values []string) []*string {
	var all []*string
	for i := range values {
		all = append(all, &values[i])
	}
	return all
}

// binDir is where this program is, and the lab's others beside it.
func binDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}

// steps prints what a lab's start does, each step with the time since the start.
func steps(out io.Writer) func(supervisor.Event) {
	started := time.Now()
	return func(e supervisor.Event) {
		at := fmt.Sprintf("[%5.1fs]", time.Since(started).Seconds())
		switch {
		case e.Progress != "":
			fmt.Fprintln(out, at, e.Progress)
		case e.Ready != nil:
			fmt.Fprintf(out, "%s lab %q is ready: API server %s\n", at, e.Ready.Name, e.Ready.Server)
		}
	}
}

// hint says what to try next, with --name where the lab is not the default one.
func hint(end string) string {
	lab := "weft lab"
	if labName != defaultName() {
		lab += " --name " + labName
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t)
	for _, line := range [][2]string{
		{"kubectl get nodes", "kubectl needs no installation"},
		{"kubeconfig > lab.conf", "for other programs: KUBECONFIG=lab.conf"},
		{"status", "what runs, where, and what it costs"},
		{"exec -- CMD", "run a command beyond the cluster"},
		{"down", end},
	} {
		fmt.Fprintf(t, "  %s %s\t%s\n", lab, line[0], line[1])
	}
	t.Flush()
	return b.String()
}

// guardHere guards the lab in this process, until Ctrl-C.
func guardHere(cfg supervisor.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	show := steps(os.Stderr)
	return guardian.Run(ctx, cfg, func(e supervisor.Event) {
		show(e)
		if e.Ready != nil {
			fmt.Fprint(os.Stderr, hint("end it, as Ctrl-C here does"))
		}
	})
}

// detachGuardian starts a guardian that outlives us, and waits until its lab is ready.
func detachGuardian() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	args := append(os.Args[1:], "--detached")
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "weft-lab"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		write.Close()
		return err
	}
	write.Close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		<-signals
		cmd.Process.Signal(syscall.SIGTERM) // the pipe ends when it has
	}()
	show := steps(os.Stderr)
	dec := json.NewDecoder(read)
	for {
		var e supervisor.Event
		if err := dec.Decode(&e); err != nil {
			return errors.New("the lab ended while it started")
		}
		if e.Failed != "" {
			return errors.New(e.Failed)
		}
		show(e)
		if e.Ready != nil {
			fmt.Fprint(os.Stderr, hint("end it"))
			return nil
		}
	}
}

// guardDetached is the process that detachGuardian starts.
func guardDetached(cfg supervisor.Config) error {
	out := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	tell := json.NewEncoder(out)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := guardian.Run(ctx, cfg, func(e supervisor.Event) {
		if err := tell.Encode(e); err != nil && e.Ready == nil {
			stop() // whoever asked for the lab is gone before it was ready
		}
		if e.Ready != nil {
			out.Close()
			leaveTerminal()
		}
	})
	if err != nil {
		tell.Encode(supervisor.Event{Failed: err.Error()})
		return exitCode(1) // whoever asked tells a person
	}
	return nil
}

// leaveTerminal lets go of the terminal and directory of the command that started us.
func leaveTerminal() {
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			unix.Dup2(int(null.Fd()), fd)
		}
		null.Close()
	}
	os.Chdir("/")
}

func newDownCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End a lab, at once and without a trace",
		Example: "  weft lab down\n  weft lab down --name small",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			call, err := control.Do(os.Getuid(), labName, supervisor.OpDown, nil)
			if err != nil {
				return err
			}
			defer call.Close()
			m, err := call.Next()
			if err == nil && m.Error != "" {
				return errors.New(m.Error)
			}
			// The connection ended with the supervisor; the guardian, which holds the name, ends last.
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				names, err := control.List(os.Getuid())
				if err != nil {
					return err
				}
				if !slices.Contains(names, labName) {
					return nil
				}
			}
			return fmt.Errorf("lab %s is still there after 10 s", labName)
		},
	}
}

func newSupervisorCommand() *cobra.Command {
	var unmapped bool
	cmd := &cobra.Command{
		Use:    "supervisor",
		Short:  "The lab itself: `weft lab up` starts it",
		Hidden: true,
		RunE:   func(*cobra.Command, []string) error { return supervisor.Main(unmapped) },
	}
	cmd.Flags().BoolVar(&unmapped, "unmapped", false, "wait for the user namespace's mapping")
	return cmd
}
