// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPut: a file is replaced when its content or its mode is another, and left alone when neither is.
func TestPut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "file")
	long := strings.Repeat("x", 200_000)
	for _, c := range []struct {
		content string
		mode    os.FileMode
		kept    bool
	}{
		{"a", 0o755, false}, {"a", 0o755, true}, {"b", 0o755, false}, {"b", 0o644, false}, {"", 0o644, false}, {"", 0o644, true},
		{long, 0o755, false}, {long, 0o755, true}, {long + "y", 0o755, false}, {long[:199_999] + "y", 0o755, false}, {long, 0o755, false},
	} {
		before, _ := os.Stat(path) // not there at first
		if err := put(path, bytes.NewReader([]byte(c.content)), c.mode); err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := before != nil && os.SameFile(before, after); got != c.kept {
			t.Errorf("%d bytes, mode %o: kept %v, want %v", len(c.content), c.mode, got, c.kept)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != c.content || after.Mode().Perm() != c.mode {
			t.Errorf("%d bytes, mode %o: %d bytes, mode %o are there; %v", len(c.content), c.mode, len(b), after.Mode().Perm(), err)
		}
	}
}
