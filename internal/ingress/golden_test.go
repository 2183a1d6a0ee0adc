// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/ingress"
	"github.com/weft-net/weft/internal/route"
)

// Every file of testdata is a cluster; its golden file holds the tables and events that follow.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data:", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			opts := both
			opts.Config.Namespace, opts.Config.Name = "weft", "ingress"
			opts.Fallback = &route.Certificate{Key: "weft/fallback", Chain: "-", PrivateKey: "-"}
			s := ingress.New(opts)
			out := s.Apply(changes(t, file, append([]byte(base), text...)))
			goldentest.Compare(t, strings.TrimSuffix(file, ".yaml")+".golden", describe(t, &out))
		})
	}
}

// describe writes an output down, one resource a block. What all gateways have alike is left out: the endpoints of the
// base, the catch-all's listeners.
func describe(t *testing.T, out *ingress.Output) string {
	t.Helper()
	var b bytes.Buffer
	write := func(kind string, v any) {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\n", kind, text)
	}
	for _, e := range out.Events {
		fmt.Fprintf(&b, "event %s %s: %s\n", e.Name, e.Reason, e.Message)
	}
	u := out.Update
	for _, l := range u.Listeners {
		if l.Hostname != "" {
			write("listener", l)
		}
	}
	for _, r := range u.Routes {
		if r.Key != "Ingress/-/_" {
			write("route", r)
		}
	}
	for _, p := range u.Policies {
		type plain route.Policy // without the formatting that hides passwords
		write("policy", plain(p))
	}
	for _, v := range u.Backends {
		write("backend", v)
	}
	for _, v := range u.Endpoints {
		fmt.Fprintf(&b, "endpoints %s:", v.Key)
		for _, e := range v.Endpoints {
			fmt.Fprintf(&b, " %s", e.Address)
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}
