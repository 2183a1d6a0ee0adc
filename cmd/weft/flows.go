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
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

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

Of what is dropped a few packets a second are reported for each chain of policies; the metric
weft_policy_dropped_packets_total counts all. Admitted connections are reported where the agents run with
--log-admitted.`,
		Example: `  weft flows -n shop --follow
  weft flows -A --verdict dropped -o json
  weft flows -n shop --service db --since 5m -o wide`,
		GroupID: "person",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
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

func (f *flowFlags) run(ctx context.Context, out io.Writer) error {
	filter, err := f.readFilter()
	if err != nil {
		return err
	}
	if !f.all && (f.namespace != "" || !f.local) {
		filter.Namespace = f.ns()
	}
	p := &flowPrinter{out: out, format: f.output}
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
	return f.ask(ctx, cfg, pods, filter, p)
}

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

// ask asks all agents at once. Without --follow the events of all come sorted by time.
func (f *flowFlags) ask(ctx context.Context, cfg *rest.Config, pods []corev1.Pod, filter flowlog.Filter, p *flowPrinter) error {
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
	errs := make([]error, len(pods))
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			if err := f.askOne(ctx, cfg, &pods[i], filter, each); err != nil && ctx.Err() == nil {
				errs[i] = fmt.Errorf("node %s: %w", pods[i].Spec.NodeName, err)
				fmt.Fprintln(os.Stderr, "weft:", errs[i])
			}
		})
	}
	wg.Wait()
	slices.SortStableFunc(kept, func(a, b flowlog.Event) int { return a.Time.Compare(b.Time) })
	for i := range kept {
		if err := p.print(&kept[i]); err != nil {
			return err
		}
	}
	if !slices.Contains(errs, nil) {
		return errors.New("no agent answered")
	}
	return nil
}

func (f *flowFlags) askOne(ctx context.Context, cfg *rest.Config, pod *corev1.Pod, filter flowlog.Filter, each func(*flowlog.Event) error) error {
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
	return execAgent(ctx, cfg, pod, args, func(r io.Reader) error { return flowlog.Decode(bufio.NewReader(r), each) })
}

// flowPrinter writes events one at a time.
type flowPrinter struct {
	mu     sync.Mutex
	out    io.Writer
	format string
	begun  bool
}

func (p *flowPrinter) print(e *flowlog.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.format == "json" {
		return json.NewEncoder(p.out).Encode(e)
	}
	if !p.begun {
		p.begun = true
		flowlog.Header(p.out, p.format == "wide")
	}
	flowlog.Print(p.out, e, p.format == "wide")
	return nil
}
