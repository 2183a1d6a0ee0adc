// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/weft-net/weft/internal/route"
)

// The parsers below make the functions that take one value into settings. Their errors say what a value should be.

func boolean(field func(*settings) *bool) func(*settings, string) error {
	return func(s *settings, text string) error {
		v, err := strconv.ParseBool(strings.TrimSpace(text))
		if err != nil {
			return errors.New(`it should be "true" or "false"`)
		}
		*field(s) = v
		return nil
	}
}

func onOff(field func(*settings, bool)) func(*settings, string) error {
	return func(s *settings, text string) error {
		switch strings.TrimSpace(text) {
		case "on":
			field(s, true)
		case "off":
			field(s, false)
		default:
			return errors.New(`it should be "on" or "off"`)
		}
		return nil
	}
}

// number reads a whole number from least on.
func number[N int | int64](field func(*settings) *N, least N) func(*settings, string) error {
	return func(s *settings, text string) error {
		v, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
		if err != nil || N(v) < least {
			return fmt.Errorf("it should be a whole number, %d or more", least)
		}
		*field(s) = N(v)
		return nil
	}
}

// seconds reads a whole number of seconds; nginx's "s" may follow.
func seconds(field func(*settings) *time.Duration, least int64) func(*settings, string) error {
	return func(s *settings, text string) error {
		v, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), "s"), 10, 32)
		if err != nil || v < least {
			return fmt.Errorf("it should be a whole number of seconds, %d or more", least)
		}
		*field(s) = time.Duration(v) * time.Second
		return nil
	}
}

func choice(field func(*settings) *string, options ...string) func(*settings, string) error {
	return func(s *settings, text string) error {
		for _, o := range options {
			if strings.EqualFold(strings.TrimSpace(text), o) {
				*field(s) = o
				return nil
			}
		}
		return fmt.Errorf("it should be one of %s", strings.Join(options, ", "))
	}
}

// text takes a value as it is, once check, if any, finds nothing wrong with it.
func text(field func(*settings) *string, check func(string) error) func(*settings, string) error {
	return func(s *settings, value string) error {
		value = strings.TrimSpace(value)
		if strings.ContainsFunc(value, unicode.IsControl) {
			return errors.New("it should be one line, without control characters")
		}
		if check != nil {
			if err := check(value); err != nil {
				return err
			}
		}
		*field(s) = value
		return nil
	}
}

// list reads elements between commas, each of which check finds good.
func list(field func(*settings) *[]string, check func(string) error) func(*settings, string) error {
	return func(s *settings, value string) error {
		out, err := elements(value, check)
		if err != nil {
			return err
		}
		*field(s) = out
		return nil
	}
}

func elements(value string, check func(string) error) (out []string, err error) {
	for e := range strings.SplitSeq(value, ",") {
		if e = strings.TrimSpace(e); e == "" || slices.Contains(out, e) {
			continue
		}
		if check != nil {
			if err := check(e); err != nil {
				return nil, err
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// prefixes reads addresses and CIDRs between commas. An address is a range of one.
func prefixes(field func(*settings) *[]netip.Prefix) func(*settings, string) error {
	return func(s *settings, value string) error {
		out, err := readPrefixes(value)
		if err != nil {
			return err
		}
		*field(s) = out
		return nil
	}
}

func readPrefixes(value string) (out []netip.Prefix, err error) {
	for e := range strings.SplitSeq(value, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		p, err := netip.ParsePrefix(e)
		if err != nil {
			a, aerr := netip.ParseAddr(e)
			if aerr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a CIDR, such as 10.0.0.0/8", e)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no address")
	}
	return out, nil
}

var sizePattern = regexp.MustCompile(`^(?i)(\d+)([bkmg]?)$`)

// size reads bytes in nginx's notation: 100, 8k, 10m, 1g.
func size(field func(*settings) *int64) func(*settings, string) error {
	return func(s *settings, value string) error {
		v, err := readSize(value)
		if err == nil {
			*field(s) = v
		}
		return err
	}
}

func readSize(value string) (int64, error) {
	m := sizePattern.FindStringSubmatch(strings.ReplaceAll(value, " ", ""))
	bad := errors.New("it should be a size such as 100, 8k, 10m or 1g")
	if m == nil {
		return 0, bad
	}
	v, err := strconv.ParseInt(m[1], 10, 40)
	if err != nil {
		return 0, bad
	}
	return v << map[string]int{"": 0, "b": 0, "k": 10, "m": 20, "g": 30}[strings.ToLower(m[2])], nil
}

// template checks that all variables of a text exist.
func template(value string) error {
	_, err := route.ParseTemplate(route.Template(value))
	return err
}

// path checks that a text is a path, in which variables may be.
func path(value string) error {
	if !strings.HasPrefix(value, "/") {
		return errors.New(`it should begin with "/"`)
	}
	return template(value)
}

var headerPattern = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func checkHeader(name string) error {
	if !headerPattern.MatchString(name) {
		return fmt.Errorf("%q is not the name of a header", name)
	}
	return nil
}

var cookiePattern = regexp.MustCompile(`^[!#$%&'*+.^_|~0-9A-Za-z-]+$`)

func checkCookie(name string) error {
	if !cookiePattern.MatchString(name) {
		return fmt.Errorf("%q is not the name of a cookie", name)
	}
	return nil
}

func expression(value string) error {
	if _, err := regexp.Compile(value); err != nil {
		return fmt.Errorf("weft's regular expressions are RE2, which has no lookaround and no backreferences: %w", err)
	}
	return nil
}

// expand tells apart a host name, exact or a wildcard of one label.
var hostPattern = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func checkHost(value string) error {
	if strings.HasPrefix(value, "~") {
		return errors.New("weft's hosts are names and wildcards (*.example.com), not regular expressions: write each name")
	}
	if !hostPattern.MatchString(strings.ToLower(value)) {
		return fmt.Errorf("%q is not a host name", value)
	}
	return nil
}

var hostPortPattern = regexp.MustCompile(`^[A-Za-z0-9._${}\[\]:-]+$`)

// unused checks a value of which nothing else is made.
func unused(check func(*settings, string) error) func(*settings, string) error {
	return func(_ *settings, value string) error {
		var s settings
		return check(&s, value)
	}
}

func anything(*settings, string) error { return nil }

// ignored are fields for values that are checked and have no effect.
func ignoredBool(*settings) *bool     { return new(bool) }
func ignoredInt(*settings) *int       { return new(int) }
func ignoredSize(*settings) *int64    { return new(int64) }
func ignoredString(*settings) *string { return new(string) }
func ignoredOnOff(*settings, bool)    {}
