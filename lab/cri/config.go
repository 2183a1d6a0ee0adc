// SPDX-License-Identifier: Apache-2.0

// Package cri is the lab's container runtime: a CRI server, one per node, that runs containers as processes.
//
// It implements the whole RuntimeService and ImageService of CRI v1 as kubelet uses them. Namespaces, mounts and
// processes are the affair of a small shim, one per pod (lab/cmd/weft-shim), which outlives the server: a server
// that is killed and started again finds every pod through its state directory and the shims' sockets. Networks are
// wired by CNI plugins through libcni, so any CNI can run in the lab. Images come from lab/images.
//
// It imports cri-api, cri-streaming, libcni, grpc and its sub-packages; not k8s.io/kubernetes.
package cri

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Config tells a CRI server where things are. The fields without a default must be set.
type Config struct {
	Socket   string // path of the unix socket for kubelet
	Root     string // state directory of this node; lies on the lab's tmpfs, so that overlayfs works on it
	Node     string // the node's name, for messages
	ImageDir string // the lab's image store (lab/images), shared by all its nodes
	Shim     string // path of the weft-shim program

	CNIConfDir string   // default /etc/cni/net.d
	CNIBinDirs []string // default /opt/cni/bin
	NetNSDir   string   // where pods' network namespaces are pinned; default /run/netns
	// ResolvConf is given to pods that bring no DNS configuration; default /etc/resolv.conf.
	ResolvConf string
	// StreamAddress is where exec, attach and port-forward are served to this node's kubelet; default
	// 127.0.0.1:0, any free port of the node.
	StreamAddress string
	Log           *slog.Logger // default slog.Default()
}

func (c *Config) setDefaults() error {
	for _, f := range []struct{ name, value string }{
		{"Socket", c.Socket}, {"Root", c.Root}, {"ImageDir", c.ImageDir}, {"Shim", c.Shim},
	} {
		if f.value == "" {
			return fmt.Errorf("cri: Config.%s is not set", f.name)
		}
	}
	if c.CNIConfDir == "" {
		c.CNIConfDir = "/etc/cni/net.d"
	}
	if len(c.CNIBinDirs) == 0 {
		c.CNIBinDirs = []string{"/opt/cni/bin"}
	}
	if c.NetNSDir == "" {
		c.NetNSDir = "/run/netns"
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.StreamAddress == "" {
		c.StreamAddress = "127.0.0.1:0"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	var err error
	if c.Root, err = filepath.Abs(c.Root); err != nil {
		return err
	}
	if c.Shim, err = filepath.Abs(c.Shim); err != nil {
		return err
	}
	if _, err := os.Stat(c.Shim); err != nil {
		return fmt.Errorf("cri: Config.Shim: %w: build lab/cmd/weft-shim (make build)", err)
	}
	for _, d := range []string{c.sandboxesDir(), c.containersDir(), c.NetNSDir, filepath.Dir(c.Socket)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return errors.Join(fmt.Errorf("cri: state directory"), err)
		}
	}
	return nil
}

func (c *Config) sandboxesDir() string  { return filepath.Join(c.Root, "sandboxes") }
func (c *Config) containersDir() string { return filepath.Join(c.Root, "containers") }
