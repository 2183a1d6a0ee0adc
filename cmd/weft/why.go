// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/explain"
	"github.com/weft-net/weft/internal/model"
	"github.com/weft-net/weft/internal/policy"
)

// Exit statuses, besides 0.
const (
	exitNo      = 1 // blocked; findings; differences
	exitTrouble = 2 // the question could not be answered, or not whole: a bad command line, no such object, no cluster
	exitBug     = 3 // the kernel does not do what the model says
)

func newWhyCommand() *cobra.Command {
	var f worldFlags
	var protocol, output string
	var probes bool
	var request explain.Request
	var headers, resolve []string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "why FROM TO[:PORT]",
		Short: "Where a connection goes, and why it is allowed or blocked",
		Long: `Where a connection goes, and why it is allowed or blocked: name, Service, endpoints, policies at both
ends, route. It asks the same code that forwards and enforces.

FROM is a pod, a workload (deploy/NAME, sts/NAME, ds/NAME), node/NAME, an address, or "outside".
TO is one of these, a Service, a DNS name, or a URL: then it is also told which Gateway or Ingress, listener, route, rule
and backend serve it. Names are NAME, NAMESPACE/NAME, KIND/NAME or KIND/NAMESPACE/NAME.

The address of a name beyond the cluster is what --resolve says or, with a cluster, what the DNS of this machine says. Where
it is not known, and the policies do not judge all addresses alike, the answer is that it depends.

With --probe real packets are sent too, from the source's network namespace, and compared with what was said.

The exit status is 0 if it is allowed, 1 if it is blocked (or only some endpoints can be reached, or it depends), 2 if the question
can't be answered, 3 if a probe shows that the kernel does not do what it should.

` + rightsNeeded,
		Example: `  weft why deploy/web db:5432
  weft why shop/web-6f7d cart.shop.svc.cluster.local:80
  weft why outside svc/shop/frontend
  weft why deploy/web db:5432 --probe
  weft why outside https://shop.example.com/cart -H "Cookie: canary=1"
  weft why -f manifests/ deploy/web svc/db:5432
  weft why -f manifests/ deploy/web api.example.com:443 --resolve api.example.com=198.51.100.7`,
		GroupID: "person",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := readHeaders(&request, headers); err != nil {
				return exitCode{exitTrouble, err}
			}
			a, err := f.why(cmd, args[0], args[1], protocol, &request, resolve)
			if err != nil {
				return exitCode{exitTrouble, err}
			}
			switch {
			case probes && len(f.files) > 0:
				return exitCode{exitTrouble, errors.New("--probe sends packets in a cluster; there is none behind -f")}
			case probes:
				if err := f.probe(cmd.Context(), a, patience); err != nil {
					return exitCode{exitTrouble, err}
				}
			}
			if output == "json" {
				if err := writeJSON(cmd.OutOrStdout(), a); err != nil {
					return exitCode{exitTrouble, err}
				}
			} else {
				explain.Print(cmd.OutOrStdout(), a)
			}
			switch {
			case len(a.Disagreements()) > 0:
				return exitCode{code: exitBug}
			case !a.Allowed:
				return exitCode{code: exitNo}
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&f.domain, "cluster-domain", "", "the cluster's DNS `domain` (default: what its weft or CoreDNS has, else cluster.local)")
	cmd.Flags().StringVar(&protocol, "protocol", "tcp", "tcp, udp or sctp")
	cmd.Flags().StringVarP(&request.Method, "request", "X", "GET", "`method` of a request to a URL")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "`header` of a request to a URL, \"Name: value\" (can be given several times)")
	cmd.Flags().StringArrayVar(&resolve, "resolve", nil, "`NAME=ADDRESS` of a name beyond the cluster (can be given several times)")
	cmd.Flags().BoolVar(&probes, "probe", false, "send real packets from the source too, and compare (it execs into the agent of the source's node)")
	cmd.Flags().DurationVar(&patience, "probe-patience", 3*time.Second, "how long a probe waits for an answer")
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

// readHeaders reads headers as "Name: value".
func readHeaders(r *explain.Request, in []string) error {
	r.Headers = map[string]string{}
	for _, h := range in {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return fmt.Errorf("--header=%q: want \"Name: value\"", h)
		}
		r.Headers[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	return nil
}

// readResolve reads --resolve.
func readResolve(in []string) (map[string][]netip.Addr, error) {
	out := map[string][]netip.Addr{}
	for _, s := range in {
		name, addr, ok := strings.Cut(s, "=")
		a, err := netip.ParseAddr(addr)
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("--resolve=%q: want NAME=ADDRESS, such as api.example.com=198.51.100.7", s)
		}
		name = policy.NormalName(name)
		out[name] = append(out[name], a.Unmap())
	}
	return out, nil
}

// lookUp asks this machine's DNS for the names beyond the cluster that a destination leads to and nobody has told of.
func lookUp(ctx context.Context, w *explain.World, names []string) {
	for _, n := range names {
		if len(w.Known[n]) > 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, lookUpPatience)
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", n+".")
		cancel()
		if err != nil {
			continue // then it depends
		}
		for _, a := range addrs {
			w.Known[n] = append(w.Known[n], a.Unmap())
		}
		w.KnownBy = ", as the DNS of this machine says"
	}
}

// lookUpPatience is how long this machine's DNS may take.
const lookUpPatience = 3 * time.Second

func (f *worldFlags) why(cmd *cobra.Command, from, to, protocol string, request *explain.Request, resolve []string) (*explain.Answer, error) {
	proto, err := model.ParseProtocol(protocol)
	if err != nil {
		return nil, err
	}
	known, err := readResolve(resolve)
	if err != nil {
		return nil, err
	}
	load := f.load
	if strings.Contains(to, "://") {
		load = f.loadRoutes
	}
	w, err := load(cmd.Context())
	if err != nil {
		return nil, err
	}
	src, err := w.ParseTarget(from, f.ns(), false)
	if err != nil {
		return nil, err
	}
	ns := f.ns()
	if len(src.Pods) > 0 {
		ns = src.Pods[0].Namespace // a name alone means what it does where the source is
	}
	dst, err := w.ParseTarget(to, ns, true)
	if err != nil {
		return nil, err
	}
	w.Known = known
	if len(f.files) == 0 {
		lookUp(cmd.Context(), w, w.Beyond(dst, ns))
	}
	if dst.Request != nil {
		dst.Request.Method, dst.Request.Headers = request.Method, request.Headers
	}
	return w.Why(src, dst, proto)
}
