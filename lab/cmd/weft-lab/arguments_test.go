// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// execute runs a command line that asks no lab for anything.
func execute(args ...string) (out string, err error) {
	var b bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&b)
	root.SetErr(&b)
	err = root.Execute()
	return b.String(), err
}

func TestWrongCommandLines(t *testing.T) {
	for line, want := range map[string]string{
		"foo":                           "unknown command \"foo\": `weft lab --help` names all",
		"stauts":                        "status?",
		"node foo":                      "unknown command \"foo\": `weft lab node --help` names all",
		"component foo apiserver":       "`weft lab component --help`",
		"node stop":                     "usage: weft lab node stop NAME",
		"exec":                          "usage: weft lab exec [--in HOST] -- CMD [ARGS...]",
		"exec -t -i=false true":         "exclude each other",
		"exec -t true":                  "--tty: standard input is not a terminal",
		"logs":                          "usage: weft lab logs COMPONENT",
		"forward a b c":                 "usage: weft lab forward ADDRESS:PORT [LOCALPORT]",
		"load":                          "usage: weft lab load REF (--binary FILE | --rootfs DIR | --oci PATH)",
		"up extra":                      "usage: weft lab up",
		"up --bogus":                    "unknown flag: --bogus\nusage: weft lab up",
		"--name Bad_Name status":        "Bad_Name",
		"up --nodes 0":                  "--nodes 0: want 1 to",
		"up --ip-family ipv5":           "--ip-family",
		"load x:1":                      "[binary rootfs oci]",
		"load x:1 --binary a --oci b":   "[binary oci]",
		"forward nowhere":               "want ADDRESS:PORT",
		"forward 172.30.0.11:80 999999": "LOCALPORT",
	} {
		if _, err := execute(strings.Fields(line)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("weft lab %s: got %v, want an error with %q", line, err, want)
		}
	}
}

// TestHelp holds that every command that a person sees says what it is and how it is used, as part of weft.
func TestHelp(t *testing.T) {
	var visit func(cmd *cobra.Command, path []string)
	visit = func(cmd *cobra.Command, path []string) {
		if cmd.Name() == "kubectl" {
			return // its help is kubectl's own
		}
		out, err := execute(append(path, "--help")...)
		if err != nil {
			t.Errorf("%v: %v", path, err)
		}
		use := strings.Join(append([]string{"weft lab"}, path...), " ")
		if !strings.Contains(out, "Usage:\n  "+use) {
			t.Errorf("help of %q has no usage line of it:\n%s", use, out)
		}
		if cmd.HasSubCommands() && strings.Contains(out, use+" [flags]") {
			t.Errorf("%q does nothing by itself, and its help says so not:\n%s", use, out)
		}
		if _, usage, _ := strings.Cut(out, "Flags:"); strings.Contains(usage, " string ") || strings.Contains(usage, " stringArray ") {
			t.Errorf("help of %q doesn't name what a flag takes:\n%s", use, out)
		}
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && sub.Name() != "help" {
				visit(sub, append(slices.Clone(path), sub.Name()))
			}
		}
	}
	visit(newRoot(), nil)
}

func TestLeadingName(t *testing.T) {
	for _, c := range []struct{ line, name, rest string }{
		{"--name small get pods", "small", "get pods"},
		{"--name=small get pods", "small", "get pods"},
		{"get pods --name small", "", "get pods --name small"},
		{"--namespace x get pods", "", "--namespace x get pods"},
		{"--name", "", "--name"},
		{"", "", ""},
	} {
		name, rest := leadingName(strings.Fields(c.line))
		if name != c.name || strings.Join(rest, " ") != c.rest {
			t.Errorf("%q: got %q and %q", c.line, name, rest)
		}
	}
}
