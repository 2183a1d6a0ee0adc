// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-net/weft/internal/route"
)

// External authentication over gRPC, in Envoy's protocol: envoy.service.auth.v3.Authorization/Check of a CheckRequest,
// answered by a CheckResponse. The numbers below are those of its messages' fields.

// admitGRPC is admit where the authority speaks gRPC.
func (a *externalAuth) admitGRPC(x *exchange, body []byte, otherwise []field) bool {
	v, err := a.check(x, body)
	if err != nil {
		x.deny(deniedExternal, http.StatusInternalServerError, "external authentication: "+err.Error())
		return false
	}
	if v.passed {
		x.fields = v.request.apply(x.fields, x)
		x.edits = append(x.edits, v.response)
		x.query = v.query(x.query)
		return true
	}
	if v.status == http.StatusUnauthorized {
		x.detail().added = append(x.detail().added, otherwise...)
	}
	if x.isGRPC() {
		x.deny(deniedExternal, v.status, "external authentication: refused with status "+strconv.Itoa(v.status))
		return false
	}
	var fields []field
	if v.body != "" {
		fields = append(fields, newField("Content-Type", "text/plain; charset=utf-8"))
	}
	a.handOn(x, &answer{status: v.status, fields: v.refusal.apply(fields, x), body: []byte(v.body)})
	return false
}

// check asks.
func (a *externalAuth) check(x *exchange, body []byte) (*grpcVerdict, error) {
	q := &question{
		method: http.MethodPost, authority: x.asked.authority, path: "/envoy.service.auth.v3.Authorization/Check", timeout: time.Duration(a.conf.Timeout),
		body: a.checkRequest(x, body, make([]byte, grpcPrefix)), call: true,
	}
	binary.BigEndian.PutUint32(q.body[1:], uint32(len(q.body)-grpcPrefix))
	if q.timeout <= 0 {
		q.timeout = externalTimeout
	}
	q.fields = []field{newField("Content-Type", "application/grpc"), newField("Te", "trailers"),
		newField("Grpc-Timeout", strconv.FormatInt(max(min(q.timeout.Milliseconds(), 99999999), 1), 10)+"m")}
	for _, f := range x.fields { // so that it is found in the authority's traces and logs
		if f.id == fRequestID || equalFold(f.name, "traceparent") || equalFold(f.name, "tracestate") {
			q.fields = append(q.fields, f)
		}
	}
	got := &collector{limit: answerMost}
	if err := x.ask(a.cell.Load(), q, got); err != nil {
		return nil, err
	}
	message, err := got.message()
	if err != nil {
		return nil, err
	}
	return readVerdict(message)
}

const grpcPrefix = 5 // bytes before a message: whether it is compressed, its length

// message gives the one message of a call that went well.
func (a *answer) message() ([]byte, error) {
	if a.status != http.StatusOK {
		return nil, fmt.Errorf("answered with status %d, not with that of gRPC", a.status)
	}
	code := a.lookup("grpc-status")
	text := a.lookup("grpc-message")
	for _, f := range a.trailers {
		switch {
		case equalFold(f.name, "grpc-status"):
			code = view(f.value)
		case equalFold(f.name, "grpc-message"):
			text = view(f.value)
		}
	}
	switch {
	case code == "":
		return nil, errors.New("the call ends without a status of gRPC")
	case code != "0":
		return nil, fmt.Errorf("the call ends with status %s of gRPC: %s", code, text)
	case len(a.body) < grpcPrefix || a.body[0] != 0 || int64(binary.BigEndian.Uint32(a.body[1:])) != int64(len(a.body)-grpcPrefix):
		return nil, errors.New("the call's answer is not one message")
	}
	return a.body[grpcPrefix:], nil
}

// checkRequest appends a CheckRequest.
func (a *externalAuth) checkRequest(x *exchange, body, b []byte) []byte {
	return embed(b, 1, func(b []byte) []byte { // attributes
		b = embed(b, 1, func(b []byte) []byte { // source
			port := uint16(0)
			if x.source() == x.peer.remote.Addr() {
				port = x.peer.remote.Port()
			}
			b = appendAddress(b, x.source(), port)
			return appendString(b, 4, x.peer.principal())
		})
		b = embed(b, 2, func(b []byte) []byte { return appendAddress(b, x.peer.local.Addr(), x.peer.local.Port()) }) // destination
		b = embed(b, 4, func(b []byte) []byte {                                                                      // request
			b = embed(b, 1, func(b []byte) []byte { // time
				b = appendNumber(b, 1, uint64(x.began.Unix()))
				return appendNumber(b, 2, uint64(x.began.Nanosecond()))
			})
			return embed(b, 2, func(b []byte) []byte { return a.appendHTTP(b, x, body) })
		})
		if x.peer.tls != nil {
			b = embed(b, 12, func(b []byte) []byte { return appendString(b, 1, x.peer.tls.ServerName) })
		}
		return b
	})
}

