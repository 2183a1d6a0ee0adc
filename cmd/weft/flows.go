// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"

	"github.com/weft-net/weft/internal/flowlog"
)

// flowFlags are what "weft flows" can be told.
type flowFlags struct {
	worldFlags
	all, follow, local bool
	node, output       string
	socket             string

	filter  flowlog.Filter
	verdict string
	address string
	since   time.Duration
}

func newFlowsCommand() *cobra.Command {
	var f flowFlags
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Which flows policies dropped, and why",
		Long: `Which flows policies dropped, and why: those that the nodes' agents still remember, and with --follow those to come.
It asks each agent by way of "exec", so that whoever may exec into weft's pods, and nobody else, sees flows.

An agent that can't be reached is named on standard error, and the exit status is 2 as the answer is not whole.

Of what is dropped a few packets a second are reported for each chain of policies; the metric
weft_policy_dropped_packets_total counts all. Admitted connections are reported where the agents run with
--log-admitted.`,
		Example: `  weft flows -n shop --follow
  weft flows -A --verdict dropped -o json
  weft flows -n shop --service db --since 5m -o wide`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	f.addCluster(fs)
	fs.BoolVarP(&f.all, "all-namespaces", "A", false, "flows from and to pods of all namespaces")
	fs.BoolVarP(&f.follow, "follow", "w", false, "go on with those to come")
	fs.StringVar(&f.filter.Pod, "pod", "", "flows from and to this `pod` only")
	fs.StringVar(&f.address, "address", "", "flows from and to this `address` or CIDR only")
	fs.StringVar(&f.filter.Service, "service", "", "flows that asked this `Service` only")
	fs.StringVar(&f.filter.Policy, "policy", "", "flows that this `policy` dropped only")
	fs.StringVar(&f.filter.Direction, "direction", "", "flows that policies of this `side` dropped only: ingress or egress")
	fs.StringVar(&f.filter.Protocol, "protocol", "", "flows of this `protocol` only: tcp, udp, sctp, icmp or icmpv6")
	fs.Uint16Var(&f.filter.Port, "port", 0, "flows to this `port` only")
	fs.DurationVar(&f.since, "since", 0, "flows of the last so many seconds, minutes or hours only, as 5m")
	fs.StringVar(&f.node, "node", "", "ask the agent of this `node` only")
	fs.StringVar(&f.verdict, "verdict", "", "dropped or admitted (default: both)")
	fs.BoolVar(&f.local, "local", false, "ask the agent of this machine by its socket, not the cluster")
	fs.StringVar(&f.socket, "socket", flowlog.DefaultSocket, "`path` of that socket")
	outputFlag(cmd, &f.output, "text", "wide", "json")
	return cmd
}

func (f *flowFlags) run(ctx context.Context, out, errOut io.Writer) error {
	filter, err := f.readFilter()
	if err != nil {
		return err
	}
	if !f.all && (f.namespace != "" || !f.local) {
		filter.Namespace = f.ns()
	}
	p := &flowPrinter{out: out, err: errOut, format: f.output}
	if f.local {
		return flowlog.Query(ctx, f.socket, filter, f.follow, p.print)
	}
	cfg, err := f.access.Config()
	if err != nil {
		return err
	}
	pods, err := agentPods(ctx, cfg, f.node)
	if err != nil {
		return err
	}
	if !f.all {
		if err := f.namespaceIsThere(ctx); err != nil {
			return err
		}
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	missing := notThere(ctx, client, &filter)
	if f.follow {
		for _, what := range missing { // it may come
			fmt.Fprintln(errOut, "weft:", what)
		}
	}
	args := f.agentArgs(&filter)
	err = f.ask(ctx, pods, p, func(pod *corev1.Pod, each func(*flowlog.Event) error) error {
		return execAgent(ctx, cfg, pod, agentPatience, args, func(r io.Reader) error { return flowlog.Decode(bufio.NewReader(r), each) })
	})
	if err != nil || p.begun || f.follow {
		return err
	}
	if len(missing) > 0 {
		return exitCode{exitTrouble, errors.New(strings.Join(missing, "; "))}
	}
	if f.output != "json" {
		nothingFound(errOut, filter.Namespace)
	}
	return nil
}

// flowProtocols are those that flows have.
var flowProtocols = []string{"tcp", "udp", "sctp", "icmp", "icmpv6"}

// readFilter reads the flags that choose flows.
func (f *flowFlags) readFilter() (flowlog.Filter, error) {
	filter := f.filter
	filter.Verdict = flowlog.Verdict(f.verdict)
	if f.verdict != "" && filter.Verdict != flowlog.Dropped && filter.Verdict != flowlog.Admitted {
		return filter, fmt.Errorf("--verdict=%s: want dropped or admitted", f.verdict)
	}
	if d := filter.Direction; d != "" && d != "ingress" && d != "egress" {
		return filter, fmt.Errorf("--direction=%s: want ingress or egress", d)
	}
	if p := filter.Protocol; p != "" && !slices.Contains(flowProtocols, strings.ToLower(p)) {
		return filter, fmt.Errorf("--protocol=%s: want %s", p, strings.Join(flowProtocols, ", "))
	}
	if f.address != "" {
		p, err := netip.ParsePrefix(f.address)
		if a, aerr := netip.ParseAddr(f.address); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return filter, fmt.Errorf("--address=%s: want an address or a CIDR", f.address)
		}
		filter.Addr = p
	}
	if f.since > 0 {
		filter.Since = time.Now().Add(-f.since)
	}
	return filter, nil
}

