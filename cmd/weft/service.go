// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/kube"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/service"
)

// serviceFlags are common to the commands about Services.
type serviceFlags struct {
	world     worldFlags
	node      string
	nodePorts nodePortFlags
	output    string
}

func (f *serviceFlags) add(fs *pflag.FlagSet) {
	f.world.add(fs)
	fs.StringVar(&f.node, "node", "", "`node` to ask about (default: all)")
	fs.StringSliceVar(&f.nodePorts.addresses, "nodeport-addresses", nil, "`CIDRs` of the node addresses that serve NodePorts, or primary, as agents have it (default: what the cluster's agents have)")
}

// nodeTable is what one node decides.
type nodeTable struct {
	node  string
	table *service.Table
	scope service.Scope // where its node ports are
	api   *model.Node
}

// explain says what the node does with a Service, and why.
func (nt *nodeTable) explain(name model.Name) (service.Explanation, bool) {
	e, ok := nt.table.Explain(name)
	e.LimitNodePorts(nt.scope, nt.api)
	return e, ok
}

// tables makes the decisions of every node, or of --node, with the code that the agents run.
func (f *serviceFlags) tables(ctx context.Context) (*model.Delta, []nodeTable, error) {
	var d *model.Delta
	var agents map[string]*nodePortFlags
	if len(f.world.files) > 0 {
		c, err := f.world.manifests(f.world.files...)
		if err != nil {
			return nil, nil, err
		}
		d = c.Delta
	} else {
		cfg, err := f.world.access.Config()
		if err != nil {
			return nil, nil, err
		}
		if d, err = kube.Snapshot(ctx, cfg, kube.Services|kube.EndpointSlices|kube.Nodes); err != nil {
			return nil, nil, err
		}
		if agents, err = agentNodePorts(ctx, &f.world.access); err != nil && len(f.nodePorts.addresses) == 0 {
			fmt.Fprintln(os.Stderr, "weft: whether node ports are on some of the nodes' addresses only (--nodeport-addresses) is not known:", err)
		}
	}
	var out []nodeTable
	for _, name := range slices.Sorted(maps.Keys(d.Nodes)) {
		if f.node != "" && f.node != name {
			continue
		}
		t := service.NewTable(name)
		t.Update(d)
		flags := &f.nodePorts
		if a := agents[name]; a != nil && len(flags.addresses) == 0 {
			flags = a
		}
		scope, err := flags.scope(d.Nodes[name])
		if err != nil {
			return nil, nil, err
		}
		out = append(out, nodeTable{name, t, scope, d.Nodes[name]})
	}
	if len(out) == 0 && f.node != "" {
		return nil, nil, fmt.Errorf("there is no node %q: the nodes are %s", f.node, strings.Join(slices.Sorted(maps.Keys(d.Nodes)), ", "))
	}
	switch {
	case len(out) > 0:
	case len(f.world.files) > 0:
		return nil, nil, errors.New("there are no nodes in the manifests, and what is forwarded depends on the node: add some (kubectl get nodes -o yaml > nodes.yaml, then -f nodes.yaml)")
	default:
		return nil, nil, errors.New("there are no nodes, so nothing is forwarded anywhere")
	}
	return d, out, nil
}

func newServiceCommand() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "service NAME",
		Short: "Show every address of a Service, which endpoints serve it from each node, and why the others don't",
		Long: `Show every address and port of a Service (its frontends), which endpoints serve each one from each node, and why
the others don't: not ready, on another node while the traffic policy is Local, meant for another zone, terminating.

The answer is worked out from the API objects by the code that the node agents run.`,
		Example: `  weft service web -n shop
  weft service web -n shop --node node2 -o yaml
  weft service svc/shop/web
  weft service web -f manifests/`,
		GroupID: "person",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := readName(args[0], f.world.ns(), "svc", "service", "services")
			if err != nil {
				return err
			}
			d, tables, err := f.tables(cmd.Context())
			if err != nil {
				return err
			}
			view, err := viewService(name, tables)
			if err != nil {
				return err
			}
			var unknown error
			if view.NoEndpoints, unknown = f.noEndpoints(cmd.Context(), d, d.Services[name], tables[0]); unknown != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "weft: why a port has no endpoint is not known:", unknown)
			}
			err = writeView(cmd.OutOrStdout(), f.output, view, func(w io.Writer) { view.print(w, f.output == "wide") })
			if err == nil && unknown != nil {
				return exitCode{code: exitTrouble}
			}
			return err
		},
	}
	f.add(cmd.Flags())
	outputFlag(cmd, &f.output, "text", "wide", "json", "yaml")
	return cmd
}

