// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// fileMemory is RssFile, in KiB.
func fileMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile")
	return 0
}

func TestReleaseProgram(t *testing.T) {
	// All of the program, as after a long start.
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	before := fileMemory(t)
	if err := releaseProgram(); err != nil {
		t.Fatal(err)
	}
	after := fileMemory(t)
	t.Logf("%s: %d KiB of files before, %d after", exe, before, after)
	if after > before*2/3 {
		t.Errorf("%d KiB of files before, %d after", before, after)
	}
	root := newRoot()
	if c, _, err := root.Find([]string{"node"}); err != nil || c.Name() != "node" {
		t.Errorf("the program is not whole: %v", err)
	}
}

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-01000000 r-xp 00000000 08:01 1  /usr/bin/weft
Rss:                8000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01000000-02000000 r--p 00c00000 08:01 1  /usr/bin/weft
Anonymous:             0 kB
02000000-02001000 r--p 01c00000 08:01 1  /usr/bin/weft
Anonymous:             4 kB
02001000-02100000 rw-p 01c01000 08:01 1  /usr/bin/weft
Anonymous:             0 kB
c000000000-c004000000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000100000 r--p 00000000 08:01 2  /usr/lib/libc.so.6
Anonymous:             0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]
Anonymous:             0 kB
`
	if got, want := cleanMappings([]byte(smaps), "/usr/bin/weft"), []mapping{{0x400000, 0x1000000}, {0x1000000, 0x2000000}}; !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}
