// SPDX-License-Identifier: Apache-2.0

// Package waf is the gateway's web application firewall: Coraza, which runs rules of ModSecurity's language, with the
// OWASP core rule set. It looks at requests; answers are not looked at. It may import proxy, whose Firewall it is, route,
// the Coraza packages and the standard library. A gateway without a policy that asks for it never calls it.
package waf

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"

	coreruleset "github.com/corazawaf/coraza-coreruleset/v4"
	"github.com/corazawaf/coraza/v3"
	"github.com/corazawaf/coraza/v3/debuglog"
	"github.com/corazawaf/coraza/v3/types"

	"github.com/weft-net/weft/internal/proxy"
	"github.com/weft-net/weft/internal/route"
)

// base comes before the policy's own rules: the engine on, bodies parsed by their type, and those refused that can't be.
const base = `
SecRuleEngine On
SecRequestBodyAccess On
SecRequestBodyLimit 13107200
SecRequestBodyInMemoryLimit 13107200
SecRequestBodyLimitAction ProcessPartial
SecRequestBodyJsonDepthLimit 512
SecResponseBodyAccess Off
SecAuditEngine Off
SecRule REQUEST_HEADERS:Content-Type "^(?:application(?:/soap\+|/)|text/)xml" "id:'200000',phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=XML"
SecRule REQUEST_HEADERS:Content-Type "^application/(?:[a-z0-9.-]+[+])?json" "id:'200001',phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=JSON"
`

// Directives that reach outside the request: files, other processes, the network. A policy's author has the gateway's
// trust for requests, not for its host.
var forbidden = regexp.MustCompile(`(?im)^\s*(SecAuditLog\w*|SecDebugLog\w*|SecDataDir|SecUpload\w*|SecTmpDir|SecAuditEngine|SecRemoteRules\w*|SecConnEngine|SecHttpBlKey)\b|\b(exec|setenv)\s*:|@(inspectFile)\b`)

// include finds files that are read: only those of the core rule set may be.
var include = regexp.MustCompile(`(?im)^\s*Include\s+"?([^\s"]+)`)

// Log is told of what rules have found.
type Log = *slog.Logger

// New gives the function that makes the firewalls of a gateway, for proxy.Config. What rules find is told to log: a
// request that is refused, or would be, at level Info. Policies with the same rules share one engine, since the core
// rules take some 20 MB and a quarter of a second to compile.
func New(log Log) proxy.NewFirewall {
	engines := &sharedEngines{byText: map[string]*sharedEngine{}}
	return func(c *route.WAF) (proxy.Firewall, error) {
		text, err := directives(c)
		if err != nil {
			return nil, err
		}
		return engines.get(text, c.DetectOnly, log)
	}
}

// sharedEngines keeps engines as long as policies may have them: the latest few.
type sharedEngines struct {
	mu     sync.Mutex
	byText map[string]*sharedEngine
	order  []string
}

type sharedEngine struct {
	waf     coraza.WAF
	log     Log
	enforce bool
}

// Limits in bytes of bodies. What is larger and would be looked into is refused where rules are enforced: attacks could
// hide behind the limit. Bodies that no rule understands, such as images and gRPC's, are passed on as they come.
const (
	limitForms = 13107200 // uploads: ModSecurity's own limit
	limitOther = 1 << 20
)

// Limit implements proxy.Firewall.
func (e *sharedEngine) Limit(contentType string) int {
	switch {
	case contentType != "" && !understood.MatchString(contentType):
		return 0
	case strings.HasPrefix(strings.ToLower(contentType), "multipart/"):
		return limitForms
	}
	return limitOther
}

// understood tells of types of bodies that rules look into.
var understood = regexp.MustCompile(`(?i)json|xml|x-www-form-urlencoded|^multipart/|^text/`)

// enginesAtMost bounds how many engines are kept for the next policy with the same text.
const enginesAtMost = 8

func (s *sharedEngines) get(text string, detectOnly bool, log Log) (proxy.Firewall, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byText[text]; e != nil {
		return e, nil
	}
	waf, err := coraza.NewWAF(coraza.NewWAFConfig().WithRootFS(coreruleset.FS).WithDirectives(text).WithDebugLogger(debuglog.Noop()))
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	e := &sharedEngine{waf: waf, log: log, enforce: !detectOnly}
	if s.order = append(s.order, text); len(s.order) > enginesAtMost {
		delete(s.byText, s.order[0])
		s.order = s.order[1:]
	}
	s.byText[text] = e
	return e, nil
}

