// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
)

// WriteText writes findings for a person.
func WriteText(w io.Writer, findings []Finding) {
	for _, f := range findings {
		at := f.Object
		if f.File != "" {
			at = fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Object)
		}
		fmt.Fprintf(w, "%s: %s: %s [%s]\n    why:  %s\n    cure: %s\n", at, f.Severity, f.Message, f.Rule, f.Why, f.Cure)
	}
}

// WriteJSON writes findings as one JSON array.
func WriteJSON(w io.Writer, findings []Finding) error {
	if findings == nil {
		findings = []Finding{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(findings)
}

// WriteSARIF writes findings as SARIF 2.1.0 (OASIS), which code hosts show beside the lines.
func WriteSARIF(w io.Writer, findings []Finding, version string) error {
	type text struct {
		Text string `json:"text"`
	}
	type location struct {
		Physical *struct {
			Artifact struct {
				URI string `json:"uri"`
			} `json:"artifactLocation"`
			Region struct {
				Line int `json:"startLine"`
			} `json:"region"`
		} `json:"physicalLocation,omitempty"`
		Logical []map[string]string `json:"logicalLocations,omitempty"`
	}
	type result struct {
		Rule      string     `json:"ruleId"`
		Index     int        `json:"ruleIndex"`
		Level     string     `json:"level"`
		Message   text       `json:"message"`
		Locations []location `json:"locations"`
	}
	type rule struct {
		ID     string            `json:"id"`
		Short  text              `json:"shortDescription"`
		Full   text              `json:"fullDescription"`
		Config map[string]string `json:"defaultConfiguration"`
	}
	level := map[Severity]string{Info: "note", Warning: "warning", Error: "error"}
	results, all, index := []result{}, []rule{}, map[string]int{}
	for i, r := range Rules() {
		index[r.ID] = i
		all = append(all, rule{r.ID, text{r.Summary}, text{r.Summary + ": " + r.Why}, map[string]string{"level": level[r.Severity]}})
	}
	for _, f := range findings {
		var l location
		if f.File != "" {
			l.Physical = new(struct {
				Artifact struct {
					URI string `json:"uri"`
				} `json:"artifactLocation"`
				Region struct {
					Line int `json:"startLine"`
				} `json:"region"`
			})
			l.Physical.Artifact.URI, l.Physical.Region.Line = fileURI(f.File), max(f.Line, 1)
		}
		l.Logical = []map[string]string{{"fullyQualifiedName": f.Object}}
		results = append(results, result{f.Rule, index[f.Rule], level[f.Severity], text{fmt.Sprintf("%s: %s. Why: %s. Cure: %s", f.Object, f.Message, f.Why, f.Cure)}, []location{l}})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(map[string]any{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
		"runs": []any{map[string]any{
			"tool":    map[string]any{"driver": map[string]any{"name": "weft lint", "version": version, "rules": all}},
			"results": results,
		}},
	})
}

// fileURI is a file's name as SARIF wants it (RFC 3986): relative where it is, and everything escaped that has to be.
func fileURI(file string) string {
	u := url.URL{Path: filepath.ToSlash(file)}
	if filepath.IsAbs(file) {
		u.Scheme = "file"
	} else if strings.Contains(firstSegment(u.Path), ":") {
		u.Path = "./" + u.Path // or else it would begin with a scheme
	}
	return u.String()
}

func firstSegment(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}