// writeView writes a view in the form that -o names.
func writeView(w io.Writer, output string, v any, text func(io.Writer)) error {
	switch output {
	case "json":
		return writeJSON(w, v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	text(w)
	return nil
}

// serviceView is a Service as the nodes treat it; nodes that do the same are together.
type serviceView struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	NotServed string     `json:"notServed,omitempty"`
	From      []fromView `json:"from,omitempty"`
	Absent    []string   `json:"absent,omitempty"`

	NoEndpoints []emptyPort `json:"noEndpoints,omitempty"` // ports that nothing serves
}

// emptyPort is a port of a Service that has no endpoint at all, and why.
type emptyPort struct {
	Port string   `json:"port"`
	Why  []string `json:"why"`
}

type fromView struct {
	Nodes     []string       `json:"nodes"`
	Frontends []frontendView `json:"frontends"`
	Closed    []string       `json:"closed,omitempty"` // node ports that are on none of these nodes' addresses
}

type frontendView struct {
	Kind       string         `json:"kind"`
	Address    string         `json:"address"`
	Port       string         `json:"port,omitempty"`
	TargetPort string         `json:"targetPort,omitempty"`
	Action     string         `json:"action"`
	Summary    string         `json:"summary"`
	Endpoints  []endpointView `json:"endpoints,omitempty"`
}

type endpointView struct {
	Address   string `json:"address"`
	Pod       string `json:"pod,omitempty"`
	Node      string `json:"node,omitempty"`
	Zone      string `json:"zone,omitempty"`
	State     string `json:"state"`
	Used      bool   `json:"used"`
	Why       string `json:"why,omitempty"`
	WhyInside string `json:"whyInside,omitempty"` // for pods of the node and the node itself, under externalTrafficPolicy Local
	Inside    bool   `json:"usedInside,omitempty"`
}

func viewService(name model.Name, tables []nodeTable) (serviceView, error) {
	v := serviceView{Namespace: name.Namespace, Name: name.Name}
	index := make(map[string]int)
	for _, nt := range tables {
		e, ok := nt.explain(name)
		if !ok {
			return v, fmt.Errorf("there is no Service %s: -n chooses the namespace", name)
		}
		if e.NotServed != "" {
			v.NotServed = e.NotServed
			return v, nil
		}
		v.Absent = e.Absent
		var fes []frontendView
		for _, fe := range e.Frontends {
			fes = append(fes, viewFrontend(&fe))
		}
		key := fmt.Sprintf("%+v %q", fes, e.Closed)
		i, ok := index[key]
		if !ok {
			i = len(v.From)
			index[key] = i
			v.From = append(v.From, fromView{Frontends: fes, Closed: e.Closed})
		}
		v.From[i].Nodes = append(v.From[i].Nodes, nt.node)
	}
	return v, nil
}

// noEndpoints says of a Service's ports without an endpoint why they have none. Pods are asked for only then.
func (f *serviceFlags) noEndpoints(ctx context.Context, d *model.Delta, s *model.Service, nt nodeTable) ([]emptyPort, error) {
	e, _ := nt.explain(s.Name)
	var out []emptyPort
	var w *explain.World
	for i := range s.Ports {
		p := &s.Ports[i]
		served := func(fe service.FrontendReport) bool {
			return fe.Port == p.Name && fe.Frontend.Protocol == p.Protocol && len(fe.Endpoints) > 0
		}
		if len(e.Frontends) == 0 || slices.ContainsFunc(e.Frontends, served) {
			continue
		}
		if w == nil {
			var err error
			if w, err = f.worldWithPods(ctx, d); err != nil {
				return nil, err
			}
		}
		out = append(out, emptyPort{Port: fmt.Sprintf("%d/%s", p.Port, p.Protocol), Why: w.NoEndpoints(s, p)})
	}
	return out, nil
}

// worldWithPods is a World of what the tables were made of, and pods.
func (f *serviceFlags) worldWithPods(ctx context.Context, d *model.Delta) (*explain.World, error) {
	if len(f.world.files) == 0 {
		cfg, err := f.world.access.Config()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
		defer cancel()
		pods, err := kube.Snapshot(ctx, cfg, kube.Pods)
		if err != nil {
			return nil, err
		}
		d.Pods = pods.Pods
	}
	return explain.NewWorld(d, explain.Options{})
}

func viewFrontend(fe *service.FrontendReport) frontendView {
	out := frontendView{Kind: fe.Kind.String(), Address: fe.Frontend.String(), Port: fe.Port, TargetPort: fe.TargetPort,
		Action: fe.Rule.Main.Action.String(), Summary: fe.Text}
	if fe.LostTo.Name != "" {
		out.Action = "none"
	}
	for _, ep := range fe.Endpoints {
		out.Endpoints = append(out.Endpoints, endpointView{Address: ep.Addr.String(), Pod: ep.Pod, Node: ep.Node, Zone: ep.Zone,
			State: ep.State, Used: ep.Used, Why: ep.Why, Inside: ep.UsedInside, WhyInside: ep.WhyInside})
	}
	return out
}

func (v *serviceView) print(w io.Writer, wide bool) {
	fmt.Fprintf(w, "Service %s/%s\n", v.Namespace, v.Name)
	if v.NotServed != "" {
		fmt.Fprintf(w, "No node forwards for it: %s.\n", v.NotServed)
		return
	}
	for _, from := range v.From {
		where := "node " + from.Nodes[0]
		if len(from.Nodes) > 1 {
			where = "nodes " + strings.Join(from.Nodes, ", ")
		}
		if len(v.From) == 1 && len(from.Nodes) > 1 {
			where = fmt.Sprintf("every node (%d)", len(from.Nodes))
		}
		fmt.Fprintf(w, "\nFrom %s:\n", where)
		for _, fe := range from.Frontends {
			fe.print(w, wide)
		}
		for _, c := range from.Closed {
			fmt.Fprintf(w, "  not open: %s\n", c)
		}
	}
	for _, p := range v.NoEndpoints {
		fmt.Fprintf(w, "\nWhy port %s has no endpoint:\n", p.Port)
		for _, why := range p.Why {
			fmt.Fprintf(w, "  %s\n", why)
		}
	}
	if len(v.Absent) > 0 {
		fmt.Fprintln(w, "\nNot forwarded by any node:")
	}
	for _, a := range v.Absent {
		fmt.Fprintf(w, "  %s\n", a)
	}
}

func (fe *frontendView) print(w io.Writer, wide bool) {
	port := ""
	if fe.Port != "" {
		port = fmt.Sprintf(" (%s)", fe.Port)
	}
	fmt.Fprintf(w, "  %s %s%s: %s\n", fe.Kind, fe.Address, port, fe.Summary)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, ep := range fe.Endpoints {
		used := "used"
		if !ep.Used {
			used = "not used: " + ep.Why
			if ep.Inside {
				used = "only from this node and its pods: " + ep.Why
			}
		}
		cells := []string{"    " + ep.Address, orDash(ep.Pod), orDash(ep.Node)}
		if wide {
			cells = append(cells, orDash(ep.Zone), ep.State)
		}
		fmt.Fprintln(t, strings.Join(append(cells, used), "\t"))
	}
	_ = t.Flush() // as the writes to w before it, it has nobody to tell
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// newStatusCommand groups the overviews.
func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Overviews of what weft does in a cluster",
		GroupID: "person",
		Args:    cobra.NoArgs,
	}
	cmd.AddCommand(newStatusServicesCommand())
	return cmd
}

