// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/offline"
)

// sarif is what we write of SARIF 2.1.0 (OASIS); anything else in a document is an error.
type sarif struct {
	Schema  string `json:"$schema"`
	Version string `json:"version"`
	Runs    []struct {
		Tool struct {
			Driver struct {
				Name    string `json:"name"`
				Version string `json:"version"`
				Rules   []struct {
					ID                   string            `json:"id"`
					ShortDescription     sarifText         `json:"shortDescription"`
					FullDescription      sarifText         `json:"fullDescription"`
					DefaultConfiguration map[string]string `json:"defaultConfiguration"`
				} `json:"rules"`
			} `json:"driver"`
		} `json:"tool"`
		Results []struct {
			RuleID    string    `json:"ruleId"`
			RuleIndex int       `json:"ruleIndex"`
			Level     string    `json:"level"`
			Message   sarifText `json:"message"`
			Locations []struct {
				PhysicalLocation *struct {
					ArtifactLocation struct {
						URI string `json:"uri"`
					} `json:"artifactLocation"`
					Region struct {
						StartLine int `json:"startLine"`
					} `json:"region"`
				} `json:"physicalLocation"`
				LogicalLocations []struct {
					FullyQualifiedName string `json:"fullyQualifiedName"`
				} `json:"logicalLocations"`
			} `json:"locations"`
		} `json:"results"`
	} `json:"runs"`
}

type sarifText struct {
	Text string `json:"text"`
}

// valid checks what the standard asks of the parts that we write: sections 3.13 to 3.51.
func valid(text []byte) (*sarif, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var doc sarif
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	levels := []string{"none", "note", "warning", "error"}
	switch {
	case doc.Version != "2.1.0" || !strings.Contains(doc.Schema, "sarif-2.1.0"):
		return nil, fmt.Errorf("version %q, schema %q", doc.Version, doc.Schema)
	case len(doc.Runs) != 1 || doc.Runs[0].Tool.Driver.Name == "" || doc.Runs[0].Results == nil:
		return nil, fmt.Errorf("want a run with a driver's name and results")
	}
	run := doc.Runs[0]
	seen := map[string]bool{}
	for _, r := range run.Tool.Driver.Rules {
		if r.ID == "" || seen[r.ID] || r.ShortDescription.Text == "" || r.FullDescription.Text == "" || !slices.Contains(levels, r.DefaultConfiguration["level"]) {
			return nil, fmt.Errorf("rule %+v", r)
		}
		seen[r.ID] = true
	}
	for _, r := range run.Results {
		if r.RuleIndex < 0 || r.RuleIndex >= len(run.Tool.Driver.Rules) || run.Tool.Driver.Rules[r.RuleIndex].ID != r.RuleID {
			return nil, fmt.Errorf("ruleIndex %d is not %s", r.RuleIndex, r.RuleID)
		}
		if !slices.Contains(levels, r.Level) || r.Message.Text == "" || len(r.Locations) == 0 {
			return nil, fmt.Errorf("result %+v", r)
		}
		for _, l := range r.Locations {
			if len(l.LogicalLocations) == 0 || l.LogicalLocations[0].FullyQualifiedName == "" {
				return nil, fmt.Errorf("location %+v", l)
			}
			if p := l.PhysicalLocation; p != nil {
				u, err := url.Parse(p.ArtifactLocation.URI)
				if err != nil || u.String() != p.ArtifactLocation.URI || u.Scheme != "" && u.Scheme != "file" || p.Region.StartLine < 1 {
					return nil, fmt.Errorf("place %+v: %v", p, err)
				}
			}
		}
	}
	return &doc, nil
}

func TestSARIF(t *testing.T) {
	c, err := offline.Load(offline.Options{}, "testdata/bad.yaml")
	if err != nil {
		t.Fatal(err)
	}
	findings, err := Run(Input{Cluster: c, Now: now, Text: func(f string) []byte { b, _ := os.ReadFile(f); return b }})
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]Finding{findings, nil, {{Rule: "service-no-endpoints", Object: "Service a/b", Message: "of a cluster"}}} {
		var b bytes.Buffer
		if err := WriteSARIF(&b, list, "v1"); err != nil {
			t.Fatal(err)
		}
		doc, err := valid(b.Bytes())
		if err != nil {
			t.Fatalf("%v:\n%s", err, &b)
		}
		if n := len(doc.Runs[0].Results); n != len(list) || len(doc.Runs[0].Tool.Driver.Rules) != len(rules) {
			t.Errorf("%d results of %d findings, %d rules of %d", n, len(list), len(doc.Runs[0].Tool.Driver.Rules), len(rules))
		}
	}
}

func TestFileURI(t *testing.T) {
	for file, want := range map[string]string{
		"a/b.yaml": "a/b.yaml", "my shop/ä#1.yaml": "my%20shop/%C3%A4%231.yaml", "/srv/a.yaml": "file:///srv/a.yaml",
		"C:x.yaml": "./C:x.yaml", "-": "-", "50%.yaml": "50%25.yaml",
	} {
		if got := fileURI(file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}
