// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/route"
)

// A session's token names an endpoint by the hash of its backend and address, and when the session began: 16 bytes in
// base64url. It tells nothing and gives access to nothing that its rule does not give anyhow.

func sessionToken(endpoint uint64, began time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], endpoint)
	binary.BigEndian.PutUint64(b[8:], uint64(began.Unix()))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// readToken gives the endpoint of a token that is still good, and when its session began.
func readToken(c *route.Session, token string, now time.Time) (endpoint uint64, began time.Time, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != 16 {
		return 0, time.Time{}, false
	}
	began = time.Unix(int64(binary.BigEndian.Uint64(b[8:])), 0)
	if t := time.Duration(c.AbsoluteTimeout); t > 0 {
		if age := now.Sub(began); age < -time.Minute || age > t {
			return 0, time.Time{}, false
		}
	}
	return binary.BigEndian.Uint64(b[:8]), began, true
}

// token is what the request says of its session.
func (x *exchange) token(c *route.Session) string {
	if c.Kind != route.SessionHeader {
		return cookieValue(x.fields, c.Name)
	}
	token, _ := x.Lookup(strings.ToLower(c.Name))
	return token
}

// tell gives the field that tells the client its session. One that is in a header is told with every answer, from its
// beginning; a cookie, which the client keeps, when it is new.
func (x *exchange) tell(c *route.Session, e *endpoint) (f field, told bool) {
	id, began, ok := readToken(c, x.token(c), x.began)
	if !ok || id != e.id {
		began = x.began
	} else if c.Kind != route.SessionHeader {
		return field{}, false
	}
	return sessionField(c, e, x.scheme() == "https", began), true
}

// cookieValue finds a cookie in Cookie fields.
func cookieValue(fields []field, name string) string {
	for _, f := range fields {
		if f.id != other || !equalFold(f.name, "cookie") {
			continue
		}
		for pair := range strings.SplitSeq(view(f.value), ";") {
			k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if ok && k == name {
				return strings.Trim(v, `"`)
			}
		}
	}
	return ""
}

// persisted gives the backend and endpoint of the request's session, if it has one.
func (x *exchange) persisted(r *rule) (*weighted, *endpoint) {
	c := x.plan.session
	id, _, ok := readToken(c, x.token(c), x.began)
	if !ok {
		return nil, nil
	}
	list := r.backends
	var chosen *weighted
	if c.PerBackend {
		if chosen = r.choose(); chosen != nil {
			list = []weighted{*chosen}
		}
	}
	for i := range list {
		w := &list[i]
		if w.cell == nil {
			continue
		}
		if b := w.cell.Load(); b != nil {
			if e := b.session(id, x.began.UnixNano(), c.ChangeOnFailure); e != nil {
				return w, e
			}
		}
	}
	return chosen, nil
}

// sessionField is a session as the client is told of it.
func sessionField(c *route.Session, e *endpoint, secure bool, began time.Time) field {
	token := sessionToken(e.id, began)
	if c.Kind == route.SessionHeader {
		return newField(c.Name, token)
	}
	path := c.Path
	if path == "" {
		path = "/"
	}
	v := c.Name + "=" + token + "; Path=" + path
	if c.Domain != "" {
		v += "; Domain=" + c.Domain
	}
	if d := time.Duration(c.AbsoluteTimeout); c.Permanent && d > 0 { // Expires is for clients that know no Max-Age
		v += "; Expires=" + began.Add(d).UTC().Format(http.TimeFormat) + "; Max-Age=" + strconv.FormatInt(int64(d/time.Second), 10)
	}
	sameSite := c.SameSite
	if sameSite == "" {
		sameSite = "Lax"
	}
	v += "; HttpOnly; SameSite=" + sameSite
	if secure || c.Secure || sameSite == "None" { // browsers take None with Secure only
		v += "; Secure"
	}
	return newField("Set-Cookie", v)
}
