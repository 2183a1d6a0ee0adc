// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseProgram gives back the memory that the program's own code and constants take in this process: most of what was
// touched while it started is never needed again, and what is comes back from the page cache when it is touched, in
// microseconds and without reading a disk. The rest is then the kernel's to drop when memory is short.
//
// Only what is as it is in the file may go, for what a linker or the runtime wrote there would be lost.
func releaseProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, m := range cleanMappings(smaps, exe) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno)
		}
	}
	return nil
}

type mapping struct{ start, end uintptr }

// cleanMappings are the private, read-only mappings of a file of which no page has been written to, as proc(5)'s
// /proc/PID/smaps lists them.
func cleanMappings(smaps []byte, file string) (out []mapping) {
	var m mapping
	ours := false
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		if key, isField := strings.CutSuffix(f[0], ":"); isField {
			if ours && key == "Anonymous" && len(f) > 1 && f[1] == "0" {
				out = append(out, m)
			}
			continue
		}
		ours = len(f) >= 6 && strings.Join(f[5:], " ") == file && (f[1] == "r-xp" || f[1] == "r--p")
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		ours = ours && err1 == nil && err2 == nil
		m = mapping{uintptr(start), uintptr(end)}
	}
	return out
}
