// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AccessLog is told of each exchange; nil is no log.
type AccessLog interface {
	log(x *exchange, took time.Duration)
}

// accessLog writes lines. They are collected for at most a second, and lost rather than waited for when the output is
// stuck: no request waits for its log.
type accessLog struct {
	out   io.Writer
	share float64
	line  func(b []byte, x *exchange, took time.Duration) []byte

	mu     sync.Mutex
	buf    []byte
	lost   uint64
	wake   chan struct{}
	stop   chan struct{}
	closed sync.WaitGroup
}

// maxLog is the most bytes of lines that wait to be written.
const maxLog = 4 << 20

// NewAccessLog writes a line for share (0 to 1) of all exchanges to out, as JSON or in the combined log format. close
// writes what is left.
func NewAccessLog(out io.Writer, asJSON bool, share float64) (log AccessLog, close func()) {
	l := &accessLog{out: out, share: share, line: combinedLine, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	if asJSON {
		l.line = jsonLine
	}
	l.closed.Go(l.run)
	return l, func() {
		l.stop <- struct{}{}
		l.closed.Wait()
	}
}

func (l *accessLog) log(x *exchange, took time.Duration) {
	if l.share < 1 && rand.Float64() >= l.share {
		return
	}
	l.mu.Lock()
	if len(l.buf) > maxLog {
		l.lost++
	} else {
		l.buf = l.line(l.buf, x, took)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *accessLog) run() {
	var spare []byte
	for stopped := false; !stopped; {
		select {
		case <-l.wake:
		case <-l.stop:
			stopped = true
		}
		l.mu.Lock()
		l.buf, spare = spare[:0], l.buf
		lost := l.lost
		l.lost = 0
		l.mu.Unlock()
		if lost > 0 {
			spare = append(spare, `{"lost":`+strconv.FormatUint(lost, 10)+"}\n"...)
		}
		if len(spare) > 0 {
			_, _ = l.out.Write(spare) // there is no other place to say that this fails
		}
	}
}

func jsonLine(b []byte, x *exchange, took time.Duration) []byte {
	str := func(name, v string) {
		b = append(b, `,"`...)
		b = append(b, name...)
		b = append(b, `":`...)
		q, _ := json.Marshal(v) // of a string: can't fail
		b = append(b, q...)
	}
	num := func(name string, v int64) {
		b = append(b, `,"`...)
		b = append(b, name...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, v, 10)
	}
	b = append(b, `{"time":"`...)
	b = x.began.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, '"')
	str("client", x.source().String())
	str("scheme", x.peer.scheme)
	num("http", int64(x.major))
	str("method", x.method)
	str("host", x.host)
	if x.asked.path != "" {
		str("path", x.asked.path) // before rewrites
	} else {
		str("path", x.path)
	}
	num("status", int64(x.status))
	num("bytes", x.sent)
	num("us", took.Microseconds())
	if x.rule != nil {
		str("route", x.rule.route.Key)
		str("backend", x.backend)
	}
	if x.more != nil && x.more.user != "" {
		str("user", x.more.user)
	}
	if x.endpoint != nil {
		str("endpoint", x.endpoint.address)
		num("attempts", int64(x.attempts))
	}
	if id, ok := x.Lookup("x-request-id"); ok {
		str("id", id)
	}
	if trace, ok := x.Lookup("traceparent"); ok {
		str("traceparent", trace)
	}
	if x.abort {
		b = append(b, `,"cut":true`...)
	}
	if x.reason != "" {
		str("reason", x.reason)
	}
	return append(b, "}\n"...)
}

// printable keeps a name from breaking a line apart.
func printable(r rune) rune {
	if r <= ' ' || r == 0x7f {
		return '_'
	}
	return r
}

// appendUnquoted appends a part of a request's target, whose quotes would end the field that it is in; a target has no
// spaces and no control characters.
func appendUnquoted(b []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return b
}

// combinedLine is Apache's and nginx's combined format.
func combinedLine(b []byte, x *exchange, _ time.Duration) []byte {
	b = x.source().AppendTo(b)
	b = append(b, " - "...)
	if x.more != nil && x.more.user != "" {
		b = append(b, strings.Map(printable, x.more.user)...)
	} else {
		b = append(b, '-')
	}
	b = append(b, " ["...)
	b = x.began.AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `] "`...)
	b = append(b, x.method...)
	b = append(b, ' ')
	asked := x.asked
	if asked.path == "" {
		asked.path, asked.query = x.path, x.query
	}
	b = appendUnquoted(b, asked.path)
	if asked.query != "" {
		b = appendUnquoted(append(b, '?'), asked.query)
	}
	b = append(b, " HTTP/"...)
	if x.major == 2 {
		b = append(b, "2.0"...)
	} else {
		b = append(b, '1', '.', '0'+x.minor)
	}
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(x.status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, x.sent, 10)
	for _, name := range []string{"referer", "user-agent"} {
		v, ok := x.Lookup(name)
		if !ok {
			v = "-"
		}
		b = append(b, ' ')
		b = strconv.AppendQuote(b, v)
	}
	return append(b, '\n')
}
