// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	"strings"
	"testing"
)

// Endpoints of which the same is to be said are told of once; one that differs has its own lines.
func TestPrintAlike(t *testing.T) {
	flow := func(pod, addr, node string, allowed bool) Flow {
		f := Flow{Source: "pod a/web", Destination: "pod a/" + pod, Address: addr, Allowed: allowed, Steps: []Step{
			{Station: "route", Mark: OK, Text: "to node " + node},
			{Station: "ingress", Mark: OK, Text: "no policy isolates pod a/" + pod},
			{Station: "server", Mark: OK, Object: "Pod a/" + pod, Text: "is ready"},
		}}
		if !allowed {
			f.Steps[1].Mark, f.Steps[1].Text = Blocked, "pod a/"+pod+" is isolated"
		}
		return f
	}
	var b bytes.Buffer
	Print(&b, &Answer{Summary: "so", Flows: []Flow{
		flow("db-1", "10.0.0.1:80", "n1", true), flow("db-2", "10.0.0.2:80", "n2", true), flow("db-3", "10.0.0.3:80", "n1", false),
		flow("db-4", "10.0.0.4:80", "n1", true), flow("db-5", "10.0.0.5:80", "n1", true), flow("db-6", "[fd00::6]:80", "n1", true),
	}})
	want := `✓ pod a/web → pod a/db-1 (10.0.0.1:80) and 4 more: pod a/db-2 (10.0.0.2:80), pod a/db-4 (10.0.0.4:80), pod a/db-5 (10.0.0.5:80), …
    ✓ route    to node n1
    ✓ ingress  no policy isolates pod a/db-1
    ✓ server   Pod a/db-1 is ready
✗ pod a/web → pod a/db-3 (10.0.0.3:80)
    ✓ route    to node n1
    ✗ ingress  pod a/db-3 is isolated
    ✓ server   Pod a/db-3 is ready

so
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
	if n := strings.Count(b.String(), "→"); n != 2 {
		t.Errorf("%d blocks", n)
	}
}