// appendHTTP appends the fields of an AttributeContext.HttpRequest.
func (a *externalAuth) appendHTTP(b []byte, x *exchange, body []byte) []byte {
	id, _ := x.Lookup("x-request-id")
	b = appendString(b, 1, id)
	b = appendString(b, 2, x.method)
	header := func(name, value string) {
		b = embed(b, 3, func(b []byte) []byte { return appendString(appendString(b, 1, name), 2, value) })
	}
	if a.told == nil {
		header(":authority", x.asked.authority)
		header(":method", x.method)
		header(":path", x.uri())
		header(":scheme", x.scheme())
	}
	var seen []string
	for i := range x.fields {
		f := &x.fields[i]
		switch f.id {
		case fDropped, fConnection, fTransferEncoding, fKeepAlive, fProxyConnection, fHost:
			continue
		}
		if a.told != nil && !hidden(a.told, f.name) {
			continue
		}
		name := strings.ToLower(view(f.name))
		if !slices.Contains(seen, name) {
			seen = append(seen, name)
			value, _ := x.Lookup(name)
			header(name, value)
		}
	}
	b = appendString(b, 4, x.uri())
	b = appendString(b, 5, x.asked.authority)
	b = appendString(b, 6, x.scheme())
	b = appendNumber(b, 9, uint64(x.length))
	protocol := "HTTP/2"
	if x.major == 1 {
		protocol = "HTTP/1." + string('0'+rune(x.minor))
	}
	b = appendString(b, 10, protocol)
	b = appendString(b, 11, view(body))
	if !utf8.Valid(body) { // who looks at the text alone sees that there is something
		b = protowire.AppendBytes(protowire.AppendTag(b, 12, protowire.BytesType), body)
	}
	return b
}

// principal is who the client is by its certificate, if that is known to be right: its first URI, DNS name, or subject.
func (pe *peer) principal() string {
	if pe.tls == nil || len(pe.tls.VerifiedChains) == 0 {
		return ""
	}
	c := pe.tls.PeerCertificates[0]
	switch {
	case len(c.URIs) > 0:
		return c.URIs[0].String()
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	}
	return c.Subject.String()
}

// appendAddress appends a Peer's address.
func appendAddress(b []byte, addr netip.Addr, port uint16) []byte {
	return embed(b, 1, func(b []byte) []byte { // address
		return embed(b, 1, func(b []byte) []byte { // socket_address
			return appendNumber(appendString(b, 2, addr.String()), 3, uint64(port))
		})
	})
}

func embed(b []byte, field protowire.Number, message func([]byte) []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), message(nil))
}

// appendText appends a string, which has to be UTF-8; "" is what is not there.
func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), strings.ToValidUTF8(s, "\uFFFD"))
}

func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

// grpcVerdict is what a CheckResponse says.
type grpcVerdict struct {
	passed            bool
	request, response edit // of a request that passed
	setQuery          [][2]string
	dropQuery         []string
	status            int // of a refusal
	refusal           edit
	body              string
}

