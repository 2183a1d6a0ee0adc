// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/supervisor"
)

func newListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name the labs that you run",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := control.List(os.Getuid())
			for _, name := range names {
				fmt.Println(name)
			}
			return err
		},
	}
}

func newStatusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show what runs in a lab, where, and what it costs",
		Example: "  weft lab status\n  weft lab status -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var s supervisor.Status
			if err := ask(supervisor.OpStatus, nil, &s); err != nil {
				return err
			}
			switch output {
			case "json":
				return printJSON(s)
			case "":
				return printStatus(os.Stdout, s)
			}
			return fmt.Errorf("-o %s: want json, or nothing", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`json`, for programs")
	return cmd
}

func newImagesCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images that a lab has without asking a registry",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var all []supervisor.ImageInfo
			if err := ask(supervisor.OpImages, nil, &all); err != nil {
				return err
			}
			if output == "json" {
				return printJSON(all)
			}
			t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "REFERENCE\tORIGIN\tSIZE\tID")
			for _, i := range all {
				fmt.Fprintf(t, "%s\t%s\t%s\t%.19s\n", i.Ref, i.Origin, mib(i.Size), i.ID)
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`json`, for programs")
	return cmd
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printStatus(out io.Writer, s supervisor.Status) error {
	state := "starting"
	if s.Ready {
		state = "ready"
	}
	fmt.Fprintf(out, "Lab %s: %s, %s, up %v, %s of memory (%s of it files)\nAPI server on this machine: %s\n",
		s.Name, state, s.Families, time.Duration(s.UptimeS)*time.Second, mib(s.Memory.Total), mib(s.Memory.Files), s.Server)
	if s.APIError != "" {
		fmt.Fprintln(out, "The API server does not answer:", s.APIError)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nNODE\tSTATE\tADDRESSES\tPODS\tZONE\tMEMORY\tRESTARTS\t")
	for _, n := range s.Nodes {
		restarts := 0
		for _, service := range n.Services {
			restarts += service.Restarts
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", n.Name, n.State, addresses(n.Addresses), strings.Join(n.PodCIDRs, ","), n.Zone,
			mib(s.Memory.Processes[n.Name]), restarts, n.Message)
	}
	fmt.Fprintln(t, "\nCOMPONENT\tSTATE\t\t\t\tMEMORY\tRESTARTS\t")
	for _, c := range s.Components {
		state := "running"
		switch {
		case !c.Wanted:
			state = "stopped"
		case c.Pid == 0:
			state = "restarting: " + c.Error
		}
		fmt.Fprintf(t, "%s\t%s\t\t\t\t%s\t%d\t\n", c.Name, state, mib(s.Memory.Processes[c.Name]), c.Restarts)
	}
	fmt.Fprintln(t, "\nHOST\t\tADDRESSES\t\t\t\t\t")
	for _, h := range s.Hosts {
		fmt.Fprintf(t, "%s\t\t%s\t\t\t\t\t\n", h.Name, addresses(h.Addresses))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(s.Memory.Processes)) {
		if name == "supervisor" || name == "others" {
			fmt.Fprintf(out, "%s: %s\n", name, mib(s.Memory.Processes[name]))
		}
	}
	return nil
}

func addresses(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

func mib(bytes uint64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
