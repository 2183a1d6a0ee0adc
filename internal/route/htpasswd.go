// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// PasswordHash is a line of htpasswd(5).
type PasswordHash struct {
	User string
	Hash string
}

// String leaves the hash out, so that no log can tell it.
func (p PasswordHash) String() string { return "user " + p.User }

// Format makes every verb safe.
func (p PasswordHash) Format(s fmt.State, _ rune) { fmt.Fprint(s, p.String()) }

// maxBcryptCost bounds how long one check may take: each step doubles it, and 14 is about a second.
const maxBcryptCost = 14

// ParseHtpasswd reads lines of htpasswd(5). Lines that can't be used are told by their user or number, never by their
// text, and left out: their users can't log in. Of several lines of one user the first counts.
func ParseHtpasswd(text string) (out []PasswordHash, err error) {
	var errs []error
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if !ok || user == "" {
			errs = append(errs, fmt.Errorf("line %d is not user:hash", n))
			continue
		}
		hash, _, _ = strings.Cut(hash, ":") // what follows is a comment
		if err := checkHash(hash); err != nil {
			errs = append(errs, fmt.Errorf("user %s: %w", user, err))
			continue
		}
		if !seen[user] {
			seen[user] = true
			out = append(out, PasswordHash{user, hash})
		}
	}
	return out, errors.Join(errs...)
}

func checkHash(hash string) error {
	const again = "make the line anew with htpasswd -B"
	scheme := ""
	switch {
	case strings.HasPrefix(hash, "{"):
		scheme = hash[:strings.IndexByte(hash, '}')+1]
	case strings.HasPrefix(hash, "$"):
		if i := strings.IndexByte(hash[1:], '$'); i > 0 {
			scheme = hash[:i+2]
		}
	case len(hash) == 13:
		return errors.New("hashes of DES crypt(3) are not taken: they can be guessed in seconds; " + again)
	}
	switch scheme {
	case "$2a$", "$2b$", "$2y$":
		if len(hash) != 60 {
			return errors.New("the bcrypt hash is cut off; " + again)
		}
		if cost, err := strconv.Atoi(hash[4:6]); err != nil || cost < 4 || cost > maxBcryptCost {
			return fmt.Errorf("the bcrypt hash has cost %q, not 4 to %d; %s", hash[4:6], maxBcryptCost, again)
		}
		return nil
	case "$apr1$", "$1$", "{SHA}", "{SSHA}":
		return nil
	case "$5$", "$6$":
		rest := hash[len(scheme):]
		if r, ok := strings.CutPrefix(rest, "rounds="); ok {
			count, _, _ := strings.Cut(r, "$")
			if n, err := strconv.Atoi(count); err != nil || n > 1_000_000 {
				return fmt.Errorf("the hash has %q rounds, not at most 1000000; %s", count, again)
			}
		}
		return nil
	case "":
		return errors.New("the password is not hashed; " + again)
	}
	return fmt.Errorf("hashes of kind %q are not known; %s", scheme, again)
}