// readVerdict reads a CheckResponse. One that says neither yes nor no is an error, as is whatever can't be read.
func readVerdict(b []byte) (*grpcVerdict, error) {
	v := &grpcVerdict{status: http.StatusForbidden}
	var said, ok, denied bool
	var code uint64
	err := eachField(b, func(n protowire.Number, p []byte, _ uint64) error {
		switch n {
		case 1: // status
			said = true
			return eachField(p, func(n protowire.Number, _ []byte, value uint64) error {
				if n == 1 {
					code = value
				}
				return nil
			})
		case 2: // denied_response
			denied = true
			return v.readDenied(p)
		case 3: // ok_response
			ok = true
			return v.readOK(p)
		case 5: // error_response
			return errors.New("the authority says that it can't tell")
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case !said && !ok && !denied:
		return nil, errors.New("the answer says neither yes nor no")
	}
	v.passed = code == 0 && !denied
	return v, nil
}

func (v *grpcVerdict) readOK(b []byte) error {
	return eachField(b, func(n protowire.Number, p []byte, _ uint64) error {
		switch n {
		case 2: // headers
			return readHeader(p, &v.request, false)
		case 5: // headers_to_remove
			if name := string(p); !route.Framing(name) {
				v.request.remove = append(v.request.remove, strings.ToLower(name))
			}
		case 6: // response_headers_to_add
			return readHeader(p, &v.response, true)
		case 7: // query_parameters_to_set
			var pair [2]string
			if err := eachField(p, func(n protowire.Number, p []byte, _ uint64) error {
				if n == 1 || n == 2 {
					pair[n-1] = string(p)
				}
				return nil
			}); err != nil {
				return err
			}
			v.setQuery = append(v.setQuery, pair)
		case 8: // query_parameters_to_remove
			v.dropQuery = append(v.dropQuery, string(p))
		}
		return nil
	})
}

func (v *grpcVerdict) readDenied(b []byte) error {
	return eachField(b, func(n protowire.Number, p []byte, _ uint64) error {
		switch n {
		case 1: // status
			return eachField(p, func(n protowire.Number, _ []byte, value uint64) error {
				if n == 1 && value >= 200 && value <= 599 {
					v.status = int(value)
				}
				return nil
			})
		case 2: // headers
			return readHeader(p, &v.refusal, true)
		case 3: // body
			v.body = string(p)
		}
		return nil
	})
}

// Values of HeaderValueOption.append_action.
const (
	appendOrAdd      = 0
	addIfAbsent      = 1
	overwriteOrAdd   = 2
	overwriteIfThere = 3
)

// readHeader reads a HeaderValueOption. Where that does not say what is to be done, a header is added to what there is or
// takes its place. Those that frame messages are the gateway's own.
func readHeader(b []byte, e *edit, adds bool) error {
	var name, value string
	action := uint64(overwriteOrAdd)
	if adds {
		action = appendOrAdd
	}
	err := eachField(b, func(n protowire.Number, p []byte, number uint64) error {
		switch n {
		case 1: // header
			return eachField(p, func(n protowire.Number, p []byte, _ uint64) error {
				switch n {
				case 1:
					name = string(p)
				case 2, 3: // value, raw_value
					value = string(p)
				}
				return nil
			})
		case 2: // append
			action = overwriteOrAdd
			return eachField(p, func(n protowire.Number, _ []byte, value uint64) error {
				if n == 1 && value != 0 {
					action = appendOrAdd
				}
				return nil
			})
		case 3: // append_action
			action = number
		}
		return nil
	})
	if err != nil || name == "" || route.Framing(name) || strings.ContainsFunc(name, func(r rune) bool { return r > 0x7f || !isToken[byte(r)] }) {
		return err
	}
	f := newField(name, value)
	switch action {
	case appendOrAdd:
		e.add = append(e.add, f)
	case addIfAbsent:
		e.absent = append(e.absent, f)
	case overwriteOrAdd:
		e.set = append(e.set, f)
	case overwriteIfThere:
		e.present = append(e.present, f)
	default:
		return fmt.Errorf("header %s: append_action %d is not known", name, action)
	}
	return nil
}

// query gives a query with its parameters set and removed.
func (v *grpcVerdict) query(old string) string {
	if len(v.setQuery)+len(v.dropQuery) == 0 {
		return old
	}
	var kept []string
	for pair := range strings.SplitSeq(old, "&") {
		key, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(key); err == nil {
			key = plain
		}
		if pair != "" && !slices.Contains(v.dropQuery, key) && !slices.ContainsFunc(v.setQuery, func(s [2]string) bool { return s[0] == key }) {
			kept = append(kept, pair)
		}
	}
	for _, s := range v.setQuery {
		if !slices.Contains(v.dropQuery, s[0]) {
			kept = append(kept, url.QueryEscape(s[0])+"="+url.QueryEscape(s[1]))
		}
	}
	return strings.Join(kept, "&")
}

var errMessage = errors.New("the answer can't be read as a message of protobuf")

// eachField reads a message of protobuf: fields of bytes and messages come as p, numbers as value.
func eachField(b []byte, take func(n protowire.Number, p []byte, value uint64) error) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errMessage
		}
		b = b[size:]
		var p []byte
		var value uint64
		switch kind {
		case protowire.BytesType:
			p, size = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			value, size = protowire.ConsumeVarint(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return errMessage
		}
		b = b[size:]
		if kind == protowire.BytesType || kind == protowire.VarintType {
			if err := take(n, p, value); err != nil {
				return err
			}
		}
	}
	return nil
}
