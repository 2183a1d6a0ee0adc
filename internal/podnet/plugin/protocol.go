// SPDX-License-Identifier: Apache-2.0

// Package plugin is the CNI plugin that the container runtime executes: it reads the request that the runtime gave
// it (environment and standard input, CNI spec 1.1), hands it to the node's agent over a unix socket, and prints
// what the agent answers. It holds no state and changes nothing itself, but for a note when a DEL finds no agent.
//
// It runs twice for every pod, so it imports only the standard library.
package plugin

import (
	"encoding/json"
	"fmt"
)

// DefaultSocket is where the agent listens unless the network configuration says otherwise.
const DefaultSocket = "/run/weft/cni.sock"

// MaxMessage bounds a request and an answer, in bytes.
const MaxMessage = 4 << 20

// Request is what the plugin sends, once a connection, followed by the end of its half of the stream. For ADD and
// CHECK the open network namespace of the pod travels with the first byte (SCM_RIGHTS), so that the agent need not
// see the runtime's files.
type Request struct {
	Command     string          `json:"command"` // CNI_COMMAND
	ContainerID string          `json:"containerID,omitempty"`
	NetNS       string          `json:"netns,omitempty"` // the path as the runtime gave it
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"` // CNI_ARGS
	Config      json.RawMessage `json:"config"`
}

// Response is the agent's answer: what to print, or why not.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// The error codes of the CNI spec 1.1 that weft uses.
const (
	CodeIncompatibleVersion = 1
	CodeUnknownContainer    = 3
	CodeInvalidEnvironment  = 4
	CodeIOFailure           = 5
	CodeDecodingFailure     = 6
	CodeInvalidConfig       = 7
	CodeTryAgainLater       = 11
	CodePluginNotAvailable  = 50
	CodeInternal            = 100 // 100 and above are the plugin's own
	CodeCheckFailed         = 101
	CodeNoFreeAddress       = 102
	CodeHostPortTaken       = 103
	CodeNotProtected        = 104
)

// Error is an error as the CNI spec prints it.
type Error struct {
	Version string `json:"cniVersion,omitempty"`
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error makes Error an error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Errorf makes an Error with a code of the list above.
func Errorf(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}
