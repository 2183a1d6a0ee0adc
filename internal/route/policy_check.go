// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
)

// Check tells what of the policy can't be enforced, each by its field. The proxy answers 503 for such a policy, so
// whoever makes one says it to its author.
func (p *Policy) Check() error {
	var errs []error
	fault := func(field string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
	}
	template := func(field string, t Template) {
		_, err := ParseTemplate(t)
		fault(field, err)
	}
	status := func(field string, s int) {
		if s != 0 && (s < 400 || s > 599) {
			fault(field, fmt.Errorf("%d is not a status from 400 to 599", s))
		}
	}
	if c := p.Connection; c != "" && c != "keep-alive" && c != "close" {
		fault("connection", fmt.Errorf("%q is neither keep-alive nor close", c))
	}
	if p.ExternalAuth != nil {
		errs = append(errs, p.ExternalAuth.Check())
	}
	path := func(field string, p *PathRewrite) {
		if p != nil && p.Template != nil {
			template(field, *p.Template)
		}
	}
	if r := p.Rewrite; r != nil {
		path("rewrite.path", r.Path)
	}
	if r := p.Redirect; r != nil {
		path("redirect.path", r.Path)
		template("redirect.location", r.Location)
		if r.Status != 0 && (r.Status < 300 || r.Status > 399) {
			fault("redirect.status", fmt.Errorf("%d is not a status from 300 to 399", r.Status))
		}
	}
	names := map[string]bool{}
	for i, l := range p.RateLimits {
		at := fmt.Sprintf("rateLimits[%d]", i)
		if l.Requests == 0 || l.Per <= 0 {
			fault(at, errors.New("requests and per must be more than 0"))
		}
		if names[l.Name] {
			fault(at+".name", fmt.Errorf("%q names another limit already", l.Name))
		}
		names[l.Name] = true
		status(at+".status", l.Status)
		template(at+".key", l.Key)
	}
	if c := p.Connections; c != nil {
		status("connections.status", c.Status)
	}
	if p.MaxRequestBody != nil && *p.MaxRequestBody < 0 {
		fault("maxRequestBody", errors.New("it is less than 0"))
	}
	if r := p.ResponseRate; r != nil && (r.BytesPerSecond < 0 || r.After < 0) {
		fault("responseRate", errors.New("it is less than 0"))
	}
	if e := p.ErrorPages; e != nil {
		for _, s := range e.Statuses {
			if s < 300 || s > 599 {
				fault("errorPages.statuses", fmt.Errorf("%d is not a status from 300 to 599", s))
			}
		}
	}
	if h := p.HSTS; h != nil && h.MaxAge < 0 {
		fault("hsts.maxAge", errors.New("it is less than 0"))
	}
	replacements := func(field string, list []Replacement) {
		for i, r := range list {
			_, err := r.Compile()
			fault(fmt.Sprintf("%s[%d]", field, i), err)
		}
	}
	if c := p.Cookies; c != nil {
		replacements("cookies.domains", c.Domains)
		replacements("cookies.paths", c.Paths)
	}
	if l := p.Locations; l != nil {
		replacements("locations.replace", l.Replace)
	}
	if b := p.Balance; b != nil {
		switch b.Kind {
		case LeastRequest, RoundRobin, EWMA:
		case Hash:
			if b.Key == "" {
				fault("balance.key", errors.New("the kind Hash needs one"))
			}
			template("balance.key", b.Key)
		default:
			fault("balance.kind", fmt.Errorf("%q is not one of LeastRequest, RoundRobin, EWMA, Hash", b.Kind))
		}
	}
	if s := p.Session; s != nil {
		fault("session", s.Check())
	}
	return errors.Join(errs...)
}

// Fields names the fields that are set, as JSON does: what the policy decides where it comes before others.
func (p *Policy) Fields() (out []string) {
	v := reflect.ValueOf(p).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if name != "key" && name != "invalid" && !v.Field(i).IsZero() {
			out = append(out, name)
		}
	}
	return out
}

// Check tells what of the session's attributes is wrong.
func (s *Session) Check() error {
	token := regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	switch {
	case s.Kind != SessionCookie && s.Kind != SessionHeader:
		return fmt.Errorf("kind: %q is not one of Cookie, Header", s.Kind)
	case !token.MatchString(s.Name):
		return fmt.Errorf("name: %q can't be a cookie's or header's name", s.Name)
	case strings.ContainsAny(s.Path, ";\r\n"):
		return fmt.Errorf("path: %q can't be a cookie's path", s.Path)
	case strings.ContainsAny(s.Domain, ";\r\n "):
		return fmt.Errorf("domain: %q can't be a cookie's domain", s.Domain)
	}
	switch s.SameSite {
	case "", "Strict", "Lax", "None":
		return nil
	}
	return fmt.Errorf("sameSite: %q is not one of Strict, Lax, None", s.SameSite)
}
