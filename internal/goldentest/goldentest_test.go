// SPDX-License-Identifier: Apache-2.0

package goldentest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// told is a test that only notes what it is told.
type told struct {
	testing.TB
	errors []string
}

func (t *told) Helper() {}

func (t *told) Errorf(format string, args ...any) {
	t.errors = append(t.errors, fmt.Sprintf(format, args...))
}

func TestCompare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "golden.txt")
	if err := os.WriteFile(file, []byte("a\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for got, errors := range map[string]int{"a\nb\n": 0, "a\nb": 1, "a\nc\n": 1, "": 1} {
		to := &told{TB: t}
		Compare(to, file, got)
		if len(to.errors) != errors {
			t.Errorf("%q: told %q, want %d errors", got, to.errors, errors)
		}
		for _, e := range to.errors {
			if !strings.Contains(e, file) {
				t.Errorf("%q: %q does not name the file", got, e)
			}
		}
	}
	*update = true
	defer func() { *update = false }()
	Compare(t, file, "anew")
	if text, err := os.ReadFile(file); err != nil || string(text) != "anew" {
		t.Errorf("after -update the file has %q, %v", text, err)
	}
}
