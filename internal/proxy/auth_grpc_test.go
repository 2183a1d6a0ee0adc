// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/weft-net/weft/internal/route"
)

// authMessages are the messages of Envoy's authorization service, as far as they matter here, each with its fields'
// names, numbers and types; "*" is repeated.
var authMessages = map[string]string{
	"CheckRequest":       "attributes=1:AttributeContext",
	"AttributeContext":   "source=1:Peer destination=2:Peer request=4:Request tls_session=12:TLSSession",
	"Peer":               "address=1:Address service=2:string principal=4:string",
	"Address":            "socket_address=1:SocketAddress",
	"SocketAddress":      "protocol=1:int32 address=2:string port_value=3:uint32",
	"Request":            "time=1:Timestamp http=2:HttpRequest",
	"Timestamp":          "seconds=1:int64 nanos=2:int32",
	"HttpRequest":        "id=1:string method=2:string headers=3:*Entry path=4:string host=5:string scheme=6:string query=7:string size=9:int64 protocol=10:string body=11:string raw_body=12:bytes",
	"Entry":              "key=1:string value=2:string",
	"TLSSession":         "sni=1:string",
	"CheckResponse":      "status=1:Status denied_response=2:DeniedHttpResponse ok_response=3:OkHttpResponse error_response=5:DeniedHttpResponse",
	"Status":             "code=1:int32 message=2:string",
	"DeniedHttpResponse": "status=1:HttpStatus headers=2:*HeaderValueOption body=3:string",
	"HttpStatus":         "code=1:int32",
	"OkHttpResponse": "headers=2:*HeaderValueOption headers_to_remove=5:*string response_headers_to_add=6:*HeaderValueOption " +
		"query_parameters_to_set=7:*Entry query_parameters_to_remove=8:*string",
	"HeaderValueOption": "header=1:HeaderValue append=2:Bool append_action=3:int32 keep_empty_value=4:bool",
	"HeaderValue":       "key=1:string value=2:string raw_value=3:bytes",
	"Bool":              "value=1:bool",
}

// authTypes makes types of authMessages.
func authTypes(t *testing.T) func(name string) *dynamicpb.Message {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{Name: proto.String("auth.proto"), Package: proto.String("envoy.service.auth.v3"), Syntax: proto.String("proto3")}
	kinds := map[string]descriptorpb.FieldDescriptorProto_Type{
		"string": descriptorpb.FieldDescriptorProto_TYPE_STRING, "bytes": descriptorpb.FieldDescriptorProto_TYPE_BYTES, "bool": descriptorpb.FieldDescriptorProto_TYPE_BOOL,
		"int32": descriptorpb.FieldDescriptorProto_TYPE_INT32, "int64": descriptorpb.FieldDescriptorProto_TYPE_INT64, "uint32": descriptorpb.FieldDescriptorProto_TYPE_UINT32,
	}
	for name, fields := range authMessages {
		m := &descriptorpb.DescriptorProto{Name: proto.String(name)}
		for _, f := range strings.Fields(fields) {
			f, kind, _ := strings.Cut(f, ":")
			field, number, _ := strings.Cut(f, "=")
			var n int32
			_, _ = fmt.Sscan(number, &n)
			d := &descriptorpb.FieldDescriptorProto{Name: proto.String(field), Number: &n, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
			kind, many := strings.CutPrefix(kind, "*")
			if many {
				d.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
			}
			if k, ok := kinds[kind]; ok {
				d.Type = k.Enum()
			} else {
				d.Type, d.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), proto.String(".envoy.service.auth.v3."+kind)
			}
			m.Field = append(m.Field, d)
		}
		file.MessageType = append(file.MessageType, m)
	}
	made, err := protodesc.NewFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) *dynamicpb.Message {
		return dynamicpb.NewMessage(made.Messages().ByName(protoreflect.Name(name)))
	}
}

