// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/supervisor"
	"golang.org/x/sys/unix"
)

func newKubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print a kubeconfig for programs on this machine",
		Example: `  weft lab kubeconfig > lab.conf && KUBECONFIG=lab.conf helm list -A
  KUBECONFIG=<(weft lab kubeconfig) k9s`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var kubeconfig []byte
			if err := ask(supervisor.OpKubeconfig, nil, &kubeconfig); err != nil {
				return err
			}
			_, err := os.Stdout.Write(kubeconfig)
			return err
		},
	}
}

func newKubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [ARGS...]",
		Short: "Kubernetes' own kubectl, on this lab",
		Long:  `Run kubectl on the lab. All arguments are kubectl's; choose a lab with $WEFT_LAB, or with --name before or right after "kubectl".`,
		Example: `  weft lab kubectl get pods -A -o wide
  weft lab kubectl create deployment echo --image=ghcr.io/weft-net/echo:1 --replicas=3
  weft lab --name small kubectl get nodes`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := binDir()
			if err != nil {
				return err
			}
			name, args := leadingName(args)
			if name != "" {
				labName = name
			}
			var kubeconfig []byte
			if err := ask(supervisor.OpKubeconfig, nil, &kubeconfig); err != nil && !wantsHelp(args) {
				return err
			}
			// An unnamed file, so that no credential is left on disk. It stays open across exec.
			fd, err := unix.MemfdCreate("kubeconfig", 0)
			if err != nil {
				return err
			}
			if _, err := unix.Write(fd, kubeconfig); err != nil {
				return err
			}
			if err := os.Setenv("KUBECONFIG", fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
				return err
			}
			program := filepath.Join(dir, "weft-lab-kube")
			err = syscall.Exec(program, append([]string{"kubectl"}, args...), os.Environ())
			return fmt.Errorf("run %s: %w", program, err)
		},
	}
}

// leadingName takes --name off the front of kubectl's arguments, where it is the lab's: kubectl has no such flag there.
func leadingName(args []string) (name string, rest []string) {
	if len(args) > 1 && args[0] == "--name" {
		return args[1], args[2:]
	}
	if len(args) > 0 {
		if name, ok := strings.CutPrefix(args[0], "--name="); ok {
			return name, args[1:]
		}
	}
	return "", args
}

// wantsHelp tells whether kubectl would do nothing but explain itself, which takes no lab.
func wantsHelp(args []string) bool {
	return len(args) == 0 || args[0] == "help" || slices.Contains(args, "--help") || slices.Contains(args, "-h")
}

func newForwardCommand() *cobra.Command {
	var args supervisor.ForwardArgs
	cmd := &cobra.Command{
		Use:   "forward ADDRESS:PORT [LOCALPORT]",
		Short: "Make an address of the lab reachable on this machine's 127.0.0.1",
		Long: `Listen on 127.0.0.1 and carry every connection (or datagram, with --udp) to an address in the lab, until Ctrl-C.
Addresses of pods and Services are reached from a node, all others from "outside", unless --from says otherwise.`,
		Example: `  weft lab forward 172.30.0.200:80 8080          # a LoadBalancer
  weft lab forward 10.96.0.10:53 5353 --udp      # the cluster's DNS
  weft lab forward '[fd00:30::11]:30080'         # a NodePort, on a free port of this machine`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, words []string) error {
			target, err := netip.ParseAddrPort(words[0])
			if err != nil {
				return fmt.Errorf("%q: want ADDRESS:PORT, as 172.30.0.11:80 or [fd00:30::11]:80", words[0])
			}
			args.Target = target
			if len(words) == 2 {
				port, err := strconv.ParseUint(words[1], 10, 16)
				if err != nil {
					return fmt.Errorf("LOCALPORT %q: want a number from 0 to 65535", words[1])
				}
				args.Port = uint16(port)
			}
			return ask(supervisor.OpForward, args, nil)
		},
	}
	cmd.Flags().BoolVar(&args.UDP, "udp", false, "carry UDP datagrams, not TCP connections")
	cmd.Flags().StringVar(&args.From, "from", "", "`host` of the lab that connects: outside, control or a node")
	return cmd
}

func newLogsCommand() *cobra.Command {
	var args supervisor.LogsArgs
	cmd := &cobra.Command{
		Use:   "logs COMPONENT",
		Short: "Print the log of a part of Kubernetes",
		Long: `Print the log of etcd, apiserver, controller-manager, scheduler or internet (what answers beyond the cluster); or,
with --node, of a node's kubelet, cri or init. Logs of pods are kubectl's affair.`,
		Example: `  weft lab logs apiserver
  weft lab logs kubelet --node node1 --follow`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, words []string) error {
			args.Component = words[0]
			return ask(supervisor.OpLogs, args, nil)
		},
	}
	cmd.Flags().BoolVarP(&args.Follow, "follow", "f", false, "go on with what is logged, until Ctrl-C")
	cmd.Flags().StringVar(&args.Node, "node", "", "`node` whose kubelet, cri or init is meant")
	return cmd
}

