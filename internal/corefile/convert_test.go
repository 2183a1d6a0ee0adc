// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/weft-net/weft/internal/dnsserver"
	"github.com/weft-net/weft/internal/goldentest"
)

// Each testdata/*.corefile has what becomes of it beside it: the configuration, then the notes as comments.
func TestConvert(t *testing.T) {
	files, err := filepath.Glob("testdata/*.corefile")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg, notes, err := Convert(string(text))
			if err != nil {
				t.Fatal(err)
			}
			out, err := yaml.Marshal(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := dnsserver.ParseConfig(out); err != nil {
				t.Errorf("the outcome is no configuration: %v", err)
			}
			got := string(out)
			for _, n := range notes {
				got += "# " + n.String() + "\n"
			}
			goldentest.Compare(t, strings.TrimSuffix(file, ".corefile")+".yaml", got)
		})
	}
}

func TestSyntax(t *testing.T) {
	for text, want := range map[string]string{
		".:53 {\n errors\n":         "a } is missing",
		". {\n log \"abc\n}":        "a quote is not closed",
		"":                          "no server block",
		". {\n log\n}\nx y\n log\n": "a { is missing",
	} {
		if _, _, err := Convert(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzConvert(f *testing.F) {
	f.Add(".:53 {\n kubernetes cluster.local 10.0.0.0/8 {\n pods verified\n }\n forward . 1.1.1.1\n cache 30\n}\n")
	f.Add("(x) {\n log\n}\na, b {\n import x\n hosts {\n 1.2.3.4 a\n }\n rewrite name a b\n}")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, _, err := Convert(text)
		if err == nil {
			if _, err := yaml.Marshal(cfg); err != nil {
				t.Fatal(err)
			}
		}
	})
}