// checked is a CheckRequest as the authority got it.
type checked struct {
	Attributes struct {
		Source, Destination struct {
			Address struct {
				SocketAddress struct {
					Address   string
					PortValue int
				}
			}
			Principal string
		}
		Request struct {
			Time struct{ Seconds string }
			Http struct { //nolint:revive // protojson's name
				ID, Method, Path, Host, Scheme, Query, Size, Protocol, Body string
				RawBody                                                     []byte
				Headers                                                     []struct{ Key, Value string }
			}
		}
		TLSSession struct{ Sni string }
	}
}

func (c *checked) header(name string) string {
	for _, h := range c.Attributes.Request.Http.Headers {
		if h.Key == name {
			return h.Value
		}
	}
	return "none"
}

// authority2 is an authority of grpc-go, which answers with a CheckResponse in JSON, or an error.
type authority2 struct {
	addr  string
	count atomic.Int64
	last  atomic.Pointer[checked]
	stop  func()
}

func newAuthority2(t *testing.T, answer func(*checked) (string, error)) *authority2 {
	t.Helper()
	a, types := &authority2{}, authTypes(t)
	check := func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		a.count.Add(1)
		in := types("CheckRequest")
		if err := decode(in); err != nil {
			return nil, err
		}
		if len(in.ProtoReflect().GetUnknown()) > 0 {
			return nil, status.Error(codes.InvalidArgument, "fields that are not known")
		}
		text, err := protojson.Marshal(in)
		if err != nil {
			return nil, err
		}
		c := &checked{}
		if err := json.Unmarshal(text, c); err != nil {
			return nil, err
		}
		a.last.Store(c)
		text2, err := answer(c)
		if err != nil {
			return nil, err
		}
		out := types("CheckResponse")
		return out, protojson.Unmarshal([]byte(text2), out)
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "envoy.service.auth.v3.Authorization", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Check", Handler: check}}}, a)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.addr, a.stop = l.Addr().String(), s.Stop
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return a
}

// asking has an authority asked over gRPC.
func asking(c route.ExternalAuth, authority string, endpoints ...string) route.Update {
	c.Backend, c.GRPC = "auth", true
	u := withBackend(guarded(route.Policy{ExternalAuth: &c}, endpoints...), "auth", authority)
	u.Backends[1].Protocol = route.HTTP2
	return u
}

