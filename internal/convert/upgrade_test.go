// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/internal/goldentest"
)

// read takes a file's documents apart.
func read(t *testing.T, file string) []Object {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []Object
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out = append(out, Object{Unstructured: u})
	}
	return out
}

// golden compares a conversion's outcome and report with the file of that name.
func golden(t *testing.T, file string, objects []Object, notes []Note) {
	t.Helper()
	var b strings.Builder
	for _, n := range notes {
		b.WriteString("# " + n.String() + "\n")
	}
	for _, o := range objects {
		y, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n" + string(y))
	}
	goldentest.Compare(t, file, b.String())
}

func TestUpgrade(t *testing.T) {
	files, err := filepath.Glob("testdata/upgrade/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			in := read(t, file)
			opt := Options{Namespace: "default", Controller: "weft.dev/gateway"}
			out, notes := Upgrade(opt, in)
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", out, notes)
			for i, o := range read(t, file) {
				if a, b := o.Object, in[i].Object; !equal(t, a, b) {
					t.Errorf("the input was changed: %v", b)
				}
			}
			// What is upgraded needs no upgrade.
			again, more := Upgrade(opt, out)
			if slices.ContainsFunc(more, func(n Note) bool { return !n.Decide }) {
				t.Errorf("a second upgrade says %v", more)
			}
			for i := range again {
				if !equal(t, again[i].Object, out[i].Object) {
					t.Errorf("a second upgrade changes %v", again[i])
				}
			}
		})
	}
}

func TestUpgradeHTTPS(t *testing.T) {
	out, notes := Upgrade(Options{Namespace: "default", HTTPS: true}, read(t, "testdata/upgrade/today.yaml"))
	var sections []string
	for _, ref := range ordered(items(sub(out[0].Object, "spec"), "parentRefs")) {
		sections = append(sections, text(ref, "sectionName"))
	}
	if got := strings.Join(sections, " "); got != "http https" || len(notes) != 1 {
		t.Errorf("bound to %s, said %v", got, notes)
	}
}

func equal(t *testing.T, a, b any) bool {
	t.Helper()
	x, err := yaml.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}
