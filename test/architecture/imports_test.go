// SPDX-License-Identifier: Apache-2.0

// Package architecture holds the tests that keep the folders' rules (docs/architecture.md): who may import whom,
// and what every file and package must say of itself.
package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weft-net/weft/"

// Layers of internal/. A compile package decides and imports model (and other compile packages) only; an apply
// package acts and imports no other apply package.
var (
	compile = []string{"service", "policy", "route", "dnszone", "dnspath", "hostnames", "addresses", "explain", "gatewayapi", "ingress", "trafficpolicy"}
	apply   = []string{"nft", "conntrack", "podnet", "announce", "dnsserver", "proxy"}
)

// apiTypes are the Kubernetes types that a package which decides may know all the same: those of the API that it
// compiles, where a model of our own would only repeat the API field by field.
var apiTypes = map[string][]string{
	"gatewayapi":    {"k8s.io/apimachinery/pkg/apis/meta/v1"},
	"trafficpolicy": {"k8s.io/apimachinery/pkg/apis/meta/v1", module + "api/v1alpha1"},
}

// impure are the standard library's packages that reach outside the process or the moment: a package that decides has
// no use for them.
var impure = []string{"os", "net", "net/http", "syscall", "os/exec", "log", "log/slog"}

type file struct {
	dir     string // from the repository's root, with slashes
	path    string
	imports []string
	ast     *ast.File
	text    string
}

// goFiles parses every Go file of the repository, tests left out on request.
func goFiles(t *testing.T, tests bool) []file {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var out []file
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || (!tests && strings.HasSuffix(path, "_test.go")) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		one := file{dir: filepath.ToSlash(filepath.Dir(rel)), path: filepath.ToSlash(rel), ast: f, text: string(text)}
		for _, i := range f.Imports {
			one.imports = append(one.imports, strings.Trim(i.Path.Value, `"`))
		}
		out = append(out, one)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("found only %d Go files below %s", len(out), root)
	}
	return out
}

// room is the first folder below internal/ of an import path or folder, or "".
func room(path string) string {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(path, module), "internal/")
	if !ok {
		return ""
	}
	r, _, _ := strings.Cut(rest, "/")
	return r
}

func ours(path string) bool { return strings.HasPrefix(path, module) }

func thirdParty(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return strings.Contains(first, ".") && !ours(path)
}

func TestImportRules(t *testing.T) {
	for _, f := range goFiles(t, false) {
		if strings.HasSuffix(f.dir, "test") {
			continue // support for tests, such as net/http/httptest: imported by tests alone
		}
		from := room(f.dir)
		for _, imp := range f.imports {
			to := room(imp)
			deny := func(rule string) { t.Errorf("%s imports %s: %s", f.path, imp, rule) }
			switch {
			case strings.HasPrefix(imp, module+"cmd/"):
				deny("nothing imports cmd")
			case ours(imp) && strings.HasSuffix(imp, "test"):
				deny("what supports tests is imported by tests alone")
			case from == "model" && (thirdParty(imp) || ours(imp)):
				deny("model imports the standard library only")
			case slices.Contains(compile, from) && strings.HasPrefix(imp, "k8s.io/") && !slices.Contains(apiTypes[from], imp):
				deny("packages that decide know no Kubernetes types")
			case slices.Contains(compile, from) && ours(imp) && to != "model" && !slices.Contains(compile, to) && !slices.Contains(apiTypes[from], imp):
				deny("packages that decide import model only")
			case slices.Contains(compile, from) && slices.Contains(impure, imp):
				deny("packages that decide do no I/O")
			case slices.Contains(apply, from) && slices.Contains(apply, to) && from != to:
				deny("packages that act never import each other")
			case slices.Contains(apply, from) && strings.HasPrefix(imp, "k8s.io/"):
				deny("only kube and the assemblies know Kubernetes types")
			case from == "kube" && ours(imp) && to != "model" && to != "" && to != "kube":
				deny("the edge imports model only")
			}
		}
	}
}

// No folder may say nothing about what it is for.
func TestFolderNames(t *testing.T) {
	for _, f := range goFiles(t, true) {
		for part := range strings.SplitSeq(f.dir, "/") {
			if slices.Contains([]string{"util", "utils", "common", "helpers", "misc", "pkg", "types", "lib"}, part) {
				t.Errorf("%s: a folder named %q says nothing", f.path, part)
			}
		}
	}
}

func TestEveryFileHasItsLicense(t *testing.T) {
	for _, f := range goFiles(t, true) {
		if !strings.HasPrefix(f.text, "// SPDX-License-Identifier: Apache-2.0\n") {
			t.Errorf("%s: the first line must be // SPDX-License-Identifier: Apache-2.0", f.path)
		}
	}
}

// A package states its one reason to exist, once.
func TestEveryPackageSaysWhy(t *testing.T) {
	docs := map[string]int{}
	for _, f := range goFiles(t, false) {
		docs[f.dir] += 0
		if f.ast.Doc != nil && len(f.ast.Doc.Text()) > 20 {
			docs[f.dir]++
		}
	}
	for dir, n := range docs {
		if n != 1 {
			t.Errorf("%s: %d files have a package comment, want one", dir, n)
		}
	}
}
