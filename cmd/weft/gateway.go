// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/configsync"
	"github.com/weft-net/weft/internal/gateway"
	"github.com/weft-net/weft/internal/otlp"
	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/waf"
)

func newGatewayCommand() *cobra.Command {
	var logging logFlags
	var access string
	var share float64
	var file, collector string
	var sync configsync.Client
	c := gateway.Config{Metrics: prometheus.NewRegistry()}
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "The proxy of a Gateway: HTTP, HTTP/2, gRPC, TLS, TCP and UDP",
		Long: `The proxy of a Gateway: HTTP, HTTP/2, gRPC, TLS, TCP and UDP.

It serves the tables that it is given, has no access to the Kubernetes API, and needs no privilege but that of binding
its ports. With --controller it gets the tables from weft's controller, as a Gateway's pods do. With --config it reads
them from a file, and again whenever the file changes.`,
		GroupID: "cluster",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logging.setup()
			if err != nil {
				return err
			}
			c.Log, c.Proxy.Log = log, log
			c.Proxy.NewFirewall = waf.New(log)
			switch {
			case (file == "") == (sync.Server == ""):
				return errors.New("what to serve? Say --config=FILE or --controller=HOST:PORT")
			case file != "":
				c.Source = gateway.File{Path: file, Log: log}
			default:
				if sync.Identity == "" {
					return errors.New("--controller needs --identity: the directory with tls.crt, tls.key and ca.crt")
				}
				sync.Log, sync.Pod = log, os.Getenv("POD_NAME")
				c.Source = &sync
				c.Proxy.TicketSecrets = ticketSecrets(sync.Identity, log)
			}
			if access != "off" {
				if access != "json" && access != "combined" {
					return fmt.Errorf("--access-log=%s: want off, json or combined", access)
				}
				var closeLog func()
				c.Proxy.AccessLog, closeLog = proxy.NewAccessLog(os.Stdout, access == "json", share)
				defer closeLog()
			}
			if collector != "" {
				exporter, err := otlp.New(collector, traceResource(), log)
				if err != nil {
					return fmt.Errorf("--otlp-endpoint: %w", err)
				}
				defer exporter.Close()
				c.Proxy.Tracer = exporter
			}
			c.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
			return gateway.Run(cmd.Context(), c)
		},
	}
	fs := cmd.Flags()
	logging.add(fs)
	fs.StringVar(&file, "config", "", "`file` with the tables, YAML or JSON")
	fs.StringVar(&sync.Server, "controller", "", "`HOST:PORT` of the controllers' configuration stream, all addresses of the host")
	fs.StringVar(&sync.Identity, "identity", "", "`directory` with the client certificate for the controller: tls.crt, tls.key, ca.crt")
	fs.StringVar(&sync.Keep, "keep", "", "`file` in memory-backed storage to keep the controller's configuration in; empty for none")
	fs.StringVar(&access, "access-log", "off", "access log on standard output: off, json or combined")
	fs.Float64Var(&share, "access-log-share", 1, "share of requests that are logged, 0 to 1")
	fs.StringVar(&collector, "otlp-endpoint", "", "`URL` of an OpenTelemetry collector that gets spans of requests, such as http://collector:4318; empty for none")
	fs.Float64Var(&c.Proxy.TraceShare, "trace-share", 0, "share of requests, of those that belong to no trace, that begin one, 0 to 1")
	fs.StringVar(&c.Listen, "metrics-bind-address", ":9642", "`address` for /metrics, /livez, /healthz and /readyz; empty for none")
	fs.DurationVar(&c.Drain, "drain", 30*time.Second, "how long requests under way may take after the signal to end")
	fs.DurationVar(&c.Delay, "drain-delay", 0, "how long to go on taking connections after the signal to end")
	fs.DurationVar(&c.Proxy.IdleTimeout, "idle-timeout", 75*time.Second, "how long a client's connection is kept without a request")
	fs.DurationVar(&c.Proxy.HeadTimeout, "header-timeout", 10*time.Second, "how long a client may take to send a request's head")
	fs.DurationVar(&c.Proxy.BodyTimeout, "body-timeout", time.Minute, "how long a client may send nothing of a body")
	fs.DurationVar(&c.Proxy.SendTimeout, "send-timeout", time.Minute, "how long a client may take nothing of an answer")
	fs.DurationVar(&c.Proxy.TunnelIdle, "tunnel-idle", time.Hour, "for how long nothing may move in a TCP or TLS connection, an upgraded one (WebSocket) or a call of gRPC")
	fs.DurationVar(&c.Proxy.UDPIdle, "udp-idle", time.Minute, "for how long nothing may move between a client of UDP and its endpoint")
	fs.Int64Var(&c.Proxy.MaxConnections, "max-connections", 65536, "client connections at a time; more are closed at once")
	cmd.AddCommand(newGatewayRoutesCommand())
	return cmd
}

// ticketSecrets reads what TLS session tickets are sealed with. What can't be read is told, once as long as that is so.
func ticketSecrets(identity string, log *slog.Logger) func() []proxy.TicketSecret {
	said := ""
	return func() (out []proxy.TicketSecret) {
		all, err := configsync.ReadTickets(identity)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != said && err != nil {
			log.Warn("TLS sessions go on at this replica only", "error", err)
		}
		said = text
		for _, t := range all {
			out = append(out, proxy.TicketSecret{From: t.From, Secret: t.Secret})
		}
		return out
	}
}

// traceResource says which gateway spans come from, as far as the pod knows.
func traceResource() map[string]string {
	out := map[string]string{}
	for attribute, env := range map[string]string{"k8s.pod.name": "POD_NAME", "k8s.namespace.name": "POD_NAMESPACE"} {
		if v := os.Getenv(env); v != "" {
			out[attribute] = v
		}
	}
	return out
}
