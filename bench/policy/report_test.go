// SPDX-License-Identifier: Apache-2.0

//go:build bench

package policy

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// run is one run of `make bench-policy`, or of one of its tests.
type run struct {
	When    string   `json:"when"`
	Load    float64  `json:"load,omitempty"` // of the machine, over the last quarter of an hour, at the end
	Results []result `json:"results"`
}

// document is bench/results/policy.json. Each test replaces its own part.
type document struct {
	Kernel     string `json:"kernel"`
	Processors int    `json:"processors"`
	run
	Peer *peerRun `json:"peer,omitempty"`
}

// peerRun is what another program did with the same objects.
type peerRun struct {
	Program string `json:"program"` // with the versions of all that it runs
	run
}

// finished is a run that ends now.
func finished(t *testing.T, all []result) run {
	r := run{When: time.Now().UTC().Format(time.DateOnly), Results: all}
	var one, five float64
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscan(string(b), &one, &five, &r.Load)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// record writes the results with what f makes of them.
func record(t *testing.T, f func(*document)) {
	at := func(name string) string { return filepath.Join(*results, name) }
	var d document
	switch b, err := os.ReadFile(at("policy.json")); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		t.Fatal(err)
	default:
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", at("policy.json"), err)
		}
	}
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	d.Kernel, d.Processors = unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU()
	f(&d)
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(*results, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"policy.json": append(b, '\n'), "policy.md": []byte(d.markdown())} {
		if err := os.WriteFile(at(name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var titles = map[string]string{spread: "Policies spread over 100 namespaces", stack: "All policies select the pod that is talked to"}

func (d *document) markdown() string {
	var md strings.Builder
	fmt.Fprintf(&md, "# Policies: what they cost\n\nOne run of `make bench-policy` on %s, %d processors, Linux %s, %d pods, %d of them on the node. New connections and\n"+
		"bulk traffic are what the same processor time carries, as ratios to no policy, measured in alternation on the same\n"+
		"links (bulk: median of %d alternations on one connection, with its standard error); other times go from the Delta to the kernel's word that it holds the change.\n",
		d.When, d.Processors, d.Kernel, *pods, local, *pairs)
	for _, shape := range []string{spread, stack} {
		fmt.Fprintf(&md, "\n## %s\n\n| policies | new connections | bulk | pod change p50 / p99 | local pod change p50 / p99 | policy edit p50 / p99 | full sync | compiler's heap | whole process |\n|---|---|---|---|---|---|---|---|---|\n", titles[shape])
		for _, r := range d.Results {
			if r.Shape == shape {
				fmt.Fprintf(&md, "| %d | %.2f | %.3f ± %.3f | %s | %s | %s | %s | %d MiB | %s |\n", r.Policies, r.Connections, r.Bulk, r.BulkError,
					r.PodChange, r.LocalChange, r.Edit, r.FullSync.Round(time.Millisecond), r.Heap>>20, mebibytes(r.Resident))
			}
		}
	}
	md.WriteString("\nThe whole process holds all pods' objects, the compiler, and the connection to the kernel.\n\n## Peers\n")
	d.Peer.markdown(&md)
	md.WriteString("\n" + queue() + "\n")
	return md.String()
}

func (p *peerRun) markdown(md *strings.Builder) {
	if p == nil {
		return
	}
	fmt.Fprintf(md, "\n%s with the same objects, on %s, at a load average of %.0f. Its network policy controller\n"+
		"takes the changes from its own informers; times go from its event handler to the end of its iptables-restore. It looks at\n"+
		"everything for each change. It is the newest release that is a Go module, and security flaws are known of it: it is built for\n"+
		"this alone, and runs in the network namespaces of the benchmark.\n", p.Program, p.When, p.Load)
	for _, shape := range []string{spread, stack} {
		fmt.Fprintf(md, "\n%s:\n\n| policies | new connections | bulk | pod change p50 / max | local pod change p50 / max | policy edit p50 / max | full sync | whole process |\n|---|---|---|---|---|---|---|---|\n", titles[shape])
		var missing []string
		for _, r := range p.Results {
			if r.Shape != shape {
				continue
			}
			through := "- | -"
			if r.Connections > 0 {
				through = fmt.Sprintf("%.2f | %.3f ± %.3f", r.Connections, r.Bulk, r.BulkError)
			}
			full := "-"
			if r.FullSync > 0 {
				full = r.FullSync.Round(time.Millisecond).String()
			}
			fmt.Fprintf(md, "| %d | %s | %s | %s | %s | %s | %s |\n", r.Policies, through,
				r.PodChange.worst(), r.LocalChange.worst(), r.Edit.worst(), full, mebibytes(r.Resident))
			if r.Error != "" {
				missing = append(missing, fmt.Sprintf("%d policies: %s.", r.Policies, r.Error))
			}
		}
		if len(missing) > 0 {
			fmt.Fprintf(md, "\n%s\n", strings.Join(missing, "\n"))
		}
	}
}

func mebibytes(n uint64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// queue says why kube-network-policies is not beside us.
func queue() string {
	said := "kube-network-policies takes each connection's first packet to user space by nftables' queue."
	if config, err := kernelConfig(); err == nil && !strings.Contains(config, "CONFIG_NFT_QUEUE=y") && !strings.Contains(config, "CONFIG_NFT_QUEUE=m") {
		said += " This kernel has none (CONFIG_NFT_QUEUE is not set): it can't run here."
	}
	return said
}

// kernelConfig is how the running kernel was configured, where it tells.
func kernelConfig() (string, error) {
	f, err := os.Open("/proc/config.gz")
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(z)
	return string(b), err
}

// String is "1.2 / 3.4 ms".
func (l latency) String() string {
	return fmt.Sprintf("%.2f / %.2f ms", milliseconds(l.P50), milliseconds(l.P99))
}

// worst is String for a sample that is too small to have a 99th percentile.
func (l latency) worst() string {
	if l == (latency{}) {
		return "-"
	}
	return fmt.Sprintf("%.0f / %.0f ms", milliseconds(l.P50), milliseconds(l.Max))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
