// SPDX-License-Identifier: Apache-2.0

// Package gateway runs the conformance suite of sigs.k8s.io/gateway-api, as it is released, against weft: from outside
// a lab's cluster, with every feature that weft's GatewayClass says it has. Nothing may fail or be skipped, and no
// feature that a profile has in the installed channel may be missing. build/conformance-gateway builds the lab around it.
//
// It imports the suite.
package gateway

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

func TestConformance(t *testing.T) {
	opts := conformance.DefaultOptions(t)
	if path := opts.ReportOutputPath; path != "" && opts.RunTest == "" {
		t.Cleanup(func() { judge(t, path, len(opts.ConformanceProfiles)) }) // after the suite's own, which writes it
	}
	conformance.RunConformanceWithOptions(t, opts)
}

// judge prints one line a profile and fails the test where a profile is not passed in full.
func judge(t *testing.T, path string, profiles int) {
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var report confv1.ConformanceReport
	if err := yaml.Unmarshal(raw, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.ProfileReports) != profiles {
		t.Errorf("the report has %d profiles, want %d", len(report.ProfileReports), profiles)
	}
	// The standard channel's CRDs have no fields for some features of the experimental one.
	experimental := map[string]bool{}
	if report.GatewayAPIChannel == features.FeatureChannelStandard {
		for f := range features.AllFeatures {
			experimental[string(f.Name)] = f.Channel == features.FeatureChannelExperimental
		}
	}
	for _, p := range report.ProfileReports {
		s, extended := p.Core.Statistics, "no extended features"
		var missing []string
		if e := p.Extended; e != nil {
			extended = fmt.Sprintf("extended %d passed, %d failed, %d skipped, %d features", e.Statistics.Passed, e.Statistics.Failed, e.Statistics.Skipped, len(e.SupportedFeatures))
			missing = slices.DeleteFunc(slices.Clone(e.UnsupportedFeatures), func(f string) bool { return experimental[f] })
			if e.Statistics.Failed+e.Statistics.Skipped > 0 {
				t.Errorf("%s, extended: failed %v, skipped %v", p.Name, e.FailedTests, e.SkippedTests)
			}
		}
		fmt.Printf("%-12s %s channel: core %d passed, %d failed, %d skipped; %s\n", p.Name, report.GatewayAPIChannel, s.Passed, s.Failed, s.Skipped, extended)
		if s.Failed+s.Skipped > 0 {
			t.Errorf("%s, core: failed %v, skipped %v", p.Name, p.Core.FailedTests, p.Core.SkippedTests)
		}
		if len(missing) > 0 {
			t.Errorf("%s: features not supported: %s", p.Name, strings.Join(missing, ", "))
		}
	}
}
