// SPDX-License-Identifier: Apache-2.0

// Package netpol runs the conformance suite of sigs.k8s.io/network-policy-api, as it is released, against weft in a
// lab, and writes the suite's own report. It imports the suite and labtest.
package netpol

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/network-policy-api/conformance/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	"sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/lab/labtest"
)

var (
	lab     *labtest.Lab
	report  = flag.String("report", "", "`file` that the suite's report is written to")
	version = flag.String("weft-version", "dev", "`version` of weft that the report names")
)

func TestMain(m *testing.M) {
	labtest.Main(m, &lab, labtest.Name("netpol"), "--nodes", "2")
}

func TestConformance(t *testing.T) {
	loadAgnhost(t)
	installCRD(t)

	kubeconfig, err := lab.Run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig([]byte(kubeconfig))
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := v1alpha2.Install(c.Scheme()); err != nil {
		t.Fatal(err)
	}
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// Machines are slow and shared: the suite asks again until the answer is right.
	timeouts := config.DefaultTimeoutConfig()
	timeouts.PokeTimeout = time.Minute
	s, err := suite.NewConformanceProfileTestSuite(suite.ConformanceProfileOptions{
		Options: suite.Options{
			Client: c, ClientSet: cs, KubeConfig: *cfg, EnableAllSupportedFeatures: true, TimeoutConfig: timeouts,
		},
		Implementation: v1alpha1.Implementation{
			Organization: "weft-net", Project: "weft", URL: "https://github.com/weft-net/weft", Version: *version,
			Contact:               []string{"@weft-net/maintainers"},
			AdditionalInformation: "SCTP is spoken by the test image over raw sockets where the kernel has no SCTP sockets",
		},
		ConformanceProfiles: sets.New(suite.CNPConformanceProfileName),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Setup(t)
	if err := s.Run(t, tests.ConformanceTests); err != nil {
		t.Fatal(err)
	}
	result, err := s.Report()
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	if *report != "" {
		if err := os.WriteFile(*report, append([]byte("# SPDX-License-Identifier: Apache-2.0\n"), text...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// loadAgnhost makes the image that the suite's pods name: Kubernetes' own program, with ours before it.
func loadAgnhost(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for to, what := range map[string]string{
		"agnhost.real": "k8s.io/kubernetes/test/images/agnhost",
		"agnhost":      "github.com/weft-net/weft/lab/conformance/netpol/agnhost",
	} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, to), what)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("build %s: %v: %s", what, err, &said)
		}
	}
	image := t.TempDir()
	if err := writeImage(image, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Run(t.Context(), "load", "registry.k8s.io/e2e-test-images/agnhost:*", "--oci", image); err != nil {
		t.Fatal(err)
	}
}

// installCRD installs ClusterNetworkPolicy with all its fields, those of the experimental channel included.
func installCRD(t *testing.T) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	crd, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(out)), "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.RunWith(t.Context(), string(crd), "kubectl", "apply", "--server-side", "-f", "-"); err != nil {
		t.Fatal(fmt.Errorf("install ClusterNetworkPolicy: %w", err))
	}
	lab.Established(t, "clusternetworkpolicies.policy.networking.k8s.io")
}
