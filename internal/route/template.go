// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"regexp"
	"strings"
)

// Variable is a variable of templates.
type Variable uint8

// The variables. Those with a name or number have it in the template: $arg_NAME, $http_NAME, $cookie_NAME, $1.
const (
	VarHost           Variable = iota // the requested host in lower case, without port; also $server_name
	VarURI                            // the path, without query; also $document_uri
	VarArgs                           // the query, without "?"; also $query_string
	VarIsArgs                         // "?" when there is a query, else ""
	VarArg                            // $arg_NAME: a query parameter, as it was sent
	VarRequestURI                     // the path and query
	VarUnslashedURI                   // $request_uri_unslashed: the path and query, without one "/" at the end
	VarEscapedURI                     // the same, with all but unreserved characters escaped: for a query parameter
	VarScheme                         // "http" or "https"
	VarRequestMethod                  //
	VarRemoteAddr                     // the client's address; also $binary_remote_addr, for keys
	VarServerPort                     // the port that clients connect to
	VarHeader                         // $http_NAME: a request's header; "_" in the name stands for "-"
	VarCookie                         // $cookie_NAME
	VarRemoteUser                     // the name that basic authentication let in
	VarRequestID                      // that of X-Request-ID
	VarGroup                          // $1 to $9: of the rule's, or a replacement's, regular expression
	VarClientVerified                 // $ssl_client_verify: "SUCCESS", "NONE", or "FAILED:" and why
	VarClientSubject                  // $ssl_client_s_dn: the subject of the client's certificate (RFC 2253)
)

var variables = map[string]Variable{
	"host": VarHost, "uri": VarURI, "document_uri": VarURI, "args": VarArgs, "query_string": VarArgs, "is_args": VarIsArgs,
	"request_uri": VarRequestURI, "request_uri_unslashed": VarUnslashedURI, "remote_user": VarRemoteUser, "escaped_request_uri": VarEscapedURI, "scheme": VarScheme, "request_method": VarRequestMethod,
	"remote_addr": VarRemoteAddr, "binary_remote_addr": VarRemoteAddr, "server_port": VarServerPort, "server_name": VarHost,
	"request_id": VarRequestID, "req_id": VarRequestID, "ssl_client_verify": VarClientVerified, "ssl_client_s_dn": VarClientSubject,
	// As ingress-nginx's template names them; people's annotations do so too.
	"pass_access_scheme": VarScheme, "the_real_ip": VarRemoteAddr, "pass_server_port": VarServerPort,
}

// Values tells what variables are for one request. name is that of VarArg, VarHeader (in lower case, with "-") and
// VarCookie; group is the number of VarGroup.
type Values interface {
	Value(v Variable, name string, group int) string
}

// Text is a Template that has been parsed.
type Text struct {
	parts []textPart
}

type textPart struct {
	literal  string // when set, the rest has no meaning
	variable Variable
	name     string
	group    int
}

// ParseTemplate parses a template. An error names the variable that does not exist: nothing is taken literally that
// looks like a variable. "$$" is a dollar sign, and so is a "$" at the end or before anything but a letter, digit, "_"
// or "{".
func ParseTemplate(t Template) (*Text, error) {
	out := &Text{}
	s := string(t)
	literal := func(l string) {
		if n := len(out.parts); n > 0 && out.parts[n-1].literal != "" {
			out.parts[n-1].literal += l
		} else if l != "" {
			out.parts = append(out.parts, textPart{literal: l})
		}
	}
	for {
		before, rest, ok := strings.Cut(s, "$")
		literal(before)
		if !ok {
			return out, nil
		}
		name := ""
		switch {
		case strings.HasPrefix(rest, "$"):
			literal("$")
			s = rest[1:]
			continue
		case strings.HasPrefix(rest, "{"):
			if name, s, ok = strings.Cut(rest[1:], "}"); !ok {
				return nil, fmt.Errorf("%q: ${ is not closed", string(t))
			}
			if name == "" || nameLength(name) != len(name) {
				return nil, fmt.Errorf("%q: ${%s} is not a variable", string(t), name)
			}
		default:
			n := nameLength(rest)
			if n == 0 {
				literal("$")
				s = rest
				continue
			}
			name, s = rest[:n], rest[n:]
		}
		p, err := variable(name)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", string(t), err)
		}
		out.parts = append(out.parts, p)
	}
}