func TestGRPCAuthQuestion(t *testing.T) {
	e := newEcho(t, "e")
	a := newAuthority2(t, func(*checked) (string, error) { return `{"status": {}}`, nil })
	r := start(t, asking(route.ExternalAuth{ForwardBody: 100}, a.addr, e.addr()))
	resp, body := r.once("POST", "/a/b%20c?who=x", map[string]string{"X-Ask": "ann", "Cookie": "c=1", "X-Request-Id": "id-1", "Content-Type": "text/plain", "Latin": "caf\xe9"}, "the body")
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil || resp.StatusCode != 200 || s.Body != "the body" || s.Header.Get("X-Ask") != "ann" {
		t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	c := a.last.Load()
	h := c.Attributes.Request.Http
	if h.ID != "id-1" || h.Method != "POST" || h.Path != "/a/b%20c?who=x" || h.Host != "a.example.com" || h.Scheme != "http" || h.Query != "" ||
		h.Size != "8" || h.Protocol != "HTTP/1.1" || h.Body != "the body" || len(h.RawBody) != 0 {
		t.Errorf("%+v", h)
	}
	for name, want := range map[string]string{
		":authority": "a.example.com", ":method": "POST", ":path": "/a/b%20c?who=x", ":scheme": "http", "x-ask": "ann", "cookie": "c=1", "content-type": "text/plain",
		"x-forwarded-for": "127.0.0.1", "latin": "caf\uFFFD", "host": "none", "connection": "none",
	} {
		if got := c.header(name); got != want {
			t.Errorf("header %s is %q, want %q", name, got, want)
		}
	}
	from, to := c.Attributes.Source.Address.SocketAddress, c.Attributes.Destination.Address.SocketAddress
	if from.Address != "127.0.0.1" || from.PortValue == 0 || to.Address+fmt.Sprintf(":%d", to.PortValue) != r.tcp() || c.Attributes.Source.Principal != "" {
		t.Errorf("from %+v to %+v", from, to)
	}
	if c.Attributes.Request.Time.Seconds == "" {
		t.Error("no time")
	}
	// Several fields of a name are one, and bytes that are no text come as they are besides.
	r.once("POST", "/", nil, "\xff\x00body")
	if h := a.last.Load().Attributes.Request.Http; h.Body != "\uFFFD\x00body" || string(h.RawBody) != "\xff\x00body" {
		t.Errorf("%q %q", h.Body, h.RawBody)
	}
	conn := r.dial()
	conn.send("GET / HTTP/1.0\r\nHost: a.example.com\r\nX-A: 1\r\nx-a: 2\r\nCookie: a\r\nCookie: b\r\n\r\n")
	conn.answer("GET")
	if c := a.last.Load(); c.header("x-a") != "1,2" || c.header("cookie") != "a; b" || c.Attributes.Request.Http.Protocol != "HTTP/1.0" || c.Attributes.Request.Http.Size != "" {
		t.Errorf("%+v", c.Attributes.Request.Http)
	}
	// Only what is asked for is told.
	r.update.Policies[0].ExternalAuth = &route.ExternalAuth{Backend: "auth", GRPC: true, Headers: []string{"X-Ask"}}
	r.apply()
	r.once("POST", "/", map[string]string{"X-Ask": "ann", "Authorization": "secret"}, "the body")
	if h := a.last.Load().Attributes.Request.Http; len(h.Headers) != 1 || h.Headers[0].Key != "x-ask" || h.Body != "" || h.Size != "8" {
		t.Errorf("%+v", h)
	}
}

// Of clients of HTTP/2 and TLS it is told, too, what they have shown.
func TestGRPCAuthOfTLSClients(t *testing.T) {
	ca := newAuthority(t)
	a := newAuthority2(t, func(*checked) (string, error) { return `{"ok_response": {}}`, nil })
	u := secure(t, ca, newEcho(t, "e").addr(), "a.example.com")
	u = withBackend(u, "auth", a.addr)
	u.Backends[1].Protocol = route.HTTP2
	u.Policies = []route.Policy{{Key: "p", ExternalAuth: &route.ExternalAuth{Backend: "auth", GRPC: true}}}
	u.Routes[0].Policies = []string{"p"}
	u.Listeners[0].TLS.Client = &route.ClientValidation{CAs: ca.pem}
	r := start(t, u)
	cert := ca.issue(t, "c", "spiffe://example.com/ann", "ann.example.com")
	pair, err := keyPair(&cert)
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}}
	if resp, b, err := r.ask(ca, true, "a.example.com", "a.example.com", conf); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, b, err)
	}
	c := a.last.Load()
	if h := c.Attributes.Request.Http; h.Protocol != "HTTP/2" || h.Scheme != "https" || c.Attributes.Source.Principal != "spiffe://example.com/ann" || c.Attributes.TLSSession.Sni != "a.example.com" {
		t.Errorf("%+v %+v", c.Attributes.Source, h)
	}
}

