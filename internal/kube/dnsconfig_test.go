// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/internal/model"
)

func TestPodDNSConfig(t *testing.T) {
	text := func(s string) *string { return &s }
	p := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{
		Nameservers: []string{"192.0.2.1"}, Searches: []string{"corp.example"},
		Options: []corev1.PodDNSConfigOption{{Name: "edns0"}, {Name: "ndots", Value: text("2")}, {Name: "timeout", Value: text("1")}}}}}
	got, err := FromPod(p)
	want := &model.PodDNSConfig{Nameservers: []string{"192.0.2.1"}, Searches: []string{"corp.example"}, Ndots: 2}
	if diff := cmp.Diff(want, got.DNSConfig); err != nil || diff != "" || got.DNSPolicy != "None" {
		t.Errorf("%v %s (-want +got):\n%s", err, got.DNSPolicy, diff)
	}
	p.Spec.DNSConfig.Options = p.Spec.DNSConfig.Options[:1]
	if got, _ := FromPod(p); got.DNSConfig.Ndots != -1 {
		t.Errorf("ndots %d that nobody gave", got.DNSConfig.Ndots)
	}
}

func TestRunningDNS(t *testing.T) {
	installed := true
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("labelSelector"); got != dnsSelector {
			t.Errorf("selector %q", got)
		}
		items := ""
		switch {
		case !installed:
		case strings.HasSuffix(r.URL.Path, "/configmaps"):
			items = `{"metadata":{"name":"other"},"data":{"x":"y"}},{"metadata":{"name":"weft-dns"},"data":{"dns.yaml":"ttl: 9s\n"}}`
		default:
			items = `{"metadata":{"name":"weft-dns"},"spec":{"template":{"spec":{"containers":[{"args":["dns","--cluster-domain=k8s.example"]}]}}}}`
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"items":[` + items + `]}`))
	}))
	defer s.Close()
	file, domain, found, err := RunningDNS(t.Context(), &rest.Config{Host: s.URL})
	if file != "ttl: 9s\n" || domain != "k8s.example" || !found || err != nil {
		t.Errorf("%q %q %v %v", file, domain, found, err)
	}
	installed = false
	if _, _, found, err := RunningDNS(t.Context(), &rest.Config{Host: s.URL}); found || err != nil {
		t.Errorf("not installed: found %v, %v", found, err)
	}
	s.Close()
	if _, _, _, err := RunningDNS(t.Context(), &rest.Config{Host: s.URL}); err == nil || !strings.Contains(err.Error(), "ConfigMaps of weft dns") {
		t.Errorf("no API server: %v", err)
	}
}
