// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// below lists what is in a directory.
func below(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestChartIntoANewDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, to := range []string{dir, filepath.Join(dir, "new/er")} { // one that is empty, then one that isn't there
		if out := run(t, "chart", to); out != "" {
			t.Errorf("%s: %s", to, out)
		}
		if _, err := os.Stat(filepath.Join(to, "Chart.yaml")); err != nil {
			t.Error(err)
		}
	}
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "values.yaml"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "chart", used); !strings.Contains(out, "is not empty (it has values.yaml): name one that is new or empty") {
		t.Errorf("a directory with a file: %q", out)
	}
	if got := below(t, used); len(got) != 1 {
		t.Errorf("a directory with a file has now %v", got)
	}
}

func TestWriteNewLeavesNothingBehind(t *testing.T) {
	broken := fstest.MapFS{"a/b.yaml": {Data: []byte("b")}, "z": {Mode: fs.ModeSocket}}
	dir := t.TempDir()
	for _, to := range []string{dir, filepath.Join(dir, "new/er")} {
		if err := writeNew(to, broken); err == nil {
			t.Fatal("it did not fail")
		}
		if got := below(t, dir); len(got) != 0 {
			t.Errorf("%s: left behind: %v", to, got)
		}
	}
}