// A yes may change the request and its answer; whatever the client claims in the place of the authority's word is gone.
func TestGRPCAuthPassed(t *testing.T) {
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-There"], w.Header()["X-Both"] = []string{"endpoint"}, []string{"endpoint"}
		_ = json.NewEncoder(w).Encode(map[string]any{"header": r.Header, "uri": r.RequestURI})
	})
	a := newAuthority2(t, func(*checked) (string, error) {
		return `{"status": {"code": 0}, "ok_response": {
			"headers": [
				{"header": {"key": "X-User", "value": "ann"}}, {"header": {"key": "x-raw", "raw_value": "YnBhdw=="}},
				{"header": {"key": "x-list", "value": "more"}, "append": {"value": true}}, {"header": {"key": "x-set", "value": "set"}, "append": {}},
				{"header": {"key": "x-absent", "value": "no"}, "append_action": 1}, {"header": {"key": "x-new", "value": "yes"}, "append_action": 1},
				{"header": {"key": "x-there", "value": "yes"}, "append_action": 3}, {"header": {"key": "x-nothing", "value": "no"}, "append_action": 3},
				{"header": {"key": "host", "value": "evil"}}, {"header": {"key": "transfer-encoding", "value": "chunked"}},
				{"header": {"key": "bad name", "value": "x"}}, {"header": {"key": "x-split", "value": "a\r\nX-Evil: b"}}
			],
			"headers_to_remove": ["Authorization", "Host", "x-gone"],
			"response_headers_to_add": [
				{"header": {"key": "Set-Cookie", "value": "a=1"}}, {"header": {"key": "Set-Cookie", "value": "b=2"}},
				{"header": {"key": "X-There", "value": "no"}, "append_action": 1}, {"header": {"key": "X-Both", "value": "authority"}, "append_action": 2}
			],
			"query_parameters_to_set": [{"key": "user", "value": "a&b"}], "query_parameters_to_remove": ["tok en"]}}`, nil
	})
	r := start(t, asking(route.ExternalAuth{}, a.addr, e))
	resp, body := r.once("GET", "/x?keep=1&user=forged&tok%20en=2&flag", map[string]string{
		"X-User": "forged", "Authorization": "secret", "X-Gone": "x", "X-List": "first", "X-Absent": "client", "X-There": "client", "X-Set": "client",
	}, "")
	var got struct {
		Header http.Header
		URI    string
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode, body, err)
	}
	for name, want := range map[string]string{
		"X-User": "ann", "X-Raw": "bpaw", "X-List": "first, more", "X-Set": "set", "X-Absent": "client", "X-New": "yes", "X-There": "yes", "X-Nothing": "",
		"Authorization": "", "X-Gone": "", "Badname": "", "X-Evil": "", "X-Split": "aX-Evil: b",
	} {
		if v := strings.Join(got.Header.Values(name), ", "); v != want {
			t.Errorf("the endpoint's %s is %q, want %q", name, v, want)
		}
	}
	if got.URI != "/x?keep=1&flag&user=a%26b" {
		t.Errorf("asked for %s", got.URI)
	}
	if v := resp.Header; strings.Join(v.Values("Set-Cookie"), ", ") != "a=1, b=2" || strings.Join(v.Values("X-There"), ",") != "endpoint" || strings.Join(v.Values("X-Both"), ",") != "authority" {
		t.Errorf("%v", v)
	}
}