func newStatusServicesCommand() *cobra.Command {
	var f serviceFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "services",
		Short: "Show how each Service fares: its addresses, its endpoints, and where it is refused or dropped",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			namespace := f.world.ns()
			if all {
				namespace = ""
			} else if err := f.world.namespaceIsThere(cmd.Context()); err != nil {
				return err
			}
			d, tables, err := f.tables(cmd.Context())
			if err != nil {
				return err
			}
			rows := statusRows(d, tables, namespace)
			return writeView(cmd.OutOrStdout(), f.output, rows, func(w io.Writer) {
				if len(rows) == 0 {
					nothingFound(cmd.ErrOrStderr(), namespace)
					return
				}
				printStatus(w, rows)
			})
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "Services of all namespaces")
	outputFlag(cmd, &f.output, "text", "json", "yaml")
	return cmd
}

// statusRow is one Service in the overview.
type statusRow struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	Frontends int      `json:"frontends"`
	Ready     int      `json:"readyEndpoints"`
	Endpoints int      `json:"endpoints"`
	Problems  []string `json:"problems,omitempty"`
	Note      string   `json:"note,omitempty"`
	Pending   bool     `json:"addressPending,omitempty"` // a load balancer's
}

func statusRows(d *model.Delta, tables []nodeTable, namespace string) []statusRow {
	out := []statusRow{}
	for _, name := range slices.SortedFunc(maps.Keys(d.Services), model.Name.Compare) {
		if namespace != "" && name.Namespace != namespace {
			continue
		}
		row := statusRow{Namespace: name.Namespace, Name: name.Name, Type: d.Services[name].Type.String()}
		row.Pending = d.Services[name].Type == model.LoadBalancer && len(d.Services[name].Ingress) == 0
		problems := make(map[string][]string) // what, and on which nodes
		var order []string
		for i, nt := range tables {
			e, _ := nt.explain(name)
			if row.Note = e.NotServed; row.Note != "" {
				if d.Services[name].Headless {
					row.Ready, row.Endpoints = countHeadless(d, name)
				}
				break
			}
			row.Frontends = len(e.Frontends)
			if i == 0 {
				row.Ready, row.Endpoints = countEndpoints(&e)
			}
			for _, fe := range e.Frontends {
				if fe.Rule.Main.Action == service.Forward && fe.LostTo.Name == "" {
					continue
				}
				what := fmt.Sprintf("%s %s %s", fe.Kind, fe.Frontend, fe.Text)
				if problems[what] == nil {
					order = append(order, what)
				}
				problems[what] = append(problems[what], nt.node)
			}
		}
		for _, what := range order {
			if len(problems[what]) < len(tables) {
				what += " (on " + strings.Join(problems[what], ", ") + ")"
			}
			row.Problems = append(row.Problems, what)
		}
		out = append(out, row)
	}
	return out
}

