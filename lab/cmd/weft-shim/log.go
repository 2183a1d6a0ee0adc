// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"
)

// logLine is the most bytes of output in one line of a log file; longer lines are written in parts, tagged P, of
// which the last is tagged F.
const logLine = 16 << 10

// logFile is a container's log in the CRI's format: time, stream, tag, text.
type logFile struct {
	path string // "" to drop everything

	mu   sync.Mutex
	file *os.File
	buf  []byte
}

// reopen opens the file anew, creating it: after a rotation the old one has been renamed.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "" {
		return nil
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file = f
	return nil
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

func (l *logFile) line(stream string, tag byte, text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	b := time.Now().UTC().AppendFormat(l.buf[:0], time.RFC3339Nano)
	b = append(b, ' ')
	b = append(b, stream...)
	b = append(b, ' ', tag, ' ')
	b = append(b, text...)
	b = append(b, '\n')
	l.buf = b
	// A full disk loses output, never the container.
	_, _ = l.file.Write(b)
}

// stream returns the writer of one output stream of the container.
func (l *logFile) stream(name string) *logStream { return &logStream{log: l, name: name} }

// logStream cuts a stream into lines. It is used by one goroutine.
type logStream struct {
	log  *logFile
	name string
	rest []byte // of a line that has not ended yet
}

func (s *logStream) write(data []byte) {
	for len(data) > 0 {
		text, after, ended := bytes.Cut(data, []byte{'\n'})
		data = after
		for len(s.rest)+len(text) > logLine {
			take := logLine - len(s.rest)
			s.rest = append(s.rest, text[:take]...)
			text = text[take:]
			s.log.line(s.name, 'P', s.rest)
			s.rest = s.rest[:0]
		}
		s.rest = append(s.rest, text...)
		if ended {
			s.log.line(s.name, 'F', s.rest)
			s.rest = s.rest[:0]
		}
	}
}

// flush writes what is left when the stream has ended without a newline.
func (s *logStream) flush() {
	if len(s.rest) > 0 {
		s.log.line(s.name, 'F', s.rest)
		s.rest = nil
	}
}