// A refusal is the client's as the authority says it, and whatever is no clear yes lets nobody through.
func TestGRPCAuthRefused(t *testing.T) {
	e := newEcho(t, "e")
	a := newAuthority2(t, func(c *checked) (string, error) {
		text := c.header("x-answer")
		if code, ok := strings.CutPrefix(text, "error "); ok {
			var n codes.Code
			if err := n.UnmarshalJSON([]byte(code)); err != nil {
				return "", err
			}
			return "", status.Error(n, "no")
		}
		return text, nil
	})
	r := start(t, asking(route.ExternalAuth{}, a.addr, e.addr()))
	for answer, want := range map[string]int{
		`{"status": {"code": 7}}`: 403,
		`{"status": {"code": 16}, "denied_response": {"status": {"code": 401}, "headers": [{"header": {"key": "WWW-Authenticate", "value": "Bearer"}}], "body": "who?"}}`:                        401,
		`{"status": {"code": 7}, "denied_response": {"status": {"code": 302}, "headers": [{"header": {"key": "Location", "value": "https://login.example.com/"}}]}}`:                             302,
		`{"status": {"code": 7}, "denied_response": {"status": {"code": 429}, "body": "{}", "headers": [{"header": {"key": "Content-Type", "value": "application/json"}, "append_action": 2}]}}`: 429,
		`{"status": {"code": 7}, "denied_response": {"status": {"code": 99}}}`:                                                                                                                   403,
		`{"status": {"code": 7}, "denied_response": {"status": {"code": 103}}}`:                                                                                                                  403,
		`{"status": {"code": 0}, "denied_response": {}}`:                                                                                                                                         403, // both
		`{"denied_response": {}}`:                    403,
		`{"status": {"code": 7}, "ok_response": {}}`: 403, // both
		`{}`: 500,
		`{"status": {"code": 14}, "error_response": {}}`:                                             500,
		`{"ok_response": {"headers": [{"header": {"key": "a", "value": "b"}, "append_action": 9}]}}`: 500,
		`error "UNAVAILABLE"`:       500,
		`error "PERMISSION_DENIED"`: 500,
	} {
		resp, body := r.once("GET", "/", map[string]string{"X-Answer": answer}, "")
		if resp.StatusCode != want {
			t.Errorf("%s: %d %q", answer, resp.StatusCode, body)
		}
		switch want {
		case 401:
			if body != "who?" || resp.Header.Get("WWW-Authenticate") != "Bearer" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
				t.Errorf("%q %v", body, resp.Header)
			}
		case 302:
			if resp.Header.Get("Location") != "https://login.example.com/" || body != "" {
				t.Errorf("%q %v", body, resp.Header)
			}
		case 429:
			if got := resp.Header.Values("Content-Type"); body != "{}" || len(got) != 1 || got[0] != "application/json" {
				t.Errorf("%q %v", body, resp.Header)
			}
		}
	}
	// A call gets a status of its own.
	f := newFramer(t, r.tcp())
	f.headers(whole, 1, head(":method", "POST", "content-type", "application/grpc", "te", "trailers", "x-answer", `{"denied_response": {"status": {"code": 401}}}`))
	for done := false; !done; {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := fr.(*http2.MetaHeadersFrame); ok {
			code := regular(h, "grpc-status")
			if done = true; h.PseudoValue("status") != "200" || code != "16" {
				t.Errorf("%s, status of gRPC %q", h.PseudoValue("status"), code)
			}
		}
	}
	// Without the authority, or where something else answers, nobody gets in.
	a.stop()
	r.want(500, "/", map[string]string{"X-Answer": `{"ok_response": {}}`})
	for name, h := range map[string]http.HandlerFunc{
		"no message": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Grpc-Status", "0") },
		"no status":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "\x00\x00\x00\x00\x02\x1a\x00") },
		"two messages": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = io.WriteString(w, strings.Repeat("\x00\x00\x00\x00\x02\x1a\x00", 2))
			w.Header().Set("Grpc-Status", "0")
		},
		"compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = io.WriteString(w, "\x01\x00\x00\x00\x02\x1a\x00")
			w.Header().Set("Grpc-Status", "0")
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = io.WriteString(w, "\x00\x00\x00\x00\x03\x1a\x05x")
			w.Header().Set("Grpc-Status", "0")
		},
		"a page": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, asking(route.ExternalAuth{}, h2cServer(t, h), e.addr()))
			r.want(500, "/", nil)
		})
	}
	if n := e.count.Load(); n != 0 {
		t.Errorf("%d refused requests came through", n)
	}
}

