// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"slices"
	"unsafe"
)

// field is one header or trailer field. Its bytes belong to the connection's buffer or to the configuration.
type field struct {
	name, value []byte
	id          fieldID
}

// fieldID names the fields that the proxy itself understands.
type fieldID uint8

const (
	other fieldID = iota
	fConnection
	fContentLength
	fTransferEncoding
	fHost
	fUpgrade
	fTE
	fTrailer
	fKeepAlive
	fProxyConnection
	fExpect
	fForwardedFor
	fForwardedProto
	fForwardedHost
	fForwardedPort
	fRequestID
	fForwarded
	fDropped // edited away
)

var fieldIDs = map[string]fieldID{
	"connection": fConnection, "content-length": fContentLength, "transfer-encoding": fTransferEncoding, "host": fHost,
	"upgrade": fUpgrade, "te": fTE, "trailer": fTrailer, "keep-alive": fKeepAlive, "proxy-connection": fProxyConnection,
	"expect": fExpect, "x-forwarded-for": fForwardedFor, "x-forwarded-proto": fForwardedProto,
	"x-forwarded-host": fForwardedHost, "x-forwarded-port": fForwardedPort, "x-request-id": fRequestID,
	"forwarded": fForwarded,
}

// byLength holds the known names by their length, so that an unknown name costs one look.
var byLength = func() (t [32][]knownField) {
	for name, id := range fieldIDs {
		t[len(name)] = append(t[len(name)], knownField{name, id})
	}
	return t
}()

type knownField struct {
	name string
	id   fieldID
}

func identify(name []byte) fieldID {
	if len(name) >= len(byLength) {
		return other
	}
	for _, known := range byLength[len(name)] {
		if equalFold(name, known.name) {
			return known.id
		}
	}
	return other
}

