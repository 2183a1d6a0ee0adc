// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// How long the plugin waits for an agent that is not there or goes away in the middle, as it does when it is
// restarted or upgraded: a pod that starts meanwhile should start a moment later, not fail. Every command is
// idempotent, so asking again is safe. STATUS waits too, for less than ADD, so that it says no more than ADD holds:
// once it fails, the runtime has no network, and the control plane takes the node's Ready condition and all its pods out
// of their Services. It is less than kubelet can miss its runtime for (30 s).
const (
	patience       = 15 * time.Second
	patienceStatus = 10 * time.Second
	patienceDel    = 2 * time.Second
	redial         = 50 * time.Millisecond
	timeout        = 60 * time.Second // for an answer
)

// PendingDir is the folder, beside the agent's socket, in which the plugin notes what was deleted while no agent
// ran; the agent carries it out before it serves.
func PendingDir(socket string) string { return filepath.Join(filepath.Dir(socket), "deleted") }

// Main is the plugin as a process: it returns the exit status.
func Main() int { return Run(os.Getenv, os.Stdin, os.Stdout) }

// Run is the plugin with an environment, input and output of the caller's.
func Run(getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	p := runner{getenv: getenv, patience: patience, patienceStatus: patienceStatus, patienceDel: patienceDel}
	return p.run(stdin, stdout)
}

// Invoked tells whether this process was started as the CNI plugin: by the name of its binary.
func Invoked(arg0 string) bool { return filepath.Base(arg0) == "weft-cni" }

type runner struct {
	getenv                                func(string) string
	patience, patienceStatus, patienceDel time.Duration
}

func (p *runner) run(stdin io.Reader, stdout io.Writer) int {
	b, err := io.ReadAll(io.LimitReader(stdin, MaxMessage))
	if err != nil {
		err = Errorf(CodeIOFailure, "read the network configuration from standard input: %v", err)
	}
	version := "1.0.0" // for an error that comes before the configuration is understood
	var out []byte
	if err == nil {
		var req *Request
		var conf *Config
		if req, conf, err = ReadRequest(p.getenv, b); err == nil {
			version = conf.CNIVersion
			out, err = p.do(req, conf)
		}
	}
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = Errorf(CodeInternal, "%v", err)
		}
		e.Version = version
		out, _ = json.Marshal(e)
	}
	if len(out) > 0 {
		if _, werr := fmt.Fprintf(stdout, "%s\n", out); werr != nil {
			return 1
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

func (p *runner) do(req *Request, conf *Config) ([]byte, error) {
	if req.Command == "VERSION" {
		return json.Marshal(map[string]any{"cniVersion": conf.CNIVersion, "supportedVersions": Versions})
	}
	var netns *os.File
	if req.Command == "ADD" || req.Command == "CHECK" {
		var err error
		if netns, err = os.Open(req.NetNS); err != nil {
			return nil, Errorf(CodeInvalidEnvironment, "CNI_NETNS: %v", err)
		}
		defer netns.Close()
	}
	var wait time.Duration // CHECK and GC are asked again by the runtime itself
	switch req.Command {
	case "ADD":
		wait = p.patience
	case "STATUS":
		wait = p.patienceStatus
	case "DEL":
		wait = p.patienceDel
	}
	resp, err := Call(conf.Socket, req, netns, wait)
	if err != nil && req.Command == "DEL" {
		return nil, postpone(conf.Socket, req)
	}
	if err != nil {
		code := uint(CodeTryAgainLater)
		if req.Command == "STATUS" {
			code = CodePluginNotAvailable
		}
		return nil, Errorf(code, "weft's agent does not answer on this node (%v): see that the pod of the DaemonSet weft-node runs here", err)
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return resp.Result, nil
}

// Call asks the agent and returns its answer. While nobody listens, or the connection ends without an answer, it
// asks again until the patience is over; the error is then that of the last attempt.
func Call(socket string, req *Request, netns *os.File, patience time.Duration) (*Response, error) {
	msg, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(patience)
	for {
		resp, err := call(socket, msg, netns)
		if err == nil || time.Now().Add(redial).After(deadline) {
			return resp, err
		}
		time.Sleep(redial)
	}
}

func call(socket string, msg []byte, netns *os.File) (*Response, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var oob []byte
	if netns != nil {
		oob = syscall.UnixRights(int(netns.Fd()))
	}
	n, _, err := c.WriteMsgUnix(msg, oob, nil)
	if err == nil && n < len(msg) {
		_, err = c.Write(msg[n:])
	}
	if err != nil {
		return nil, err
	}
	if err := c.CloseWrite(); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(c, MaxMessage))
	if err != nil {
		return nil, err
	}
	var resp Response
	if err := json.Unmarshal(b, &resp); err != nil {
		return nil, fmt.Errorf("the agent went away before it answered")
	}
	return &resp, nil
}

// postpone notes a deletion for the agent to carry out when it is back. Waiting for the agent would keep pods
// terminating on a node that is being drained of everything. Without the folder there is no weft on this node any
// more, and nothing left to delete.
func postpone(socket string, req *Request) error {
	b, err := json.Marshal(Attachment{ContainerID: req.ContainerID, IfName: req.IfName})
	if err != nil {
		return err
	}
	dir := PendingDir(socket)
	f, err := os.CreateTemp(dir, ".new-*")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return Errorf(CodeIOFailure, "note the deletion for weft's agent, which does not answer: %v", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, "del-"+filepath.Base(f.Name())[len(".new-"):]))
	}
	if err != nil {
		os.Remove(f.Name())
		return Errorf(CodeIOFailure, "note the deletion for weft's agent, which does not answer: %v", err)
	}
	return nil
}