// A body that is told is told whole, or the request is refused; the endpoint gets it as it came.
func TestAuthForwardsBodies(t *testing.T) {
	e := newEcho(t, "e")
	var told atomic.Pointer[http.Request]
	var text atomic.Pointer[string]
	web := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s := string(b)
		told.Store(r)
		text.Store(&s)
	})
	a := newAuthority2(t, func(c *checked) (string, error) {
		text.Store(&c.Attributes.Request.Http.Body)
		return `{"ok_response": {}}`, nil
	})
	const limit = 70_000
	for name, u := range map[string]route.Update{
		"HTTP": withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "$request_uri", Headers: []string{"Content-Type"}, ForwardBody: limit}}, e.addr()), "auth", web),
		"gRPC": asking(route.ExternalAuth{ForwardBody: limit}, a.addr, e.addr()),
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, u)
			for _, size := range []int{0, 1, 20_000, limit, limit + 1, 500_000} {
				for _, chunked := range []bool{false, true} {
					for _, version := range []int{1, 2} {
						text.Store(nil)
						before, body := e.count.Load(), strings.Repeat("x", size)
						var send io.Reader = strings.NewReader(body)
						if chunked {
							send = io.MultiReader(send)
						}
						req, err := http.NewRequest("POST", "http://"+r.tcp()+"/", send)
						if err != nil {
							t.Fatal(err)
						}
						req.Header.Set("Content-Type", "text/x")
						tr := h2cClient()
						if version == 1 {
							tr = &http.Transport{}
						}
						resp, err := tr.RoundTrip(req)
						if err != nil {
							t.Fatalf("%d bytes, chunked %v, HTTP/%d: %v", size, chunked, version, err)
						}
						answer, _ := io.ReadAll(resp.Body)
						resp.Body.Close()
						tr.CloseIdleConnections()
						if size > limit {
							if resp.StatusCode != 413 || e.count.Load() != before || text.Load() != nil {
								t.Errorf("%d bytes, chunked %v, HTTP/%d: %d", size, chunked, version, resp.StatusCode)
							}
							continue
						}
						var s seen
						if err := json.Unmarshal(answer, &s); err != nil || resp.StatusCode != 200 || len(s.Body) != size {
							t.Errorf("%d bytes, chunked %v, HTTP/%d: %d, %d bytes at the endpoint, %v", size, chunked, version, resp.StatusCode, len(s.Body), err)
						}
						if got := text.Load(); got == nil || *got != body {
							t.Errorf("%d bytes, chunked %v, HTTP/%d: the authority was told something else", size, chunked, version)
						}
						if q := told.Load(); name == "HTTP" && (q.ContentLength != int64(size) || size > 0 && q.Header.Get("Content-Type") != "text/x") {
							t.Errorf("the question has %d bytes, %v", q.ContentLength, q.Header)
						}
					}
				}
			}
		})
	}
	// Trailers come after a body that was told.
	r := start(t, withBackend(guarded(route.Policy{ExternalAuth: &route.ExternalAuth{Backend: "auth", Path: "/", ForwardBody: 10}}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", b, r.Trailer.Get("X-Sum"))
	})), "auth", web))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 42\r\n\r\n")
	if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "body 42" || *text.Load() != "body" {
		t.Errorf("%d %q, told %q", resp.StatusCode, body, *text.Load())
	}
	// A client that waits for leave to send its body gets it.
	c.send("POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, err := c.r.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatal(line, err)
	}
	if _, err := c.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	c.send("wait")
	if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "wait " {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

func FuzzCheckResponse(f *testing.F) {
	for _, s := range []string{"", "\x0a\x00", "\x1a\x00", "\x12\x02\x0a\x00", "\x0a\x02\x08\x07", "\x1a\x0c\x12\x0a\x0a\x06\x0a\x01a\x12\x01b\x18\x03", "\x0a\xff", "\x2a\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := readVerdict(b)
		if err != nil {
			return
		}
		if v.status < 200 || v.status > 599 {
			t.Errorf("status %d", v.status)
		}
		for _, list := range [][]field{v.request.set, v.request.add, v.request.absent, v.request.present, v.response.add, v.refusal.set} {
			for _, f := range list {
				if route.Framing(string(f.name)) || len(f.name) == 0 || strings.ContainsAny(string(f.name)+string(f.value), "\r\n\x00") {
					t.Errorf("field %q: %q", f.name, f.value)
				}
			}
		}
		if strings.ContainsAny(v.query("a=b&c"), " \r\n#") {
			t.Errorf("query %q", v.query("a=b&c"))
		}
	})
}