// equalFold compares a name with one in lower case, both ASCII.
func equalFold[T ~[]byte | ~string](b T, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range len(b) {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// view gives the bytes as a string without a copy: valid as long as they do not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// raw gives a string's bytes without a copy: they must not be written to.
func raw(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// Classes of bytes: RFC 9110 section 5.6.2 and 5.5, RFC 3986.
var isToken, isValue, isTarget, isHost [256]bool

func init() {
	for c := range 256 {
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		isToken[c] = alnum || c != 0 && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
		isValue[c] = c == '\t' || c >= ' ' && c != 0x7f
		isTarget[c] = c > ' ' && c < 0x7f && c != '#'
		isHost[c] = alnum || c != 0 && bytes.IndexByte([]byte("-._"), byte(c)) >= 0
	}
}

// A parseError says which status a malformed message deserves, and why it does.
type parseError struct {
	status int
	reason string
}

func (e *parseError) Error() string { return e.reason }

func bad(reason string) *parseError { return &parseError{400, reason} }

// The ways in which heads are malformed.
var (
	errRequestLine  = bad("malformed request line")
	errTarget       = bad("malformed request target")
	errVersion      = &parseError{505, "HTTP version not supported"}
	errFieldName    = bad("malformed field name")
	errFieldValue   = bad("forbidden byte in a field value")
	errLine         = bad("a line does not end in CRLF")
	errFold         = bad("folded header line")
	errHost         = bad("Host is missing, repeated or malformed")
	errLength       = bad("Content-Length is repeated or malformed")
	errBoth         = bad("both Content-Length and Transfer-Encoding")
	errTE           = bad("Transfer-Encoding is repeated or malformed")
	errCoding       = &parseError{501, "unknown transfer coding"}
	errMethod       = &parseError{501, "unknown method"}
	errManyFields   = &parseError{431, "too many header fields"}
	errHeadTooLarge = &parseError{431, "header fields too large"}
	errPath         = bad("path leaves the root")
	errStatusLine   = &parseError{502, "malformed status line"}
)

const maxFields = 200

// requestHead is a request's head. Its bytes belong to the buffer that it was parsed from.
type requestHead struct {
	method, target []byte // target: path and query
	authority      []byte // of the target's absolute form, or of Host
	minor          byte   // of HTTP/1.x
	length         int64  // of the body; -1 is chunked
	close          bool   // the connection ends with this exchange
	upgrade        []byte // the protocol asked for, when Connection names Upgrade
	expect         bool   // Expect: 100-continue
	fields         []field
}

// parseRequest parses a head, which ends with its empty line.
func parseRequest(b []byte, h *requestHead) *parseError {
	*h = requestHead{fields: h.fields[:0]}
	end := bytes.IndexByte(b, '\n')
	if end < 1 || b[end-1] != '\r' {
		return errLine
	}
	if err := parseRequestLine(b[:end-1], h); err != nil {
		return err
	}
	if err := parseFields(b[end+1:], &h.fields); err != nil {
		return err
	}
	return h.interpret()
}

func parseRequestLine(line []byte, h *requestHead) *parseError {
	sp := bytes.IndexByte(line, ' ')
	if sp < 1 {
		return errRequestLine
	}
	h.method = line[:sp]
	for _, c := range h.method {
		if !isToken[c] {
			return errRequestLine
		}
	}
	line = line[sp+1:]
	sp = bytes.IndexByte(line, ' ')
	if sp < 1 {
		return errRequestLine
	}
	h.target = line[:sp]
	version := line[sp+1:]
	if len(version) != 8 || string(version[:5]) != "HTTP/" {
		return errRequestLine
	}
	if string(version[5:7]) != "1." || version[7] != '0' && version[7] != '1' {
		return errVersion
	}
	h.minor = version[7] - '0'
	return parseTarget(h)
}

// parseTarget leaves path and query in h.target (RFC 9112 section 3.2).
func parseTarget(h *requestHead) *parseError {
	for _, c := range h.target {
		if !isTarget[c] {
			return errTarget
		}
	}
	if h.target[0] == '/' {
		return nil
	}
	if string(h.method) == "CONNECT" {
		return errMethod
	}
	if string(h.target) == "*" {
		if string(h.method) != "OPTIONS" {
			return errTarget
		}
		return nil
	}
	scheme, rest, ok := bytes.Cut(h.target, []byte("://"))
	if !ok || !equalFold(scheme, "http") && !equalFold(scheme, "https") {
		return errTarget
	}
	i := bytes.IndexAny(rest, "/?")
	if i < 0 {
		h.authority, h.target = rest, []byte("/")
		return nil
	}
	h.authority = rest[:i]
	if h.target = rest[i:]; h.target[0] == '?' {
		h.target = append([]byte("/"), h.target...)
	}
	if i == 0 { // RFC 9110 section 4.2.1
		return errTarget
	}
	return nil
}

// parseFields parses field lines up to the empty line, which must end b.
func parseFields(b []byte, fields *[]field) *parseError {
	for {
		end := bytes.IndexByte(b, '\n')
		if end < 1 || b[end-1] != '\r' {
			return errLine
		}
		if end == 1 {
			return nil
		}
		line := b[:end-1]
		b = b[end+1:]
		n := 0
		for n < len(line) && isToken[line[n]] {
			n++
		}
		if n == 0 || n == len(line) || line[n] != ':' {
			if line[0] == ' ' || line[0] == '\t' {
				return errFold
			}
			return errFieldName
		}
		value := trimSpace(line[n+1:])
		for _, c := range value {
			if !isValue[c] {
				return errFieldValue
			}
		}
		if len(*fields) == maxFields {
			return errManyFields
		}
		*fields = append(*fields, field{name: line[:n], value: value, id: identify(line[:n])})
	}
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// interpret takes the fields that frame the message and the connection out of the list of fields; what is left, apart
// from those that the proxy sets itself, goes to the endpoint as it is.
func (h *requestHead) interpret() *parseError {
	h.close = h.minor == 0
	hosts, lengths, codings := 0, 0, 0
	var connection, upgrade []byte
	for i := range h.fields {
		f := &h.fields[i]
		switch f.id {
		case fHost:
			if hosts++; h.authority == nil {
				h.authority = f.value
			}
		case fContentLength:
			lengths++
			n, ok := parseLength(f.value)
			if !ok {
				return errLength
			}
			h.length = n
		case fTransferEncoding:
			if codings++; codings > 1 {
				return errTE
			}
			if !equalFold(f.value, "chunked") {
				if bytes.HasSuffix(bytes.ToLower(f.value), []byte("chunked")) && bytes.IndexByte(f.value, ',') > 0 {
					return errCoding
				}
				return errTE
			}
		case fConnection:
			connection = appendList(connection, f.value)
			if h.connection(f.value) {
				h.upgrade = []byte{}
			}
		case fUpgrade:
			upgrade = f.value
		case fExpect:
			if h.expect = equalFold(f.value, "100-continue"); !h.expect {
				return &parseError{417, "unknown expectation"}
			}
		}
	}
	if h.upgrade != nil {
		h.upgrade = upgrade
	}
	switch {
	case hosts > 1 || hosts == 0 && h.minor == 1:
		return errHost
	case lengths > 1:
		return errLength
	case lengths > 0 && codings > 0:
		return errBoth
	case codings > 0 && h.minor == 0:
		return errTE
	case codings > 0:
		h.length = -1
	}
	if len(h.authority) > 0 && !isAuthority(h.authority) {
		return errHost
	}
	h.fields = dropHopByHop(h.fields, connection)
	return nil
}

// isAuthority tells whether a text is a host, perhaps with a port (RFC 3986 section 3.2), which can't be taken apart in
// two ways.
func isAuthority(b []byte) bool {
	end := bytes.IndexByte(b, ']') + 1
	if end > 0 {
		if b[0] != '[' || bytes.IndexByte(b[1:end-1], ':') < 0 {
			return false
		}
		for _, c := range b[1 : end-1] { // an IPv6 address, at times with an IPv4 one in it
			if unhex(c) < 0 && c != ':' && c != '.' {
				return false
			}
		}
	}
	for i := end; i < len(b); i++ {
		c := b[i]
		if c == ':' {
			for _, c := range b[i+1:] {
				if c < '0' || c > '9' {
					return false
				}
			}
			return i > 0
		}
		if end > 0 || !isHost[c] {
			return false
		}
	}
	return len(b) > 0
}

// appendList puts the values of a field that comes more than once together (RFC 9110 section 5.3).
func appendList(list, more []byte) []byte {
	if len(list) == 0 {
		return more
	}
	return slices.Concat(list, []byte(","), more)
}

// connection reads the options of a Connection field; it tells whether upgrade is one.
func (h *requestHead) connection(v []byte) (upgrade bool) {
	for len(v) > 0 {
		var option []byte
		option, v, _ = bytes.Cut(v, []byte(","))
		option = trimSpace(option)
		switch {
		case equalFold(option, "close"):
			h.close = true
		case equalFold(option, "keep-alive"):
			if h.minor == 0 {
				h.close = false
			}
		case equalFold(option, "upgrade"):
			upgrade = true
		}
	}
	return upgrade
}

// dropHopByHop removes the fields that concern one connection (RFC 9110 section 7.6.1), and those that Connection
// names. TE stays when it is "trailers", as gRPC needs.
func dropHopByHop(fields []field, connection []byte) []field {
	named := len(connection) > 0 && !equalFold(connection, "keep-alive") && !equalFold(connection, "close")
	out := fields[:0]
	for _, f := range fields {
		switch f.id {
		case fConnection, fContentLength, fTransferEncoding, fHost, fUpgrade, fKeepAlive, fProxyConnection, fExpect:
			continue
		case fTE:
			if !equalFold(f.value, "trailers") {
				continue
			}
		}
		if named && f.id != fTE && names(connection, f.name) {
			continue
		}
		out = append(out, f)
	}
	return out
}

// names tells whether a comma-separated list has the token, whatever its case.
func names(list, token []byte) bool {
	for len(list) > 0 {
		var one []byte
		one, list, _ = bytes.Cut(list, []byte(","))
		if bytes.EqualFold(trimSpace(one), token) {
			return true
		}
	}
	return false
}

// parseLength reads a Content-Length: digits only, below 2^63.
func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// responseHead is an endpoint's answer. Its bytes belong to the buffer that it was parsed from.
type responseHead struct {
	status int
	reason []byte
	length int64 // of the body; -1 chunked, -2 until the connection closes
	close  bool  // the connection can't be kept
	fields []field
}

// parseResponse parses a head, which ends with its empty line. method is that of the request (RFC 9112 section 6.3).
func parseResponse(b []byte, method string, h *responseHead) *parseError {
	*h = responseHead{fields: h.fields[:0], length: -2}
	end := bytes.IndexByte(b, '\n')
	if end < 13 || b[end-1] != '\r' {
		return errStatusLine
	}
	line := b[:end-1]
	if string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatusLine
	}
	h.close = line[7] == '0'
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return errStatusLine
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 {
		return errStatusLine
	}
	if len(line) > 13 {
		h.reason = line[13:]
		for _, c := range h.reason {
			if !isValue[c] {
				return errStatusLine
			}
		}
	}
	if err := parseFields(b[end+1:], &h.fields); err != nil {
		return &parseError{502, "response: " + err.reason}
	}
	if err := h.interpret(method); err != nil {
		return err
	}
	h.close = h.close || line[7] == '0' && h.length == -1 // chunked, of which HTTP/1.0 knows nothing (RFC 9112 section 6.1)
	return nil
}

func (h *responseHead) interpret(method string) *parseError {
	var connection []byte
	lengths, chunked := 0, false
	declared := int64(-2)
	for i := range h.fields {
		f := &h.fields[i]
		switch f.id {
		case fContentLength:
			n, ok := parseLength(f.value)
			if lengths++; !ok || lengths > 1 {
				return &parseError{502, "response: Content-Length is repeated or malformed"}
			}
			declared = n
		case fTransferEncoding:
			if chunked || !equalFold(f.value, "chunked") {
				return &parseError{502, "response: Transfer-Encoding is not chunked"}
			}
			chunked = true
		case fConnection:
			connection = appendList(connection, f.value)
			switch {
			case names(connection, []byte("close")):
				h.close = true
			case names(connection, []byte("keep-alive")):
				h.close = false
			}
		}
	}
	if chunked && lengths > 0 {
		return &parseError{502, "response: both Content-Length and Transfer-Encoding"}
	}
	switch {
	case h.status == 101:
		h.length = -2
		return nil // Upgrade and Connection are part of the answer
	case method == "HEAD" || h.status == 304:
		h.length = 0 // Content-Length tells of a body that is not here: it stays among the fields
		h.fields = dropButLength(h.fields, connection)
		return nil
	case h.status < 200 || h.status == 204:
		h.length = 0
	case chunked:
		h.length = -1
	default:
		h.length = declared
	}
	h.close = h.close || h.length == -2
	h.fields = dropHopByHop(h.fields, connection)
	return nil
}

func dropButLength(fields []field, connection []byte) []field {
	for i := range fields {
		if fields[i].id == fContentLength {
			fields[i].id = other
		}
	}
	return dropHopByHop(fields, connection)
}

// cleanPath resolves dot segments and the escapes of unreserved characters, so that what is matched is what the
// endpoint will understand (RFC 3986 section 6.2.2). The common path, which needs neither, is returned as it is.
func cleanPath(path []byte) ([]byte, *parseError) {
	if len(path) == 0 || path[0] != '/' {
		return path, nil
	}
	if bytes.IndexByte(path, '%') < 0 && !bytes.Contains(path, []byte("/.")) {
		return path, nil
	}
	decoded := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c != '%' {
			decoded = append(decoded, c)
			continue
		}
		if i+2 >= len(path) || unhex(path[i+1]) < 0 || unhex(path[i+2]) < 0 {
			return nil, errTarget
		}
		v := byte(unhex(path[i+1])<<4 | unhex(path[i+2]))
		switch {
		case v == 0:
			return nil, errTarget
		case v >= '0' && v <= '9' || v >= 'a' && v <= 'z' || v >= 'A' && v <= 'Z' || v == '-' || v == '.' || v == '_' || v == '~':
			decoded = append(decoded, v)
		default:
			decoded = append(decoded, path[i:i+3]...)
		}
		i += 2
	}
	out := make([]byte, 0, len(decoded))
	for rest := decoded; len(rest) > 0; {
		i := bytes.IndexByte(rest[1:], '/') + 1
		segment := rest
		if i > 0 {
			segment, rest = rest[:i], rest[i:]
		} else {
			rest = nil
		}
		switch string(segment) {
		case "/.":
			if rest == nil {
				out = append(out, '/')
			}
		case "/..":
			j := bytes.LastIndexByte(out, '/')
			if j < 0 {
				return nil, errPath
			}
			if out = out[:j]; rest == nil {
				out = append(out, '/')
			}
		default:
			out = append(out, segment...)
		}
	}
	return out, nil
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
