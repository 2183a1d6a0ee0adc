// SPDX-License-Identifier: Apache-2.0

package node

import "testing"

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"/":                   "/",
		`/mnt/with\040spaces`: "/mnt/with spaces",
		`/a\011b\012c\134d`:   "/a\tb\nc\\d",
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}
