// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/namespace"
	"github.com/weft-net/weft/lab/node"
)

// Names of the lab's hosts beside the nodes.
const (
	Outside = "outside"
	Control = "control"
)

// Operations that commands ask for, each with the type of its arguments and result.
const (
	OpStatus     = "status"     // nothing -> Status
	OpKubeconfig = "kubeconfig" // nothing -> []byte
	OpDown       = "down"       // nothing -> the connection ends with the lab
	OpNode       = "node"       // NodeArgs -> nothing
	OpComponent  = "component"  // ComponentArgs -> nothing
	OpExec       = "exec"       // ExecArgs with stdin, stdout, stderr -> ExecResult
	OpLogs       = "logs"       // LogsArgs -> data
	OpForward    = "forward"    // ForwardArgs -> Progress when it listens, until the client leaves
	OpLoad       = "load"       // LoadArgs -> nothing
	OpImages     = "images"     // nothing -> []ImageInfo
)

// answer serves one command's connection.
func (l *lab) answer(conn *net.UnixConn) {
	req, reply, err := control.Receive(conn)
	if err != nil {
		conn.Close()
		return
	}
	defer req.CloseFiles()
	if req.Op == OpDown {
		l.event(Event{Down: true}) // the guardian ends us, and the connection with us
		return
	}
	result, err := l.do(req, reply)
	reply.End(result, err)
}

func (l *lab) do(req control.Request, reply *control.Reply) (any, error) {
	<-l.prepared // a moment after the start, or else the lab ends
	switch req.Op {
	case OpStatus:
		return l.status()
	case OpKubeconfig:
		return l.cluster.AdminKubeconfig(l.server), nil
	case OpNode:
		return with(req, func(a NodeArgs) (any, error) { return nil, l.changeNode(reply, a) })
	case OpComponent:
		return with(req, func(a ComponentArgs) (any, error) { return nil, l.changeComponent(a) })
	case OpExec:
		return with(req, func(a ExecArgs) (any, error) { return l.exec(reply, a, req.Files) })
	case OpLogs:
		return with(req, func(a LogsArgs) (any, error) { return nil, l.logs(reply, a) })
	case OpForward:
		return with(req, func(a ForwardArgs) (any, error) { return nil, l.forward(reply, a) })
	case OpLoad:
		return with(req, func(a LoadArgs) (any, error) { return l.load(a) })
	case OpImages:
		return l.listImages()
	}
	return nil, fmt.Errorf("this lab doesn't know %q: it was started by another version of weft-lab", req.Op)
}

// with decodes the request's arguments.
func with[A any](req control.Request, f func(A) (any, error)) (any, error) {
	var args A
	if err := json.Unmarshal(req.Args, &args); err != nil {
		return nil, fmt.Errorf("arguments of %s: %w", req.Op, err)
	}
	return f(args)
}

// ComponentArgs are the arguments of OpComponent.
type ComponentArgs struct {
	Action string // start, stop or kill
	Name   string
	Node   string // "": the control plane
}

func (l *lab) changeComponent(args ComponentArgs) error {
	if args.Node != "" {
		return l.changeNodeService(args)
	}
	s, err := l.service(args.Name)
	if err != nil {
		return err
	}
	switch args.Action {
	case "start":
		return s.Start()
	case "stop":
		s.Stop()
		return nil
	case "kill":
		return s.Kill()
	}
	return fmt.Errorf("unknown action %q on a component", args.Action)
}

func (l *lab) changeNodeService(args ComponentArgs) error {
	ops := map[string]string{"start": node.OpStartService, "stop": node.OpStopService, "kill": node.OpKillService}
	op, ok := ops[args.Action]
	if !ok {
		return fmt.Errorf("unknown action %q on a component", args.Action)
	}
	n, err := l.lockedNode(args.Node)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, err = n.ask(node.Request{Op: op, Service: args.Name})
	return err
}

// lockedNode finds a node by name.
func (l *lab) lockedNode(name string) (*clusterNode, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.findNode(name)
}

// netOf is the network namespace of a host of the lab.
func (l *lab) netOf(host string) (*namespace.Net, error) {
	switch host {
	case Outside:
		return l.outside, nil
	case Control:
		return l.control, nil
	}
	n, err := l.lockedNode(host)
	if err != nil {
		return nil, fmt.Errorf("%w, or %s or %s", err, Outside, Control)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return nil, fmt.Errorf("node %s has no power: `weft lab node start %s`", host, host)
	}
	return n.net, nil
}