// countEndpoints counts the addresses and ports behind a Service, and those that are ready.
func countEndpoints(e *service.Explanation) (ready, all int) {
	seen := make(map[string]bool)
	for _, fe := range e.Frontends {
		for _, ep := range fe.Endpoints {
			key := ep.Addr.String() + fe.Frontend.Protocol.String()
			if seen[key] {
				continue
			}
			seen[key] = true
			all++
			if ep.State == "ready" {
				ready++
			}
		}
	}
	return ready, all
}

// countHeadless counts the addresses that a headless Service's name leads to, and those of them that are ready.
func countHeadless(d *model.Delta, name model.Name) (ready, all int) {
	seen := map[netip.Addr]bool{} // whether it is ready
	for n, s := range d.EndpointSlices {
		if n.Namespace != name.Namespace || s.Service != name.Name {
			continue
		}
		for _, ep := range s.Endpoints {
			for _, a := range ep.Addresses {
				seen[a] = seen[a] || ep.Ready
			}
		}
	}
	for _, is := range seen {
		if is {
			ready++
		}
	}
	return ready, len(seen)
}

func printStatus(w io.Writer, rows []statusRow) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAMESPACE\tNAME\tTYPE\tFRONTENDS\tENDPOINTS READY\tSTATUS")
	for _, r := range rows {
		status := "forwarded"
		if r.Pending {
			status += "; the load balancer's address is pending (weft addresses says why)"
		}
		if r.Note != "" {
			status = r.Note
		} else if len(r.Problems) > 0 {
			status = r.Problems[0]
			if n := len(r.Problems) - 1; n > 0 {
				status += fmt.Sprintf(" (and %d more: weft service %s -n %s)", n, r.Name, r.Namespace)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d/%d\t%s\n", r.Namespace, r.Name, r.Type, r.Frontends, r.Ready, r.Endpoints, status)
	}
	_ = t.Flush() // as the writes to w before it, it has nobody to tell
}
