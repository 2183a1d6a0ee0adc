// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet/plugin"
)

// TestMain lets this binary be an agent too, for tests that kill one.
func TestMain(m *testing.M) {
	if conf := os.Getenv("PODNET_TEST_AGENT"); conf != "" {
		if err := runAgent(conf); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// agentConfig is what an agent in a process of its own needs to know.
type agentConfig struct {
	NodeName, StateDir, Socket, NetNS string
	Nodes                             map[string]*model.Node
	DieAt                             string // the step after which it kills itself
}

// dieAt is a log handler that kills the process, as kill -9 does, after a step.
type dieAt struct {
	slog.Handler
	step string
}

func (d dieAt) Enabled(context.Context, slog.Level) bool { return true }

func (d dieAt) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "step" && a.Value.String() == d.step {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return true
	})
	return nil
}

func runAgent(conf string) error {
	var c agentConfig
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	n, err := Open(Config{
		NodeName: c.NodeName, StateDir: c.StateDir, Socket: c.Socket, NetNS: c.NetNS,
		Log: slog.New(dieAt{slog.DiscardHandler, c.DieAt}),
	})
	if err != nil {
		return err
	}
	done := make(chan error, 2)
	go func() { done <- n.Run(ctx) }()
	go func() { done <- n.Serve(ctx) }()
	if err := n.Update(ctx, &model.Delta{Complete: true, Nodes: c.Nodes}); err != nil {
		return err
	}
	for range 2 {
		if err := <-done; err != nil {
			return err
		}
	}
	return n.Close()
}

// process starts the node's agent in a process of its own. wait returns when it has ended.
func (nd *node) process(dieAt string, nodes ...*node) (cmd *exec.Cmd, wait func() error) {
	nd.t.Helper()
	c := agentConfig{NodeName: nd.name, StateDir: nd.cfg.StateDir, Socket: nd.cfg.Socket, NetNS: nd.path, DieAt: dieAt, Nodes: make(map[string]*model.Node)}
	for _, o := range nodes {
		c.Nodes[o.name] = o.obj
	}
	b, err := json.Marshal(c)
	if err != nil {
		nd.t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PODNET_TEST_AGENT="+string(b))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		nd.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	nd.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, func() error {
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return fmt.Errorf("the agent still runs")
		}
	}
}

// cni runs the plugin: in this process, or as a container runtime does if the node names a binary.
func (nd *node) cni(command, version string, req Request, more map[string]any) (stdout []byte, err error) {
	conf := map[string]any{"cniVersion": version, "name": "weft", "type": "weft-cni", "socket": nd.cfg.Socket}
	if len(req.HostPorts) > 0 {
		conf["runtimeConfig"] = map[string]any{"portMappings": req.HostPorts}
	}
	for k, v := range more {
		conf[k] = v
	}
	in, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	env := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": req.ContainerID, "CNI_IFNAME": req.IfName, "CNI_NETNS": req.NetNS, "CNI_ARGS": req.Args, "CNI_PATH": "/opt/cni/bin"}
	var out bytes.Buffer
	if nd.plugin == "" {
		if status := plugin.Run(func(k string) string { return env[k] }, bytes.NewReader(in), &out); status != 0 {
			err = fmt.Errorf("exit status %d", status)
		}
	} else {
		cmd := exec.Command(nd.plugin)
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		cmd.Stdin, cmd.Stdout = bytes.NewReader(in), &out
		err = cmd.Run()
	}
	if err == nil {
		return out.Bytes(), nil
	}
	var e plugin.Error
	if jerr := json.Unmarshal(out.Bytes(), &e); jerr != nil {
		return nil, fmt.Errorf("%w: output %q: %v", err, out.Bytes(), jerr)
	}
	return nil, &e
}
