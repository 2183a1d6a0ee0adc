// SPDX-License-Identifier: Apache-2.0

// Package node is the init (PID 1) of a lab's node: it turns the namespaces that it was started in into a machine of
// its own, keeps the kubelet and the CRI server running on it, and reaps orphans. Killing it is the node's power cut:
// the kernel takes down everything on the node with it.
//
// The supervisor starts it, attaches its network, and tells it what to do over a socket, one JSON line each way.
// It imports procs, components' Component, cri-api's client, and golang.org/x/sys/unix.
package node

import (
	"github.com/weft-net/weft/lab/components"
)

// Descriptors that a node's init is started with.
const (
	linkFD = 3 // requests from, and answers to, the supervisor
	bootFD = 4 // the Boot, in JSON
)

// Boot is what a node's init needs to know, handed over at its start.
type Boot struct {
	Name     string
	StateDir string // the lab's state, as the supervisor sees it; hidden on the node
	Dir      string // this node's disk, below StateDir
	BinDir   string // the lab's programs, below StateDir
	ImageDir string // the lab's images, below StateDir; at the same path on the node

	Hosts, Resolv []byte
	Kubelet       components.Component
	CRIEnv        []string
	Rootless      bool
}

// Paths on the node.
const (
	BinDir  = "/run/weft-lab/bin"
	CRIRoot = "/var/lib/weft-lab/cri"
	LogDir  = "/var/log/weft-lab"
)

// Request is what the supervisor asks of a node's init.
type Request struct {
	Op      string // one of the Op constants
	Service string // of OpStopService, OpStartService and OpKillService
}

// What can be asked.
const (
	OpStart        = "start" // start the kubelet and the CRI server
	OpStop         = "stop"  // end the kubelet, the pods, the CRI server and everything else, in that order
	OpStopService  = "stop-service"
	OpStartService = "start-service"
	OpKillService  = "kill-service" // it restarts
	OpState        = "state"
)

// Names of a node's services.
const (
	Kubelet = "kubelet"
	CRI     = "cri"
)
