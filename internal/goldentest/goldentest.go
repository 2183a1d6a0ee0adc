// SPDX-License-Identifier: Apache-2.0

// Package goldentest compares what a test made with the file that says what it should be, and writes that file anew when
// the test is run with -update. Only tests import it. It imports the standard library and go-cmp.
package goldentest

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Compare reports where got is not what the file has. The test goes on.
func Compare(t testing.TB, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s is not what came out (-want +got); see what changed, and run the test with -update:\n%s", file, d)
	}
}