// nameLength is the length of the variable's name that s begins with. A digit is a name by itself.
func nameLength(s string) int {
	if s != "" && s[0] >= '0' && s[0] <= '9' {
		return 1
	}
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return i
		}
	}
	return len(s)
}

func variable(name string) (textPart, error) {
	if name[0] >= '1' && name[0] <= '9' {
		return textPart{variable: VarGroup, group: int(name[0] - '0')}, nil
	}
	if name == "best_http_host" { // ingress-nginx's
		name = "http_host"
	}
	if v, ok := variables[name]; ok {
		return textPart{variable: v}, nil
	}
	for prefix, v := range map[string]Variable{"arg_": VarArg, "http_": VarHeader, "cookie_": VarCookie} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			if v == VarHeader {
				rest = strings.ReplaceAll(strings.ToLower(rest), "_", "-")
			}
			return textPart{variable: v, name: rest}, nil
		}
	}
	return textPart{}, fmt.Errorf("there is no variable $%s", name)
}

// Append evaluates the template. Control characters, which could break a message apart, are left out of what the
// variables hold.
func (t *Text) Append(b []byte, v Values) []byte {
	for i := range t.parts {
		p := &t.parts[i]
		if p.literal != "" {
			b = append(b, p.literal...)
			continue
		}
		for _, c := range []byte(v.Value(p.variable, p.name, p.group)) {
			if c >= ' ' && c != 0x7f {
				b = append(b, c)
			}
		}
	}
	return b
}

// Eval is Append as a string.
func (t *Text) Eval(v Values) string {
	if t == nil {
		return ""
	}
	if len(t.parts) == 1 && t.parts[0].literal != "" {
		return t.parts[0].literal
	}
	return string(t.Append(nil, v))
}

// Constant tells whether there are no variables in the template, and what it is then.
func (t *Text) Constant() (string, bool) {
	switch {
	case t == nil || len(t.parts) == 0:
		return "", true
	case len(t.parts) == 1 && t.parts[0].literal != "":
		return t.parts[0].literal, true
	}
	return "", false
}

// Groups is the highest number of a group that the template uses; 0 is none.
func (t *Text) Groups() (n int) {
	for _, p := range t.parts {
		n = max(n, p.group)
	}
	return n
}

// Replacer is a Replacement made ready.
type Replacer struct {
	from  string
	regex *regexp.Regexp
	to    *Text
}

// Compile makes a replacement ready. Its expression is RE2's and may match anywhere, without regard to case as
// nginx's "~*" when it begins with "(?i)".
func (r Replacement) Compile() (*Replacer, error) {
	to, err := ParseTemplate(r.To)
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	out := &Replacer{from: r.From, to: to}
	if !r.Regex {
		if r.From == "" {
			return nil, fmt.Errorf("from: it is empty")
		}
		return out, nil
	}
	if len(r.From) > maxRegex {
		return nil, fmt.Errorf("from: the expression has %d bytes, more than %d", len(r.From), maxRegex)
	}
	if out.regex, err = regexp.Compile(r.From); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	if n := to.Groups(); n > out.regex.NumSubexp() {
		return nil, fmt.Errorf("to: there is no group $%d in %q", n, r.From)
	}
	return out, nil
}

// Replace gives what s becomes; false when the replacement has nothing to replace in it. fold compares From without
// regard to case, as host names are.
func (r *Replacer) Replace(s string, fold bool, v Values) (string, bool) {
	if r.regex == nil {
		if len(s) < len(r.from) || s[:len(r.from)] != r.from && !(fold && strings.EqualFold(s[:len(r.from)], r.from)) {
			return s, false
		}
		return r.to.Eval(v) + s[len(r.from):], true
	}
	at := r.regex.FindStringSubmatchIndex(s)
	if at == nil {
		return s, false
	}
	b := append([]byte(nil), s[:at[0]]...)
	b = r.to.Append(b, groups{v, s, at})
	return string(append(b, s[at[1]:]...)), true
}

// groups are the values of a replacement by an expression: its own groups take the place of the rule's.
type groups struct {
	Values
	s  string
	at []int
}

// Value implements Values.
func (g groups) Value(v Variable, name string, group int) string {
	if v != VarGroup {
		return g.Values.Value(v, name, group)
	}
	return Group(g.s, g.at, group)
}

// Group gives the text of a group, of what FindStringSubmatchIndex told about s; "" when there is none.
func Group(s string, at []int, group int) string {
	if 2*group+1 >= len(at) || at[2*group] < 0 {
		return ""
	}
	return s[at[2*group]:at[2*group+1]]
}
