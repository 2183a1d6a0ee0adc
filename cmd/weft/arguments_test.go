// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"
)

func TestBadCommandLines(t *testing.T) {
	for line, want := range map[string]string{
		"foo":               `unknown command "foo" for "weft"`,
		"dns foo":           "foo",
		"policy -f x":       "usage: weft policy NAME",
		"flows --verdict x": "--verdict=x: want dropped or admitted",
		"status foo":        `unknown command "foo" for "weft status"` + "\nusage: weft status [command]",
		"convert foo":       "usage: weft convert [command]",
		"why a":             "usage: weft why FROM TO[:PORT]",
		"why --bogus a b":   "unknown flag: --bogus\nusage: weft why",
		"lint --bogus":      "unknown flag: --bogus",
		"lint -f x -o foo":  "--output=foo",
		"service":           "usage: weft service NAME",
		"node --mtu=wide":   "--mtu",
		"dns query":         "usage: weft dns query NAME",
		"gateway routes -z": "usage: weft gateway routes",
	} {
		root := newRoot()
		root.SetArgs(strings.Fields(line))
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		err := root.Execute()
		if err == nil || exitStatus(err) != exitTrouble || !strings.Contains(err.Error(), want) {
			t.Errorf("weft %s: got %v, want exit status %d and %q", line, err, exitTrouble, want)
		}
	}
}

func TestCommandsThatHoldOthersShowHelp(t *testing.T) {
	for _, line := range []string{"status", "convert"} {
		var out strings.Builder
		root := newRoot()
		root.SetArgs([]string{line})
		root.SetOut(&out)
		if err := root.Execute(); err != nil {
			t.Errorf("weft %s: %v", line, err)
		}
		if got := out.String(); !strings.Contains(got, "Usage:\n  weft "+line+" [command]\n") || strings.Contains(got, line+" [flags]") {
			t.Errorf("weft %s: no help, or one that is wrong:\n%s", line, got)
		}
	}
}