func newLoadCommand() *cobra.Command {
	var args supervisor.LoadArgs
	var binary, rootfs, oci string
	cmd := &cobra.Command{
		Use:   "load REF (--binary FILE | --rootfs DIR | --oci PATH)",
		Short: "Make an image of something on this machine",
		Long: `Register an image under a reference that pods can then name. REF may end in ":*", which stands for any tag. What
is loaded comes before the images that the lab ships, and before registries.`,
		Example: `  weft lab load 'example.com/shop:*' --binary ./shop   # a static program
  weft lab load alpine:3 --oci alpine.tar               # an OCI layout, or what docker save writes
  weft lab load mydebian:1 --rootfs /srv/debian`,
		DisableFlagsInUseLine: true,
		Args:                  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, words []string) error {
			args.Ref = words[0]
			for kind, path := range map[string]string{"binary": binary, "rootfs": rootfs, "oci": oci} {
				if path != "" {
					args.Kind, args.Path = kind, path
				}
			}
			var err error
			if args.Path, err = filepath.Abs(args.Path); err != nil {
				return err
			}
			var info supervisor.ImageInfo
			if err := ask(supervisor.OpLoad, args, &info); err != nil {
				return err
			}
			fmt.Printf("%s is %s (%d MB)\n", info.Ref, info.ID, info.Size/1e6)
			return nil
		},
	}
	cmd.Flags().StringVar(&binary, "binary", "", "`file` that is a static program; it becomes the image's entry point")
	cmd.Flags().StringVar(&rootfs, "rootfs", "", "`dir` that is a root file system; it is used where it is")
	cmd.Flags().StringVar(&oci, "oci", "", "`path` of an OCI image layout (directory or tar), or of a docker-save tar")
	cmd.MarkFlagsOneRequired("binary", "rootfs", "oci")
	cmd.MarkFlagsMutuallyExclusive("binary", "rootfs", "oci")
	return cmd
}

func newExecCommand() *cobra.Command {
	args := supervisor.ExecArgs{}
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec [--in HOST] -- CMD [ARGS...]",
		Short: "Run a command on a host of the lab, with KUBECONFIG set",
		Long: `Run a command on "outside" (a client beyond the cluster, the default), on "control", or on a node. On outside and
control the command sees this machine's files; a node has a file system of its own. On a terminal the command gets a
terminal of its own.`,
		Example: `  weft lab exec -- curl http://172.30.0.200/
  weft lab exec -- go test ./e2e/...         # tests that are clients of the cluster
  weft lab exec --in node1 -- sh             # a shell on a node
  weft lab exec --in node1 -- nft list ruleset`,
		DisableFlagsInUseLine: true,
		Args:                  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, words []string) error {
			args.Cmd = words
			args.Env = os.Environ()
			var err error
			if args.Dir, err = os.Getwd(); err != nil {
				return err
			}
			args.TTY = stdin && isTerminal(os.Stdin) && isTerminal(os.Stdout)
			if cmd.Flags().Changed("tty") {
				args.TTY = tty
			}
			switch {
			case args.TTY && !stdin && cmd.Flags().Changed("tty"):
				return errors.New("--tty and --stdin=false exclude each other: a terminal is the command's input too")
			case args.TTY && !isTerminal(os.Stdin):
				return errors.New("--tty: standard input is not a terminal")
			}
			return runExec(args, stdin)
		},
	}
	cmd.Flags().StringVar(&args.In, "in", supervisor.Outside, "`host`: outside, control or a node")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", true, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal; default: if this is one")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// runExec runs the command and ends as it ends. Without stdin the command reads nothing of ours.
func runExec(args supervisor.ExecArgs, stdin bool) error {
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	if !stdin {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		files[0] = null
	}
	var term *terminal
	if args.TTY {
		var err error
		if term, err = openTerminal(); err != nil {
			return err
		}
		defer term.restore()
		files = []*os.File{term.child, term.child, term.child}
	}
	call, err := control.Do(os.Getuid(), labName, supervisor.OpExec, args, files...)
	if err != nil {
		return err
	}
	defer call.Close()
	if term != nil {
		term.start()
	} else {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
		go func() {
			for sig := range signals {
				call.Signal(sig.(syscall.Signal))
			}
		}()
	}
	var result supervisor.ExecResult
	err = call.Result(&result, nil, nil)
	if term != nil {
		term.drain()
	}
	if err != nil {
		return err
	}
	if result.Code != 0 {
		return exitCode(result.Code)
	}
	return nil
}
