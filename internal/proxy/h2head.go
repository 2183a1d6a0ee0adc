// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Bounds on one header block, compressed and not, whose frames may be many.
const (
	maxBlockBytes  = 2 * maxHead
	maxBlockFrames = 64
)

// isLower are the bytes of a field name in HTTP/2 (RFC 9113 section 8.2.1).
var isLower = func() (t [256]bool) {
	for c := range 256 {
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z'
		t[c] = alnum || c > 0 && c < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()

// h2block is a header block while its frames come in, and what it says. Strings are never changed, so they may be kept.
type h2block struct {
	dec *hpack.Decoder

	stream    uint32
	open      bool // its END_HEADERS has not come
	end       bool // END_STREAM
	bytes     int  // compressed, so far
	frames    int
	size      int // as RFC 9113 section 6.5.2 counts
	malformed string
	tooLarge  bool

	// Pseudo-header fields; has tells which came.
	method, scheme, authority, path, protocol string
	status                                    int
	has                                       pseudo
	host                                      string
	hosts                                     int
	length                                    int64 // content-length; -1: none
	expect                                    bool
	expects                                   bool // something that we don't know
	cookie                                    int  // index of the cookie field, -1: none
	fields                                    []field
}

type pseudo uint8

const (
	hasMethod pseudo = 1 << iota
	hasScheme
	hasAuthority
	hasPath
	hasProtocol
	hasStatus
	hasRegular
)

func newBlock() *h2block {
	b := &h2block{}
	b.dec = hpack.NewDecoder(4096, b.emit)
	b.dec.SetMaxStringLength(maxHead)
	return b
}

func (b *h2block) begin(stream uint32, end bool) {
	*b = h2block{dec: b.dec, stream: stream, open: true, end: end, length: -1, cookie: -1, fields: b.fields[:0]}
	b.dec.SetEmitEnabled(true)
}

// add takes a fragment. The decoder's state must follow whatever becomes of the block.
func (b *h2block) add(fragment []byte) *h2error {
	b.frames++
	if b.bytes += len(fragment); b.bytes > maxBlockBytes || b.frames > maxBlockFrames {
		return connError(http2.ErrCodeEnhanceYourCalm, "a header block without end")
	}
	if _, err := b.dec.Write(fragment); err != nil {
		return connError(http2.ErrCodeCompression, err.Error())
	}
	return nil
}

func (b *h2block) finish() *h2error {
	b.open = false
	if err := b.dec.Close(); err != nil {
		return connError(http2.ErrCodeCompression, err.Error())
	}
	return nil
}

// emit takes a field as the decoder finds it.
func (b *h2block) emit(f hpack.HeaderField) {
	if b.size += len(f.Name) + len(f.Value) + 32; b.size > maxHead || len(b.fields) == maxFields {
		b.tooLarge = true
		b.dec.SetEmitEnabled(false)
		return
	}
	if len(f.Name) == 0 {
		b.malformed = "a field without a name"
		return
	}
	for i := range len(f.Value) {
		if !isValue[f.Value[i]] {
			b.malformed = "forbidden byte in a field value"
			return
		}
	}
	if n := len(f.Value); n > 0 && (f.Value[0] == ' ' || f.Value[0] == '\t' || f.Value[n-1] == ' ' || f.Value[n-1] == '\t') {
		b.malformed = "white space around a field value"
		return
	}
	if f.Name[0] == ':' {
		b.pseudo(f)
		return
	}
	b.has |= hasRegular
	for i := range len(f.Name) {
		if !isLower[f.Name[i]] {
			b.malformed = "malformed field name"
			return
		}
	}
	b.regular(field{name: raw(f.Name), value: raw(f.Value), id: identify(raw(f.Name))})
}

func (b *h2block) pseudo(f hpack.HeaderField) {
	var bit pseudo
	switch f.Name {
	case ":method":
		bit, b.method = hasMethod, f.Value
	case ":scheme":
		bit, b.scheme = hasScheme, f.Value
	case ":authority":
		bit, b.authority = hasAuthority, f.Value
	case ":path":
		bit, b.path = hasPath, f.Value
	case ":protocol":
		bit, b.protocol = hasProtocol, f.Value
	case ":status":
		bit = hasStatus
		if v := f.Value; len(v) == 3 && v[0] >= '1' && v[0] <= '9' && v[1] >= '0' && v[1] <= '9' && v[2] >= '0' && v[2] <= '9' {
			b.status = int(v[0]-'0')*100 + int(v[1]-'0')*10 + int(v[2]-'0')
		} else {
			b.malformed = "malformed :status"
		}
	default:
		b.malformed = "unknown pseudo-header field"
		return
	}
	if b.has&(bit|hasRegular) != 0 {
		b.malformed = "a pseudo-header field is repeated, or follows others"
	}
	b.has |= bit
}

// regular takes an ordinary field: those that frame the message or concern the connection stay here.
func (b *h2block) regular(f field) {
	switch f.id {
	case fConnection, fTransferEncoding, fKeepAlive, fProxyConnection, fUpgrade:
		b.malformed = "a field that concerns one connection" // RFC 9113 section 8.2.2
	case fTE:
		if !equalFold(f.value, "trailers") {
			b.malformed = "te is not trailers"
			return
		}
		b.fields = append(b.fields, f)
	case fHost:
		b.hosts++
		b.host = view(f.value)
	case fContentLength:
		n, ok := parseLength(f.value)
		if !ok || b.length >= 0 {
			b.malformed = "content-length is repeated or malformed"
		}
		b.length = n
	case fExpect:
		b.expect = equalFold(f.value, "100-continue")
		b.expects = !b.expect
	default:
		if len(f.name) == 6 && string(f.name) == "cookie" {
			// Cookies may come one by one, and are one field in HTTP/1.1 (RFC 9113 section 8.2.3).
			if b.cookie >= 0 {
				old := &b.fields[b.cookie]
				old.value = append(append(old.value[:len(old.value):len(old.value)], "; "...), f.value...)
				return
			}
			b.cookie = len(b.fields)
		}
		b.fields = append(b.fields, f)
	}
}

// request checks that the block is a request's (RFC 9113 section 8.3.1), and gives it to an exchange. malformed ends
// the stream; perr is to be answered.
func (b *h2block) request(x *exchange) (malformed string, perr *parseError) {
	connect := b.method == http.MethodConnect
	extended := connect && b.has&hasProtocol != 0 // RFC 8441
	switch {
	case b.malformed != "":
		return b.malformed, nil
	case b.tooLarge:
		x.method = b.method
		return "", errHeadTooLarge
	case b.has&hasStatus != 0 || b.has&hasMethod == 0 || b.has&hasProtocol != 0 && !connect:
		return "pseudo-header fields of no request", nil
	case connect && !extended:
		if b.has&(hasScheme|hasPath) != 0 || b.has&hasAuthority == 0 {
			return "CONNECT with a scheme or path, or without an authority", nil
		}
		x.method, x.path = b.method, "/"
		return "", errMethod
	case b.has&(hasScheme|hasPath) != hasScheme|hasPath:
		return "a request without scheme or path", nil
	case b.hosts > 1 || b.hosts == 1 && b.has&hasAuthority != 0 && !strings.EqualFold(b.host, b.authority):
		return "host is repeated, or is not the authority", nil
	case b.path == "":
		return "an empty path", nil
	case !equalFold(b.scheme, "http") && !equalFold(b.scheme, "https"):
		return "neither http nor https", nil
	}
	if b.has&hasAuthority == 0 {
		b.authority = b.host
	}
	x.method, x.authority = b.method, b.authority
	x.fields, b.fields = b.fields, x.fields[:0]
	if len(b.method) == 0 {
		return "an empty method", nil
	}
	for i := range len(b.method) {
		if !isToken[b.method[i]] {
			return "malformed method", nil
		}
	}
	if b.authority == "" {
		return "", errHost
	}
	if !isAuthority(raw(b.authority)) {
		return "", errHost
	}
	x.path, x.query, _ = strings.Cut(b.path, "?")
	if b.path[0] != '/' && (b.path != "*" || b.method != http.MethodOptions) {
		x.path = "/"
		return "", errTarget
	}
	for i := range len(b.path) {
		if !isTarget[b.path[i]] {
			x.path = "/"
			return "", errTarget
		}
	}
	path, perr := cleanPath(raw(x.path))
	if perr != nil {
		return "", perr
	}
	x.path = view(path)
	switch {
	case b.expects:
		return "", &parseError{417, "unknown expectation"}
	case extended:
		// The endpoint is asked in HTTP/1.1's way.
		if !equalFold(b.protocol, "websocket") {
			return "", &parseError{501, "unknown protocol of an extended CONNECT"}
		}
		x.method, x.upgrade = http.MethodGet, "websocket"
	}
	x.expect = b.expect
	return "", nil
}

// trailing checks that the block is a trailer section, and gives a copy of its fields.
func (b *h2block) trailing() (fields []field, malformed string) {
	switch {
	case b.malformed != "":
		return nil, b.malformed
	case b.tooLarge:
		return nil, "trailers too large"
	case b.has&^hasRegular != 0:
		return nil, "pseudo-header fields among trailers"
	}
	return dropFraming(append(fields, b.fields...)), ""
}

// response checks that the block is a response's head (RFC 9113 section 8.3.2).
func (b *h2block) response() (malformed string) {
	switch {
	case b.malformed != "":
		return b.malformed
	case b.tooLarge:
		return "head too large"
	case b.has&^hasRegular != hasStatus:
		return "pseudo-header fields of no response"
	case b.status == http.StatusSwitchingProtocols:
		return "101 in HTTP/2"
	case b.status < 200 && b.end:
		return "an informational response that ends the stream"
	}
	return ""
}
