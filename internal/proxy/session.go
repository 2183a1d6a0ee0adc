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

// readToken gives the endpoint of a token that is still good.
func readToken(c *route.Session, token string, now time.Time) (endpoint uint64, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != 16 {
		return 0, false
	}
	if t := time.Duration(c.AbsoluteTimeout); t > 0 {
		began := time.Unix(int64(binary.BigEndian.Uint64(b[8:])), 0)
		if age := now.Sub(began); age < -time.Minute || age > t {
			return 0, false
		}
	}
	return binary.BigEndian.Uint64(b[:8]), true
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
	token := ""
	if c.Kind == route.SessionHeader {
		token, _ = x.Lookup(strings.ToLower(c.Name))
	} else {
		token = cookieValue(x.fields, c.Name)
	}
	id, ok := readToken(c, token, x.began)
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

// sessionField is what tells the client its session.
func sessionField(c *route.Session, e *endpoint, secure bool, now time.Time) field {
	token := sessionToken(e.id, now)
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
		v += "; Expires=" + now.Add(d).UTC().Format(http.TimeFormat) + "; Max-Age=" + strconv.FormatInt(int64(d/time.Second), 10)
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
