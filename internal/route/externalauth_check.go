// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Check tells what of it keeps the question from being asked, each by its field.
func (a *ExternalAuth) Check() error {
	if a.Disabled {
		return nil
	}
	var errs []error
	fault := func(field string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("externalAuth.%s: %w", field, err))
		}
	}
	template := func(field string, t Template) {
		_, err := ParseTemplate(t)
		fault(field, err)
	}
	template("host", Template(a.Host))
	template("path", a.Path)
	template("signin", a.Signin)
	template("cacheKey", a.CacheKey)
	for i, h := range a.RequestHeaders {
		template(fmt.Sprintf("requestHeaders[%d]", i), Template(h.Value))
	}
	if a.Backend == "" && a.Host == "" && a.Invalid == "" {
		fault("backend", errors.New("neither a backend nor a host is named"))
	}
	if strings.ContainsFunc(a.Method, func(r rune) bool { return r < 'A' || r > 'Z' }) {
		fault("method", fmt.Errorf("%q is not a method", a.Method))
	}
	if a.ForwardBody < 0 || a.ForwardBody > MaxForwardBody {
		fault("forwardBody", fmt.Errorf("%d is not from 0 to %d bytes", a.ForwardBody, MaxForwardBody))
	}
	if a.ForwardBody > 0 && a.CacheKey != "" {
		fault("forwardBody", errors.New("answers to a body can't be remembered: leave out cacheKey"))
	}
	told := ExternalAuth{GRPC: true, Backend: a.Backend, Headers: a.Headers, ForwardBody: a.ForwardBody, Timeout: a.Timeout, Invalid: a.Invalid}
	switch {
	case a.GRPC && a.Backend == "" && a.Invalid == "":
		fault("backend", errors.New("gRPC needs one"))
	case a.GRPC && !reflect.DeepEqual(*a, told):
		fault("grpc", errors.New("only backend, headers, forwardBody and timeout go with it"))
	}
	return errors.Join(errs...)
}
