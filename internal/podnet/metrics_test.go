// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	a, _, _ := sharedLink(t)
	reg := prometheus.NewPedanticRegistry()
	a.cfg.Registerer = reg
	a.start()
	a.tell(a)
	p := a.newPod("p")
	if _, err := a.cni("ADD", "1.1.0", p.req, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.cni("ADD", "1.1.0", Request{ContainerID: "c", IfName: "eth0", NetNS: a.path}, nil); err == nil {
		t.Fatal("ADD into the node's own namespace")
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
			}
			switch {
			case m.Gauge != nil:
				got[name] = m.Gauge.GetValue()
			case m.Counter != nil:
				got[name] = m.Counter.GetValue()
			case m.Histogram != nil:
				got[name] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	for name, want := range map[string]float64{
		"weft_podnet_addresses_used range=10.244.1.0/24":      1,
		"weft_podnet_addresses_free range=10.244.1.0/24":      253,
		"weft_podnet_addresses_used range=fd00:10:244:1::/64": 1,
		"weft_podnet_cni_seconds command=ADD":                 2,
		"weft_podnet_cni_errors_total code=4 command=ADD":     1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v; there are %v", name, got[name], want, got)
		}
	}
}
