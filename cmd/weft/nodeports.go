// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// nodePortFlags are those flags of "weft node" that say on which of a node's addresses node ports are.
type nodePortFlags struct {
	addresses  []string
	noLoopback bool
}

func (f *nodePortFlags) add(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.addresses, "nodeport-addresses", nil, "`CIDRs` of the node addresses that serve NodePorts, or primary: those of the Node's first InternalIPs (default: all of the node's addresses, and loopback)")
	fs.BoolVar(&f.noLoopback, "no-loopback-nodeports", false, "no NodePorts on 127.0.0.1 and ::1")
}

// primary tells whether node ports are on the node's primary addresses only.
func (f *nodePortFlags) primary() bool { return slices.Equal(f.addresses, []string{"primary"}) }

// scope is what an agent with these flags makes of them on a node; n may be nil.
func (f *nodePortFlags) scope(n *model.Node) (service.Scope, error) {
	out := service.Scope{LoopbackNodePorts: !f.noLoopback}
	if f.primary() {
		out.NodePorts = service.PrimaryNodePorts(n)
		return out, nil
	}
	var err error
	out.NodePorts, err = prefixes("nodeport-addresses", f.addresses)
	return out, err
}

// agentNodePorts are the flags that the agents of a cluster run with, by node. Nodes without a running agent have none.
func agentNodePorts(ctx context.Context, access *kube.Access) (map[string]*nodePortFlags, error) {
	cfg, err := access.Config()
	if err != nil {
		return nil, err
	}
	pods, err := agentPods(ctx, cfg, "")
	if err != nil {
		return nil, err
	}
	out := make(map[string]*nodePortFlags, len(pods))
	for i := range pods {
		f, err := nodePortsOf(&pods[i])
		if err != nil {
			return nil, err
		}
		out[pods[i].Spec.NodeName] = f
	}
	return out, nil
}

// nodePortsOf reads the flags of an agent's container, as the agent itself does.
func nodePortsOf(pod *corev1.Pod) (*nodePortFlags, error) {
	var f nodePortFlags
	fs := pflag.NewFlagSet("weft node", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	f.add(fs)
	for _, c := range pod.Spec.Containers[:min(1, len(pod.Spec.Containers))] {
		if err := fs.Parse(c.Args); err != nil {
			return nil, fmt.Errorf("read the flags of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	return &f, nil
}
