// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLogFormat(t *testing.T) {
	full := strings.Repeat("x", logLine)
	for _, tc := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"lines", []string{"one\ntwo\n"}, []string{"F one", "F two"}},
		{"pieces of a line", []string{"o", "n", "e\nt", "wo\n"}, []string{"F one", "F two"}},
		{"no newline at the end", []string{"one\ntwo"}, []string{"F one", "F two"}},
		{"empty lines", []string{"\n\n"}, []string{"F ", "F "}},
		{"exactly full", []string{full + "\n"}, []string{"F " + full}},
		{"one more", []string{full + "y\n"}, []string{"P " + full, "F y"}},
		{"far more, in pieces", []string{full, full, "y\nz\n"}, []string{"P " + full, "P " + full, "F y", "F z"}},
		{"nothing", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := &logFile{path: filepath.Join(t.TempDir(), "log")}
			if err := l.reopen(); err != nil {
				t.Fatal(err)
			}
			s := l.stream("stdout")
			for _, w := range tc.writes {
				s.write([]byte(w))
			}
			s.flush()
			l.close()
			body, err := os.ReadFile(l.path)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(string(body)) {
				stamp, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
				if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
					t.Error(err)
				}
				got = append(got, strings.TrimPrefix(rest, "stdout "))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %.100q, want %.100q", got, tc.want)
			}
		})
	}
}

func TestLogWithoutAPath(t *testing.T) {
	l := &logFile{}
	if err := l.reopen(); err != nil {
		t.Fatal(err)
	}
	s := l.stream("stdout")
	s.write([]byte("dropped\n"))
	s.flush()
	l.close()
}
