// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/addresses"
	"github.com/weft-net/weft/internal/controller"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/kube"
)

func newControllerCommand() *cobra.Command {
	var access kube.Access
	var logging logFlags
	var leaseNamespace, listen string
	var cleanup bool
	opts := addresses.Options{Class: addresses.DefaultClass, Unclassed: true}
	var gateways gatewayFlags
	cmd := &cobra.Command{
		Use:     "controller",
		Short:   "Serve Gateway API and Ingress, give LoadBalancer Services their addresses; of several replicas one leads",
		GroupID: "cluster",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			log, err := logging.setup()
			if err != nil {
				return err
			}
			cfg, err := access.Config()
			if err != nil {
				return err
			}
			if cleanup {
				services, err := controller.Cleanup(ctx, cfg, opts)
				ingresses, ingressErr := controller.CleanupIngresses(ctx, cfg)
				classes, gateways, gatewayErr := controller.CleanupGateways(ctx, cfg)
				fmt.Fprintf(cmd.OutOrStdout(), "weft has let go of %d Services, %d Ingresses, %d GatewayClasses and %d Gateways\n", services, ingresses, classes, gateways)
				return errors.Join(err, ingressErr, gatewayErr)
			}
			if leaseNamespace == "" {
				leaseNamespace = access.Namespace()
			}
			record, err := kube.NewRecorder(ctx, cfg, "weft-controller", "")
			if err != nil {
				return err
			}
			told := controller.Logged(record, log)
			host, err := os.Hostname()
			if err != nil {
				return err
			}
			reg := prometheus.NewRegistry()
			reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
			// Gateways come first: what changes is on its way to their pods before anything else is made of it.
			parts, err := gateways.parts(cfg, leaseNamespace, told, log)
			if err != nil {
				return err
			}
			parts = append(parts, controller.NewLoadBalancers(cfg, opts, told, log), controller.NewServiceEvents(told))
			c, err := controller.New(controller.Config{
				API:       cfg,
				Parts:     parts,
				Record:    record,
				Identity:  host + "_" + rand.Text(), // the same host name again is not the same process
				Namespace: leaseNamespace, Lease: "weft-controller",
				Metrics: reg, Log: log,
			})
			if err != nil {
				return err
			}
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error { return c.Run(ctx) })
			g.Go(func() error { return health.Serve(ctx, listen, health.Handler(reg, c.Live, c.Ready)) })
			return g.Wait()
		},
	}
	fs := cmd.Flags()
	access.AddFlags(fs)
	logging.add(fs)
	fs.StringVar(&leaseNamespace, "leader-election-namespace", "", "namespace of the Lease by which the replicas choose their leader (default: the pod's own)")
	fs.BoolVar(&cleanup, "cleanup", false, "take addresses, conditions, annotations and finalizers off all Services, Ingresses, GatewayClasses and Gateways that have them from weft, and leave; for when weft is uninstalled")
	fs.StringVar(&listen, "metrics-bind-address", ":9641", "`address` for /metrics, /livez, /healthz and /readyz")
	addLoadBalancerFlags(fs, &opts)
	gateways.add(fs)
	return cmd
}
