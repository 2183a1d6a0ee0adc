// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/goldentest"
	"github.com/weft-net/weft/internal/ingress"
)

// The documentation is the table of the code, written down: go test ./internal/ingress -run Documentation -update writes it anew.
func TestDocumentationIsCurrent(t *testing.T) {
	goldentest.Compare(t, "../../docs/ingress-nginx.md", documentation())
}

const introduction = `# Coming from ingress-nginx

weft serves Ingresses of ingress-nginx as they are: set ` + "`ingress.enabled=true`" + ` and ` + "`ingress.takeOver=true`" + ` in the chart, and the Ingresses
of every class whose ` + "`spec.controller`" + ` is ` + "`k8s.io/ingress-nginx`" + ` are weft's. Annotations keep the prefix ` + "`nginx.ingress.kubernetes.io/`" + `,
and the keys of ingress-nginx's ConfigMap go into ` + "`ingress.config`" + ` (or into the ConfigMap that an IngressClass's ` + "`spec.parameters`" + ` names).

Nothing is ignored in silence. Each annotation and each key is in the tables below, with one of three verdicts:

- **honoured**: it does in weft what it does in ingress-nginx;
- **accepted without effect**: there is nothing for it to do; the table says why;
- **refused**: an Event on the Ingress says so and names the cure.

An annotation that ingress-nginx does not have, or a value that can't be used, is an Event on the Ingress as well
(` + "`kubectl describe ingress`" + `). Where the value was to keep somebody out (marked 🔒), the Ingress's paths answer 503 until it is
put right: a mistake opens nothing. Where Ingresses have no ADDRESS, for want of an AddressPool for instance, their Events
(` + "`NoAddress`" + `) have what the gateway's Service says of it.

What differs from ingress-nginx on purpose:

- regular expressions are RE2: no lookaround, no backreferences, and time linear in the input. A path whose expression
  can't be used has what begins like it answer 503;
- ` + "`rewrite-target: /`" + ` on a ` + "`pathType: Prefix`" + ` path takes the prefix off (` + "`/app/a`" + ` becomes ` + "`/a`" + `), which is what most people mean
  by it. Set ` + "`rewrite-root: replace`" + ` in the ConfigMap to have every such request go to ` + "`/`" + `;
- request bodies are streamed unless ` + "`proxy-request-buffering: \"on\"`" + ` asks for more;
- an endpoint is chosen by how busy it is, unless ` + "`load-balance`" + ` or ` + "`upstream-hash-by`" + ` says otherwise;
- ` + "`ssl-passthrough`" + ` needs no flag.

This file is generated from the table that weft itself uses (` + "`internal/ingress`" + `).
`

func documentation() string {
	var b bytes.Buffer
	b.WriteString(introduction)
	group := ""
	count := map[ingress.Verdict]int{}
	cell := func(s string) string {
		return strings.ReplaceAll(strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`), "*", `\*`)
	}
	b.WriteString("\n## Annotations\n")
	for _, a := range ingress.Annotations() {
		count[a.Verdict]++
		if a.Group != group {
			group = a.Group
			fmt.Fprintf(&b, "\n### %s\n\n| annotation | verdict | values | |\n|---|---|---|---|\n", group)
		}
		lock := ""
		if a.FailsClosed() {
			lock = " 🔒"
		}
		fmt.Fprintf(&b, "| `%s`%s | %s | %s | %s |\n", a.Name, lock, a.Verdict, cell(a.Values), cell(a.Note))
	}
	fmt.Fprintf(&b, "\n%d annotations: %d honoured, %d accepted without effect, %d refused.\n",
		len(ingress.Annotations()), count[ingress.Honoured], count[ingress.Accepted], count[ingress.Refused])
	b.WriteString("\n## Keys of the ConfigMap\n\nA key that is also an annotation is that annotation's default for all Ingresses.\n\n| key | verdict | values | |\n|---|---|---|---|\n")
	for _, k := range ingress.ConfigKeys() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Name, k.Verdict, cell(k.Values), cell(k.Note))
	}
	return b.String()
}

// Every row says what it does.
func TestTablesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range ingress.Annotations() {
		if seen[a.Name] {
			t.Errorf("%s is there twice", a.Name)
		}
		seen[a.Name] = true
		if a.Group == "" || a.Values == "" || a.Note == "" {
			t.Errorf("%s: a row without group, values or note", a.Name)
		}
	}
	keys := map[string]bool{}
	for _, k := range ingress.ConfigKeys() {
		if keys[k.Name] {
			t.Errorf("key %s is there twice", k.Name)
		}
		keys[k.Name] = true
		if k.Note == "" {
			t.Errorf("key %s: a row without note", k.Name)
		}
	}
	for _, list := range []struct {
		file string
		have map[string]bool
	}{{"testdata/annotations.txt", seen}, {"testdata/configmap.txt", keys}} {
		text, err := os.ReadFile(list.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(string(text)) {
			if !list.have[name] {
				t.Errorf("%s: ingress-nginx has %s, the table does not", list.file, name)
			}
		}
	}
}
