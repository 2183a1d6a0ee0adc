// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"io"
	"os"
	"sync"
)

// Log is a file that a process writes to through a pipe, kept bounded: when it is full it becomes PATH.1, and what
// was PATH.1 is gone. The pipe outlives the process, so restarts share one Log.
type Log struct {
	Path string
	max  int64

	once  sync.Once
	write *os.File // the pipe's end for processes
	err   error
}

// NewLog is a log of at most 2*max bytes.
func NewLog(path string, max int64) *Log { return &Log{Path: path, max: max} }

// Writer is the descriptor to hand to a process as its stdout and stderr. The Log keeps ownership.
func (l *Log) Writer() (*os.File, error) {
	l.once.Do(func() {
		var read *os.File
		if read, l.write, l.err = os.Pipe(); l.err != nil {
			return
		}
		var file *os.File
		if file, l.err = os.OpenFile(l.Path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); l.err != nil {
			return
		}
		go l.pump(read, file)
	})
	return l.write, l.err
}

// pump moves what processes wrote into the file. A file system that is full loses log lines, never the process: the
// pipe is always drained.
func (l *Log) pump(read, file *os.File) {
	var size int64
	if info, err := file.Stat(); err == nil {
		size = info.Size()
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := read.Read(buf)
		if n > 0 {
			if size+int64(n) > l.max {
				if next, err := l.rotate(); err == nil {
					file.Close()
					file, size = next, 0
				}
			}
			written, _ := file.Write(buf[:n])
			size += int64(written)
		}
		if err != nil {
			if err != io.EOF {
				continue
			}
			return
		}
	}
}

func (l *Log) rotate() (*os.File, error) {
	if err := os.Rename(l.Path, l.Path+".1"); err != nil {
		return nil, err
	}
	return os.OpenFile(l.Path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// Tail is the last bytes of a log file, at most n, from a line's start.
func Tail(path string, n int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(info.Size()-n, 0)
	buf := make([]byte, info.Size()-from)
	read, _ := f.ReadAt(buf, from)
	buf = buf[:read]
	if from > 0 {
		for i, b := range buf {
			if b == '\n' {
				return string(buf[i+1:])
			}
		}
	}
	return string(buf)
}
