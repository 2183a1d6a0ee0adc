// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// Heads that we send are compressed with the static table alone (RFC 7541): no field that we pass on stays in a table,
// so no table needs memory, none can leak (CRIME), and a head is written straight into the connection's output.

// staticEntry is a name's first index in the static table.
type staticEntry struct {
	name  string
	index byte
}

// staticByLength has the static table's names by their length; statusIndex the fields of :status that it holds.
var (
	staticByLength [32][]staticEntry
	statusIndex    = map[int]byte{}
)

const (
	indexAuthority  = 1
	indexMethodGET  = 2
	indexMethodPOST = 3
	indexPath       = 4
	indexSchemeHTTP = 6
	indexStatus     = 8
	lastStatic      = 61
)

func init() {
	index := byte(0)
	d := hpack.NewDecoder(0, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			code, _ := strconv.Atoi(f.Value)
			statusIndex[code] = index
		}
		for _, o := range staticByLength[len(f.Name)] {
			if o.name == f.Name {
				return
			}
		}
		staticByLength[len(f.Name)] = append(staticByLength[len(f.Name)], staticEntry{f.Name, index})
	})
	for index = 1; index <= lastStatic; index++ {
		_, _ = d.Write([]byte{0x80 | index}) // an indexed field; of the static table all are valid
	}
}

// appendInt appends an integer with a prefix of that many bits (RFC 7541 section 5.1), first holding the bits above.
func appendInt(b []byte, first byte, bits uint, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func appendText[T ~[]byte | ~string](b []byte, s T) []byte {
	return append(appendInt(b, 0, 7, len(s)), s...)
}

// appendIndexedName appends a literal whose name is in the static table.
func appendIndexedName[T ~[]byte | ~string](b []byte, index byte, value T) []byte {
	return appendText(appendInt(b, 0, 4, int(index)), value)
}

// appendHeadField appends a field, its name in lower case. Values that are secret are marked so that nobody on the
// way puts them into a table either (RFC 7541 section 7.1.3).
func appendHeadField(b []byte, f *field) []byte {
	n := len(f.name)
	if n < len(staticByLength) {
		for i := range staticByLength[n] {
			if e := &staticByLength[n][i]; equalFold(f.name, e.name) {
				first := byte(0)
				if e.index == 23 { // authorization
					first = 0x10
				}
				return appendText(appendInt(b, first, 4, int(e.index)), f.value)
			}
		}
	}
	b = appendInt(append(b, 0), 0, 7, n)
	for _, c := range f.name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return appendText(b, f.value)
}

// appendStatus appends :status.
func appendStatus(b []byte, status int) []byte {
	if i, ok := statusIndex[status]; ok {
		return append(b, 0x80|i)
	}
	return append(appendInt(b, 0, 4, indexStatus), 3, byte('0'+status/100%10), byte('0'+status/10%10), byte('0'+status%10))
}

// appendHeadFields appends the fields that may be in an HTTP/2 message (RFC 9113 section 8.2.2).
func appendHeadFields(b []byte, fields []field) []byte {
	for i := range fields {
		if f := &fields[i]; f.goesOn() {
			b = appendHeadField(b, f)
		}
	}
	return b
}

// goesOn tells whether a field may be in an HTTP/2 message.
func (f *field) goesOn() bool {
	switch f.id {
	case fDropped, fConnection, fTransferEncoding, fKeepAlive, fProxyConnection, fUpgrade, fHost:
		return false
	}
	return len(f.name) > 0
}

// goesUp tells whether a field goes to an endpoint with a request, or with the one that makes a WebSocket. Trailers, which
// don't go on (see runH2), are not announced: net/http2 answers the announcement, and never ends where its handler passes on
// trailers that have not come. A WebSocket of HTTP/2 has no key (RFC 8441 section 5).
func (f *field) goesUp(socket bool) bool {
	return f.goesOn() && f.id != fTrailer && !(socket && equalFold(f.name, "sec-websocket-key"))
}

// appendAsked appends the fields of a request to an endpoint.
func appendAsked(b []byte, fields []field, socket bool) []byte {
	for i := range fields {
		if f := &fields[i]; f.goesUp(socket) {
			b = appendHeadField(b, f)
		}
	}
	return b
}

// headSize is a request's head in bytes as RFC 9113 section 6.5.2 counts: of each field the name, the value and 32 more.
func headSize(x *exchange, socket bool, scheme, authority string) int {
	method, more := x.method, 0
	if socket {
		method, more = http.MethodConnect, len(":protocol"+"websocket")+32
	}
	n := len(":method"+":scheme"+":authority"+":path") + len(method) + len(scheme) + len(authority) + len(x.path) + 4*32 + more
	if x.query != "" {
		n += 1 + len(x.query)
	}
	for i := range x.fields {
		if f := &x.fields[i]; f.goesUp(socket) {
			n += len(f.name) + len(f.value) + 32
		}
	}
	if x.length > 0 && !socket {
		n += len("content-length") + len(strconv.FormatInt(x.length, 10)) + 32
	}
	return n
}

// appendLengthField appends content-length.
func appendLengthField(b []byte, n int64) []byte {
	var digits [20]byte
	return appendIndexedName(b, 28, strconv.AppendInt(digits[:0], n, 10))
}

// appendSocketHead appends the head of an extended CONNECT (RFC 8441 section 5).
func appendSocketHead(b []byte, scheme, authority string, x *exchange) []byte {
	b = appendRequestHead(b, http.MethodConnect, scheme, authority, x.path, x.query)
	b = appendHeadField(b, &field{name: raw(":protocol"), value: raw("websocket")})
	return appendAsked(b, x.fields, true)
}

// appendRequestHead appends a request's pseudo-header fields.
func appendRequestHead(b []byte, method, scheme, authority, path, query string) []byte {
	switch method {
	case http.MethodGet:
		b = append(b, 0x80|indexMethodGET)
	case http.MethodPost:
		b = append(b, 0x80|indexMethodPOST)
	default:
		b = appendIndexedName(b, indexMethodGET, method)
	}
	if scheme == "https" {
		b = append(b, 0x80|indexSchemeHTTP+1)
	} else {
		b = append(b, 0x80|indexSchemeHTTP)
	}
	b = appendIndexedName(b, indexAuthority, authority)
	if query == "" {
		return appendIndexedName(b, indexPath, path)
	}
	b = appendInt(appendInt(b, 0, 4, indexPath), 0, 7, len(path)+1+len(query))
	return append(append(append(b, path...), '?'), query...)
}
