// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
)

// Versions are the versions of the CNI spec that weft speaks, oldest first. Without one the configuration means
// 0.2.0, as the spec's older versions did.
var Versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Config is what weft reads of the network configuration on standard input.
type Config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`

	// Socket is the agent's; "" is DefaultSocket.
	Socket string `json:"socket,omitempty"`

	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig"`

	// ValidAttachments is what the runtime still knows of, for GC. Absent means that it does not say.
	ValidAttachments []Attachment `json:"cni.dev/valid-attachments,omitempty"`
}

// PortMapping is one entry of the capability portMappings.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"` // tcp, udp or sctp in any case; "" is tcp
	HostIP        string `json:"hostIP,omitempty"`   // "" is every address of the node, both families
}

// Attachment names one interface of one sandbox.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// ParseConfig reads a network configuration. Every error is an *Error with the spec's code.
func ParseConfig(b []byte) (*Config, error) {
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, Errorf(CodeDecodingFailure, "network configuration on standard input is no valid JSON: %v", err)
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.2.0"
	}
	if !slices.Contains(Versions, c.CNIVersion) {
		return nil, Errorf(CodeIncompatibleVersion, "network configuration: cniVersion %q is not supported: use one of %s", c.CNIVersion, strings.Join(Versions, ", "))
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) || strings.IndexByte(c.Socket, 0) >= 0 {
		return nil, Errorf(CodeInvalidConfig, "network configuration: socket %q is no absolute path", c.Socket)
	}
	return &c, nil
}

// ReadRequest makes a request of the plugin's environment and standard input and checks what the spec demands of
// both. Every error is an *Error with the spec's code.
func ReadRequest(getenv func(string) string, stdin []byte) (*Request, *Config, error) {
	r := &Request{Command: getenv("CNI_COMMAND")}
	switch r.Command {
	case "ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION":
	case "":
		return nil, nil, Errorf(CodeInvalidEnvironment, "CNI_COMMAND is not set: the container runtime runs this program, a person has no use for it")
	default:
		return nil, nil, Errorf(CodeInvalidEnvironment, "CNI_COMMAND %q is unknown: want ADD, DEL, CHECK, STATUS, GC or VERSION", r.Command)
	}
	if r.Command == "VERSION" && len(bytes.TrimSpace(stdin)) == 0 {
		stdin = []byte(`{}`)
	}
	c, err := ParseConfig(stdin)
	if err != nil {
		return nil, nil, err
	}
	if r.Command == "VERSION" {
		return r, c, nil
	}
	r.Config = bytes.TrimSpace(stdin)
	if !validName(c.Name) {
		return nil, nil, Errorf(CodeInvalidConfig, "network configuration: name %q: want letters, digits, '_', '.' and '-', the first a letter or digit", c.Name)
	}
	if r.Command == "STATUS" || r.Command == "GC" {
		return r, c, nil
	}
	r.ContainerID, r.IfName, r.Args, r.NetNS = getenv("CNI_CONTAINERID"), getenv("CNI_IFNAME"), getenv("CNI_ARGS"), getenv("CNI_NETNS")
	if !validName(r.ContainerID) {
		return nil, nil, Errorf(CodeInvalidEnvironment, "CNI_CONTAINERID %q: want letters, digits, '_', '.' and '-', the first a letter or digit", r.ContainerID)
	}
	if !validIfName(r.IfName) {
		return nil, nil, Errorf(CodeInvalidEnvironment, "CNI_IFNAME %q: want 1 to 15 characters without '/', ':' and space", r.IfName)
	}
	if r.NetNS == "" && r.Command != "DEL" {
		return nil, nil, Errorf(CodeInvalidEnvironment, "CNI_NETNS is not set: %s needs the pod's network namespace", r.Command)
	}
	return r, c, nil
}

// validName is the spec's rule for network names and container ids.
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 253
}

// validIfName is the kernel's rule for interface names.
func validIfName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c == '/' || c == ':' || c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}
