// SPDX-License-Identifier: Apache-2.0

package node

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/internal/model"
)

// TestServiceMetrics: names and labels are kube-proxy's, and what is counted is what they say.
func TestServiceMetrics(t *testing.T) {
	c := newCluster(t)
	reg := prometheus.NewRegistry()
	c.start(t, func(cfg *ServicesConfig) { cfg.Registerer = reg })
	// gathered has the sample counts and values by name and ip_family ("" without that label).
	gathered := func() map[string]map[string]float64 {
		t.Helper()
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]map[string]float64{}
		for _, mf := range all {
			out[mf.GetName()] = map[string]float64{}
			for _, m := range mf.GetMetric() {
				key := ""
				for _, l := range m.GetLabel() {
					if l.GetName() == "ip_family" {
						key = l.GetValue()
					}
				}
				v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
				out[mf.GetName()][key] += v
			}
		}
		return out
	}
	wants := func(when string, want map[string]float64, families ...model.Family) {
		t.Helper()
		got := gathered()
		for name, n := range want {
			keys := []string{""}
			if len(families) > 0 {
				keys = nil
				for _, f := range families {
					keys = append(keys, f.String())
				}
			}
			if have := slices.Sorted(maps.Keys(got[name])); !slices.Equal(have, keys) {
				t.Errorf("%s: %s is there for %q, want %q", when, name, have, keys)
			}
			for _, k := range keys {
				if got[name][k] != n {
					t.Errorf("%s: %s %s: %v, want %v", when, name, k, got[name][k], n)
				}
			}
		}
	}
	s := newShop()
	s.service.InternalLocal = true
	s.endpoints = s.endpoints[1:] // none on this node
	c.update(t, s.delta())
	const p = "kubeproxy_"
	wants("at first", map[string]float64{
		p + "sync_proxy_rules_duration_seconds": 1, p + "sync_full_proxy_rules_duration_seconds": 1,
		p + "sync_proxy_rules_nftables_sync_failures_total": 0, p + "sync_proxy_rules_no_local_endpoints_total": 2,
	}, families...)
	wants("at first", map[string]float64{
		p + "sync_proxy_rules_service_changes_total": 1, p + "sync_proxy_rules_endpoint_changes_total": 2,
		p + "sync_proxy_rules_service_changes_pending": 0, p + "sync_proxy_rules_endpoint_changes_pending": 0,
		"weft_services_refused": 0,
	})
	for range 3 { // what changes nothing is no sync
		c.update(t, &model.Delta{})
		c.update(t, s.delta())
	}
	wants("nothing changed", map[string]float64{p + "sync_proxy_rules_duration_seconds": 1}, families...)

	// A change in one family, with the time at which it happened.
	d := s.delta()
	d.Services = nil
	for n, sl := range d.EndpointSlices {
		if sl.Family == model.IPv6 {
			delete(d.EndpointSlices, n)
			continue
		}
		sl.Annotations = map[string]string{triggerAnnotation: time.Now().Format(time.RFC3339Nano)}
		sl.Endpoints = append(sl.Endpoints, endpoint("a1"))
		v4, _ := podAddrs(podHost("a1"))
		sl.Endpoints[len(sl.Endpoints)-1].Addresses = addrs(v4)
	}
	c.update(t, d)
	wants("one family", map[string]float64{p + "sync_partial_proxy_rules_duration_seconds": 1, p + "network_programming_duration_seconds": 1}, model.IPv4)
	got := gathered()
	if n := got[p+"sync_proxy_rules_duration_seconds"]; n["IPv4"] != 2 || n["IPv6"] != 1 {
		t.Errorf("syncs %v, want 2 of IPv4 and 1 of IPv6", n)
	}
	for _, name := range []string{p + "sync_proxy_rules_last_timestamp_seconds", p + "sync_proxy_rules_last_queued_timestamp_seconds"} {
		if len(got[name]) != 2 || got[name]["IPv4"] == 0 {
			t.Errorf("%s: %v", name, got[name])
		}
	}
	c.swept(t)
	eventually(t, "connections were counted", func() bool { return gathered()[p+"conntrack_reconciler_sync_duration_seconds"]["IPv4"] > 0 })
}