// ask asks all agents at once. Without --follow the events of all come sorted by time. An agent that does not answer is
// named as soon as that is known.
func (f *flowFlags) ask(ctx context.Context, pods []corev1.Pod, p *flowPrinter, one func(*corev1.Pod, func(*flowlog.Event) error) error) error {
	var mu sync.Mutex
	var kept []flowlog.Event
	each := func(e *flowlog.Event) error {
		if f.follow {
			return p.print(e)
		}
		mu.Lock()
		defer mu.Unlock()
		kept = append(kept, *e)
		return nil
	}
	var silent []string
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			err := one(&pods[i], each)
			if err == nil || ctx.Err() != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			silent = append(silent, pods[i].Spec.NodeName)
			fmt.Fprintf(p.err, "weft: node %s: %v\n", pods[i].Spec.NodeName, err)
		})
	}
	wg.Wait()
	slices.SortStableFunc(kept, func(a, b flowlog.Event) int { return a.Time.Compare(b.Time) })
	for i := range kept {
		if err := p.print(&kept[i]); err != nil {
			return err
		}
	}
	if ctx.Err() != nil && !f.follow { // who was asked last had no time to answer
		return ctx.Err()
	}
	switch slices.Sort(silent); len(silent) {
	case 0:
		return nil
	case len(pods):
		return errors.New("no agent answered")
	}
	return fmt.Errorf("these are not all flows: no answer from %s", strings.Join(silent, ", "))
}

// agentArgs are the command that an agent is asked by.
func (f *flowFlags) agentArgs(filter *flowlog.Filter) []string {
	args := []string{"weft", "flows", "--local", "-o", "json"}
	for _, flag := range []struct{ name, value string }{
		{"verdict", f.verdict}, {"pod", filter.Pod}, {"namespace", filter.Namespace}, {"address", f.address}, {"service", filter.Service},
		{"policy", filter.Policy}, {"direction", filter.Direction}, {"protocol", filter.Protocol},
	} {
		if flag.value != "" {
			args = append(args, "--"+flag.name, flag.value)
		}
	}
	if filter.Port != 0 {
		args = append(args, "--port", strconv.Itoa(int(filter.Port)))
	}
	if f.since > 0 {
		args = append(args, "--since", f.since.String())
	}
	if filter.Namespace == "" {
		args = append(args, "-A")
	}
	if f.follow {
		args = append(args, "--follow")
	}
	return args
}

// flowPrinter writes events one at a time.
type flowPrinter struct {
	mu       sync.Mutex
	out, err io.Writer
	format   string
	begun    bool
}

func (p *flowPrinter) print(e *flowlog.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	begun := p.begun
	p.begun = true
	if p.format == "json" {
		return json.NewEncoder(p.out).Encode(e)
	}
	if !begun {
		flowlog.Header(p.out, p.format == "wide")
	}
	flowlog.Print(p.out, e, p.format == "wide")
	return nil
}