// directives puts a policy's rules together.
func directives(c *route.WAF) (string, error) {
	if !c.CoreRules && strings.TrimSpace(c.Rules) == "" {
		return "", errors.New("neither coreRules nor rules are set: there is nothing to look for")
	}
	if m := forbidden.FindString(c.Rules); m != "" {
		return "", fmt.Errorf("rules: %s is not allowed in a gateway: it reaches outside the request", strings.TrimSpace(m))
	}
	for _, m := range include.FindAllStringSubmatch(c.Rules, -1) {
		if !strings.HasPrefix(m[1], "@owasp_crs/") && !strings.HasPrefix(m[1], "@crs-setup") {
			return "", fmt.Errorf("rules: Include %s: only files of @owasp_crs can be included", m[1])
		}
	}
	var b strings.Builder
	b.WriteString(base)
	if c.CoreRules {
		b.WriteString("Include @crs-setup.conf.example\n")
		before, after := split(c.Rules)
		b.WriteString(before)
		b.WriteString("\nInclude @owasp_crs/*.conf\n")
		b.WriteString(after)
	} else {
		b.WriteString(c.Rules)
	}
	if c.DetectOnly { // last: a rule's own SecRuleEngine does not undo it
		b.WriteString("\nSecRuleEngine DetectionOnly\n")
	}
	return b.String(), nil
}

// split tells rules that must come before the core rules, which is where their settings are, from directives that
// change core rules and so must come after.
func split(rules string) (before, after string) {
	var b, a strings.Builder
	logical := strings.ReplaceAll(strings.ReplaceAll(rules, "\r\n", "\n"), "\\\n", "\x00")
	for line := range strings.Lines(logical) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		to := &b
		switch {
		case strings.HasPrefix(strings.ToLower(word), "secruleremoveby"), strings.HasPrefix(strings.ToLower(word), "secruleupdate"):
			to = &a
		}
		to.WriteString(strings.ReplaceAll(line, "\x00", "\\\n"))
	}
	return b.String(), a.String()
}

// Inspect implements proxy.Firewall.
func (e *sharedEngine) Inspect(r *proxy.Inspected) (status int, reason string) {
	if r.Truncated && e.enforce {
		return http.StatusRequestEntityTooLarge, "the body is too large to be inspected"
	}
	tx := e.waf.NewTransaction()
	defer func() {
		tx.ProcessLogging()
		_ = tx.Close() // has nothing but memory to give back
	}()
	if tx.IsRuleEngineOff() {
		return 0, ""
	}
	found := e.run(tx, r)
	if found == nil {
		e.tell(tx, r, 0)
		return 0, ""
	}
	status = found.Status
	if status == 0 || found.Action == "drop" {
		status = http.StatusForbidden
	}
	e.tell(tx, r, status)
	return status, fmt.Sprintf("rule %d", found.RuleID)
}

func (e *sharedEngine) run(tx types.Transaction, r *proxy.Inspected) *types.Interruption {
	tx.ProcessConnection(r.Client.String(), int(r.ClientPort), r.Server.Addr().String(), int(r.Server.Port()))
	tx.ProcessURI(r.URI, r.Method, r.Protocol)
	tx.SetServerName(r.Host)
	for name, value := range r.Headers {
		tx.AddRequestHeader(strings.Clone(name), strings.Clone(value))
	}
	if it := tx.ProcessRequestHeaders(); it != nil {
		return it
	}
	if len(r.Body) > 0 && tx.IsRequestBodyAccessible() {
		if it, _, err := tx.WriteRequestBody(r.Body); it != nil || err != nil && !errors.Is(err, io.EOF) {
			return refusal(it)
		}
	}
	it, err := tx.ProcessRequestBody()
	if err != nil {
		return refusal(it)
	}
	return it
}

// refusal is what an inspection comes to that could not be made: fail closed.
func refusal(it *types.Interruption) *types.Interruption {
	if it == nil {
		it = &types.Interruption{Status: http.StatusInternalServerError, Action: "deny"}
	}
	return it
}

// tell logs what rules matched, once a request.
func (e *sharedEngine) tell(tx types.Transaction, r *proxy.Inspected, status int) {
	var rules []int
	message := ""
	for _, m := range tx.MatchedRules() {
		if m.Message() == "" {
			continue
		}
		if rules = append(rules, m.Rule().ID()); len(rules) <= 3 {
			message += m.Message() + "; "
		}
	}
	if len(rules) == 0 && status == 0 {
		return
	}
	e.log.Info("web application firewall", "status", status, "client", r.Client, "method", r.Method, "host", r.Host,
		"uri", strings.Clone(r.URI), "rules", rules, "message", strings.TrimSuffix(message, "; "))
}
