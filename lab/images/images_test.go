// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for ref, want := range map[string]string{
		"nginx":                         "docker.io/library/nginx:latest",
		"nginx:1.27":                    "docker.io/library/nginx:1.27",
		"docker.io/nginx":               "docker.io/library/nginx:latest",
		"index.docker.io/library/nginx": "docker.io/library/nginx:latest",
		"team/app:v1":                   "docker.io/team/app:v1",
		"ghcr.io/team/app":              "ghcr.io/team/app:latest",
		"localhost:5000/app":            "localhost:5000/app:latest",
		"nginx@" + digest:               "docker.io/library/nginx@" + digest,
		"nginx:1.27@" + digest:          "docker.io/library/nginx:1.27@" + digest,
		"localhost:5000/a@" + digest:    "localhost:5000/a@" + digest,
	} {
		if got, err := Parse(ref); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", ref, got, err, want)
		}
	}
	for _, ref := range []string{"", "UPPER", "a b", "x@sha256:short", "x:"} {
		if got, err := Parse(ref); err == nil {
			t.Errorf("%q was taken for %s", ref, got)
		}
	}
	if _, err := Parse("team/App:V1"); err == nil || !strings.Contains(err.Error(), "lower-case: team/app") {
		t.Errorf("an upper-case name: %v", err)
	}
	for ref, want := range map[string]string{
		"nginx:*":          "docker.io/library/nginx:*",
		"ghcr.io/team/a:*": "ghcr.io/team/a:*",
		"nginx":            "docker.io/library/nginx:latest",
	} {
		if got, err := ParsePattern(ref); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", ref, got, err, want)
		}
	}
	for _, ref := range []string{"nginx:1:*", "nginx:latest:*", "nginx@" + digest} {
		if got, err := ParsePattern(ref); err == nil {
			t.Errorf("%q was taken for %s", ref, got)
		}
	}
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// static builds a static program; content differs with the text.
func static(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main() { println(\""+text+"\") }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "prog")
	cmd := exec.Command("go", "build", "-o", out, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	return out
}

func find(t *testing.T, s *Store, ref string) (Entry, bool) {
	t.Helper()
	e, ok, err := s.Find(ref)
	if err != nil {
		t.Fatal(err)
	}
	return e, ok
}

func TestLoadBinary(t *testing.T) {
	s := newStore(t)
	one, err := s.LoadBinary("app:v1", Loaded, static(t, "one"))
	if err != nil {
		t.Fatal(err)
	}
	e, ok := find(t, s, "docker.io/library/app:v1")
	if !ok || e.Image.ID != one.ID || !slices.Equal(e.Image.Config.Entrypoint, []string{"/prog"}) {
		t.Fatalf("found %v, %v", e, ok)
	}
	for _, file := range []string{"prog", "etc/passwd", "etc/group", "tmp"} {
		if _, err := os.Stat(filepath.Join(e.Image.Lowers[0], file)); err != nil {
			t.Error(err)
		}
	}
	if info, _ := os.Stat(filepath.Join(e.Image.Lowers[0], "tmp")); info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("/tmp has mode %v", info.Mode())
	}
	// Loaded again, the reference means the new program; who uses the old one, as a shim does, keeps it.
	inUse, err := os.Open(one.Lowers[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(inUse.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	two, err := s.LoadBinary("app:v1", Loaded, static(t, "two"))
	if err != nil {
		t.Fatal(err)
	}
	if e, _ := find(t, s, "app:v1"); e.Image.ID != two.ID || two.ID == one.ID {
		t.Errorf("found %s, want %s", e.Image.ID, two.ID)
	}
	if _, err := os.Stat(filepath.Join(one.Lowers[0], "prog")); err != nil {
		t.Error("the old content is gone:", err)
	}
	inUse.Close()
	if _, err := s.LoadBinary("app:v3", Loaded, static(t, "three")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(one.Lowers[0]); err == nil {
		t.Error("the old content is still there, which nobody uses")
	}
	if _, ok := find(t, s, one.ID); ok {
		t.Error("the old image is still known")
	}
	for _, id := range []string{two.ID, strings.TrimPrefix(two.ID, "sha256:"), strings.TrimPrefix(two.ID, "sha256:")[:12]} {
		if e, ok := find(t, s, id); !ok || e.Image.ID != two.ID {
			t.Errorf("by ID %s: %v, %v", id, e, ok)
		}
	}
	if _, ok := find(t, s, "app:v2"); ok {
		t.Error("a tag was found that was not loaded")
	}
	if err := s.Unload("app:v1"); err != nil {
		t.Error(err)
	}
	if _, ok := find(t, s, "app:v1"); ok {
		t.Error("found after it was unloaded")
	}
	if err := s.Unload("app:v1"); err == nil {
		t.Error("unloaded twice")
	}
}

func TestWhatIsNoStaticBinary(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		script: "not a Linux program", dir: "not a file", filepath.Join(dir, "none"): "no such file", "/bin/ls": "CGO_ENABLED=0",
	} {
		if _, err := s.LoadBinary("app", Loaded, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestOrderOfResolution(t *testing.T) {
	s := newStore(t)
	shipped := static(t, "shipped")
	if _, err := s.LoadBinary("ghcr.io/weft-net/weft:*", Shipped, shipped); err != nil {
		t.Fatal(err)
	}
	ship, ok := find(t, s, "ghcr.io/weft-net/weft:v1.2.3")
	if !ok || ship.Origin != Shipped {
		t.Fatalf("%v, %v", ship, ok)
	}
	any, err := s.LoadBinary("ghcr.io/weft-net/weft:*", Loaded, static(t, "any tag"))
	if err != nil {
		t.Fatal(err)
	}
	exact, err := s.LoadBinary("ghcr.io/weft-net/weft:v2", Loaded, static(t, "one tag"))
	if err != nil {
		t.Fatal(err)
	}
	if e, _ := find(t, s, "ghcr.io/weft-net/weft:v1"); e.Image.ID != any.ID {
		t.Error("what is loaded doesn't win over what is shipped")
	}
	if e, _ := find(t, s, "ghcr.io/weft-net/weft:v2"); e.Image.ID != exact.ID {
		t.Error("a tag doesn't win over any tag")
	}
	if _, ok := find(t, s, "ghcr.io/weft-net/weft@sha256:"+strings.Repeat("0", 64)); ok {
		t.Error("a digest that no image has was found")
	}
	list, err := s.List()
	if err != nil || len(list) != 3 || list[0].Image.ID != exact.ID || list[2].Origin != Shipped {
		t.Errorf("list %v, %v", list, err)
	}
}

// entry is a file of a layer.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func layer(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// image is one of three layers that exercise what layers can do.
func image(t *testing.T, marker string) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image,
		layer(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/keep", body: "kept"}, entry{name: "etc/gone", body: "x"},
			entry{name: "full/one", body: "1"}, entry{name: "full/sub/two", body: "2"},
			entry{name: "usr/bin/prog", body: "#!" + marker, mode: 0o4755},
			entry{name: "bin", kind: tar.TypeSymlink, link: "/usr/bin"},
			entry{name: "file-then-dir", body: "x"}),
		layer(t, entry{name: "etc/.wh.gone"}, entry{name: "full/.wh..wh..opq"}, entry{name: "full/three", body: "3"},
			entry{name: "bin/through-link", body: "via"}, entry{name: "hard", kind: tar.TypeLink, link: "usr/bin/prog"},
			entry{name: "file-then-dir/", kind: tar.TypeDir}, entry{name: "file-then-dir/x", body: "x"}),
		layer(t, entry{name: "../../outside", body: "x"}, entry{name: "escape", kind: tar.TypeSymlink, link: "../../../../../.."},
			entry{name: "escape/trap-" + marker, body: "x"}),
	)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: config(t, img).RootFS,
		Config: v1.Config{
			Entrypoint: []string{"/usr/bin/prog"}, Cmd: []string{marker}, Env: []string{"A=1"}, User: "1000:2000",
			WorkingDir: "/work", StopSignal: "SIGQUIT", ExposedPorts: map[string]struct{}{"80/tcp": {}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func config(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkImage checks that e is what image made.
func checkImage(t *testing.T, e Entry, marker string) {
	t.Helper()
	if len(e.Image.Lowers) != 1 {
		t.Fatalf("directories %v", e.Image.Lowers)
	}
	root := e.Image.Lowers[0]
	for name, want := range map[string]string{
		"etc/keep": "kept", "full/three": "3", "usr/bin/prog": "#!" + marker, "usr/bin/through-link": "via", "hard": "#!" + marker,
		"file-then-dir/x": "x", "outside": "x", "trap-" + marker: "x",
	} {
		if body, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v; want %q", name, body, err, want)
		}
	}
	for _, name := range []string{"etc/gone", "full/one", "full/sub"} {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s should be gone", name)
		}
	}
	if info, err := os.Stat(filepath.Join(root, "usr/bin/prog")); err != nil || info.Mode()&os.ModeSetuid == 0 {
		t.Errorf("the mode of prog: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(root), "outside")); err == nil {
		t.Error("a layer wrote outside of its root")
	}
	c := e.Image.Config
	if !slices.Equal(c.Entrypoint, []string{"/usr/bin/prog"}) || !slices.Equal(c.Cmd, []string{marker}) || c.User != "1000:2000" ||
		c.WorkingDir != "/work" || c.StopSignal != "SIGQUIT" || !slices.Equal(c.Env, []string{"A=1"}) || !slices.Equal(c.ExposedPorts, []string{"80/tcp"}) {
		t.Errorf("config %+v", c)
	}
}

func TestLoadOCI(t *testing.T) {
	img := image(t, "oci")
	dir := t.TempDir()
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	// Another platform's image comes first.
	other, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "s390x", RootFS: config(t, img).RootFS})
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(other, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "s390x"})); err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "layout.tar")
	if out, err := exec.Command("tar", "-C", string(path), "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	saved := filepath.Join(dir, "saved.tar")
	tag, err := name.NewTag("example.com/saved:v1")
	if err != nil {
		t.Fatal(err)
	}
	unlike, err := name.NewTag("example.com/unlike:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.MultiRefWriteToFile(saved, map[name.Reference]v1.Image{tag: img, unlike: image(t, "unlike")}); err != nil {
		t.Fatal(err)
	}
	for ref, file := range map[string]string{"example.com/dir:v1": string(path), "example.com/tar:v1": archive, "example.com/saved:v1": saved} {
		t.Run(ref, func(t *testing.T) {
			s := newStore(t)
			if _, err := s.LoadOCI(ref, Loaded, file); err != nil {
				t.Fatal(err)
			}
			e, ok := find(t, s, ref)
			if !ok {
				t.Fatal("not found")
			}
			checkImage(t, e, "oci")
			if left, _ := filepath.Glob(filepath.Join(s.Dir(), "unpack-*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("what is none", func(t *testing.T) {
		s := newStore(t)
		text := filepath.Join(dir, "text")
		if err := os.WriteFile(text, []byte(strings.Repeat("no archive ", 100)), 0o600); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]string{text: "neither a directory nor a tar archive", dir: "no OCI layout", filepath.Join(dir, "none"): "no such file"} {
			if _, err := s.LoadOCI("x", Loaded, file); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", file, err, want)
			}
		}
		if _, err := s.LoadOCI("example.com/absent:v1", Loaded, saved); err == nil || !strings.Contains(err.Error(), "example.com/unlike:v1") {
			t.Errorf("error %v", err)
		}
	})
}

func TestPull(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	img := image(t, "pulled")
	push := func(ref string, img v1.Image) v1.Hash {
		r, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(r, img); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	ref := host + "/team/app:v1"
	digest := push(ref, img)
	s := newStore(t)
	p := NewPuller(s)
	if _, ok := find(t, s, ref); ok {
		t.Fatal("found before it was pulled")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if e, err := p.Pull(t.Context(), ref, Auth{}); err != nil || e.Image.Digest != digest.String() {
				t.Errorf("%v, %v", e, err)
			}
		})
	}
	wg.Wait()
	e, ok := find(t, s, ref)
	if !ok || e.Origin != Pulled {
		t.Fatalf("%v, %v", e, ok)
	}
	checkImage(t, e, "pulled")
	for _, byDigest := range []string{host + "/team/app@" + digest.String(), host + "/team/app:v1@" + digest.String()} {
		if got, ok := find(t, s, byDigest); !ok || got.Image.ID != e.Image.ID {
			t.Errorf("by digest: %v, %v", got, ok)
		}
		if _, err := p.Pull(t.Context(), byDigest, Auth{}); err != nil {
			t.Error(err)
		}
	}
	// A tag that has moved is pulled anew.
	push(ref, image(t, "moved"))
	if e, err := p.Pull(t.Context(), ref, Auth{}); err != nil {
		t.Error(err)
	} else {
		checkImage(t, e, "moved")
	}
	// What is loaded wins, without asking the registry.
	if _, err := s.LoadBinary(host+"/team/app:*", Loaded, static(t, "mine")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if e, err := p.Pull(t.Context(), ref, Auth{}); err != nil || e.Origin != Loaded {
		t.Errorf("%v, %v", e, err)
	}
	_, err := p.Pull(context.Background(), host+"/team/other", Auth{})
	want := fmt.Sprintf("weft lab load %s/team/other:latest --binary PATH", host)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestToolsShowNoSecrets(t *testing.T) {
	s := newStore(t)
	img, err := s.LoadTools("tools:*", Shipped)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(img.Lowers[0], "etc/passwd")); err != nil {
		t.Error(err)
	}
	for _, hidden := range []string{"etc/shadow", "etc/ssh", "etc/sudoers"} {
		if _, err := os.Lstat(filepath.Join(img.Lowers[0], hidden)); err == nil {
			t.Errorf("/%s is visible", hidden)
		}
	}
	if !slices.Contains(HostDirs(), "/usr") {
		t.Errorf("directories of programs: %v", HostDirs())
	}
	for _, d := range HostDirs() {
		if !slices.Contains(hostPrograms, strings.TrimPrefix(d, "/")) {
			t.Errorf("%s is shown", d)
		}
	}
}

// FuzzLayer feeds unpacking with archives: whatever they hold, nothing outside of the root is touched.
func FuzzLayer(f *testing.F) {
	for _, e := range [][]entry{
		{{name: "../x", body: "1"}}, {{name: "a", kind: tar.TypeSymlink, link: "../.."}, {name: "a/b", body: "1"}},
		{{name: "a/.wh..wh..opq"}}, {{name: ".wh..."}}, {{name: "h", kind: tar.TypeLink, link: "../../etc/passwd"}},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range e {
			kind := e.kind
			if kind == 0 {
				kind = tar.TypeReg
			}
			if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: kind, Linkname: e.link, Mode: 0o644, Size: int64(len(e.body))}); err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(w, e.body); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		outer := t.TempDir()
		if err := os.WriteFile(filepath.Join(outer, "canary"), []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		root := filepath.Join(outer, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = applyLayer(bytes.NewReader(archive), root) // refusing is fine
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 2 {
			t.Errorf("beside the root: %v, %v", entries, err)
		}
		if body, err := os.ReadFile(filepath.Join(outer, "canary")); err != nil || string(body) != "alive" {
			t.Errorf("the canary: %q, %v", body, err)
		}
	})
}
