// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// holder annotates a command that only holds others.
const holder = "holder"

// refuseBadLines makes every command turn down a command line that it can't mean anything by, and say how one looks.
// The exit status is exitTrouble: 1 is an answer of commands such as why and lint. By itself the library answers
// an unknown subcommand with help and success, which hides a typing mistake from a script.
func refuseBadLines(root *cobra.Command) {
	// A command that only holds others runs to show its help: that is no use of it.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(),
		"{{if .Runnable}}", "{{if and .Runnable (not .Annotations."+holder+")}}", 1))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return badLine(cmd, err) })
	for _, cmd := range root.Commands() {
		refuseArguments(cmd)
	}
}

func refuseArguments(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Annotations = map[string]string{holder: "true"}
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return badLine(cmd, err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		refuseArguments(sub)
	}
}

func badLine(cmd *cobra.Command, err error) error {
	usage := cmd.UseLine()
	if cmd.Annotations[holder] != "" {
		usage = cmd.CommandPath() + " [command]"
	}
	return exitCode{exitTrouble, fmt.Errorf("%w\nusage: %s", err, usage)}
}
