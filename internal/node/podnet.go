// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/podnet"
)

// PodNetwork is the Part that wires pods: it needs Nodes, and serves the CNI plugin.
type PodNetwork struct {
	*podnet.Network
	install podnet.Install
}

// NewPodNetwork takes over the node's pod network and installs the CNI plugin; its configuration, which tells the
// container runtime that pods can come, follows when they can.
func NewPodNetwork(cfg podnet.Config, install podnet.Install) (*PodNetwork, error) {
	install.Socket = cfg.Socket
	n, err := podnet.Open(cfg)
	if err != nil {
		return nil, err
	}
	return &PodNetwork{Network: n, install: install}, nil
}

// Name is of Part.
func (*PodNetwork) Name() string { return "podnet" }

// Update is of Part.
func (p *PodNetwork) Update(ctx context.Context, d *model.Delta) error {
	err := p.Network.Update(ctx, d)
	if p.Status() == nil { // which it may be though some other node can't be reached
		err = errors.Join(err, p.install.InstallConfig()) // finds the file in place, but for the first time
	}
	return err
}

// Run is of Part.
func (p *PodNetwork) Run(ctx context.Context) error {
	if err := p.install.InstallPlugin(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.Network.Run(ctx) })
	g.Go(func() error { return p.Serve(ctx) })
	return g.Wait()
}

// Cleanup is of Cleaner: no pod of this node keeps a network.
func (p *PodNetwork) Cleanup(context.Context) error {
	return errors.Join(p.install.Remove(), p.Erase())
}
