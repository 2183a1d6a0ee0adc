// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"runtime"
	"strings"
	"sync"

	htpasswd "github.com/tg123/go-htpasswd"

	"github.com/weft-net/weft/internal/route"
)

// basicAuth is a route.BasicAuth made ready.
type basicAuth struct {
	challenge field
	users     map[string]passwordHash
	decoys    []passwordHash // those of users, for names that are not there
}

type passwordHash struct {
	text    string
	encoded htpasswd.EncodedPasswd
	cheap   bool // one SHA: needs no memory of earlier checks
}

// newBasicAuth reads the users. Those whose line can't be used are told of, and can't log in.
func newBasicAuth(c *route.BasicAuth) (*basicAuth, error) {
	realm := c.Realm
	if realm == "" {
		realm = "Authentication Required"
	}
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(realm)
	b := &basicAuth{challenge: newField("WWW-Authenticate", `Basic realm="`+quoted+`", charset="UTF-8"`), users: map[string]passwordHash{}}
	lines, err := route.ParseHtpasswd(c.Users)
	for _, l := range lines {
		for _, parse := range []htpasswd.PasswdParser{htpasswd.AcceptBcrypt, htpasswd.AcceptMd5, htpasswd.AcceptSha, htpasswd.AcceptSsha, htpasswd.AcceptCryptSha} {
			if e, bad := parse(l.Hash); bad == nil && e != nil {
				h := passwordHash{l.Hash, e, strings.HasPrefix(l.Hash, "{")}
				b.users[l.User], b.decoys = h, append(b.decoys, h)
				break
			}
		}
	}
	return b, err
}

// verdict is what a check of who may comes to.
type verdict uint8

const (
	passed verdict = iota
	refused
	busy // too much to do to find out
)

// check looks at the request's Authorization (RFC 7617).
func (b *basicAuth) check(x *exchange) verdict {
	header, _ := x.Lookup("authorization")
	scheme, encoded, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "basic") {
		return refused
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return refused
	}
	user, password, ok := strings.Cut(string(decoded), ":")
	hash, known := b.users[user]
	if !ok || !known && len(b.decoys) == 0 {
		return refused
	}
	if !known { // it takes as long as for a user, always the same one, lest the time tell who is one
		hash = b.decoys[passwords.choose(user, len(b.decoys))]
	}
	v := passed
	if hash.cheap {
		if !hash.encoded.MatchesPassword(password) {
			v = refused
		}
	} else {
		v = passwords.check(user, password, hash)
	}
	if v == passed && !known {
		v = refused
	}
	if v == passed {
		x.detail().user = user
	}
	return v
}

// passwords remembers what has been checked, for all policies: hashes like bcrypt's are made to be slow, and a browser
// sends the password with each request. What is remembered tells no password: it is a keyed hash of it.
var passwords = newPasswordMemory(max(1, runtime.GOMAXPROCS(0)/2))

// passwordMemory bounds the work that checking passwords makes, whatever comes in.
type passwordMemory struct {
	key  []byte
	turn chan struct{} // one for each check at a time
	wait chan struct{} // one for each request that waits for its turn

	mu    sync.Mutex
	right map[[sha256.Size]byte]struct{}
	wrong map[[sha256.Size]byte]struct{} // apart, so that a flood of wrong ones drives out no right one
}

// Bounds of the memory, and of requests that wait.
const (
	rememberPasswords = 8192
	waitForPasswords  = 64
)

func newPasswordMemory(atATime int) *passwordMemory {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return &passwordMemory{
		key: key, turn: make(chan struct{}, atATime), wait: make(chan struct{}, waitForPasswords),
		right: map[[sha256.Size]byte]struct{}{}, wrong: map[[sha256.Size]byte]struct{}{},
	}
}

// choose gives one of n for a name, which nobody can foretell.
func (m *passwordMemory) choose(name string, n int) int {
	mac := hmac.New(sha256.New, m.key)
	mac.Write([]byte(name))
	return int(binary.BigEndian.Uint64(mac.Sum(nil)) % uint64(n))
}

func (m *passwordMemory) check(user, password string, hash passwordHash) verdict {
	if len(password) > 1024 {
		return refused
	}
	mac := hmac.New(sha256.New, m.key)
	for _, part := range []string{user, hash.text, password} {
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	var id [sha256.Size]byte
	mac.Sum(id[:0])
	if v, known := m.recall(id); known {
		return v
	}
	select {
	case m.wait <- struct{}{}:
	default:
		return busy
	}
	m.turn <- struct{}{}
	defer func() { <-m.turn; <-m.wait }()
	if v, known := m.recall(id); known { // another request has found out meanwhile
		return v
	}
	right := hash.encoded.MatchesPassword(password)
	m.mu.Lock()
	defer m.mu.Unlock()
	if right {
		remember(m.right, id)
		return passed
	}
	remember(m.wrong, id)
	return refused
}

func (m *passwordMemory) recall(id [sha256.Size]byte) (v verdict, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.right[id]; ok {
		return passed, true
	}
	_, ok := m.wrong[id]
	return refused, ok
}

func remember(m map[[sha256.Size]byte]struct{}, id [sha256.Size]byte) {
	if len(m) >= rememberPasswords {
		for k := range m { // some: the order is random
			delete(m, k)
			break
		}
	}
	m[id] = struct{}{}
}

// answer tells the client what it takes.
func (b *basicAuth) answer(x *exchange, v verdict) {
	if v == busy {
		x.deny(deniedBasic, http.StatusServiceUnavailable, "too many passwords to check")
		return
	}
	x.detail().added = append(x.detail().added, b.challenge)
	x.deny(deniedBasic, http.StatusUnauthorized, "basic authentication: no right name and password")
}
