// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"encoding/base64"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/images"
)

func (n *node) image(ref string) *runtimeapi.Image {
	n.t.Helper()
	r, err := n.images.ImageStatus(n.ctx(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Image
}

func (n *node) pull(ref string, auth *runtimeapi.AuthConfig) (string, error) {
	r, err := n.images.PullImage(n.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	return r.GetImageRef(), err
}

func TestLoadedImages(t *testing.T) {
	n := newNode(t)
	img := n.image("example.com/probe:v1")
	if img == nil || !img.Pinned || !slices.Equal(img.RepoTags, []string{"example.com/probe:v1"}) || img.Size == 0 {
		t.Fatalf("image %v", img)
	}
	if ref, err := n.pull("example.com/probe:v1", nil); err != nil || ref != img.Id {
		t.Errorf("pull: %s, %v", ref, err)
	}
	if absent := n.image("example.com/absent:v1"); absent != nil {
		t.Errorf("an image that isn't there: %v", absent)
	}
	_, err := n.pull("registry.invalid/absent:v1", nil)
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "weft lab load registry.invalid/absent:v1 --binary PATH") {
		t.Errorf("error %v", err)
	}
	// What is loaded after the server's start is found.
	if _, err := n.store.LoadBinary("example.com/late:*", images.Loaded, filepath.Join(base, "probe")); err != nil {
		t.Fatal(err)
	}
	if late := n.image("example.com/late:any"); late == nil || late.Id != img.Id {
		t.Errorf("image %v", late)
	}
	list, err := n.images.ListImages(n.ctx(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 2 {
		t.Errorf("list %v, %v", list, err)
	}
	for _, i := range list.Images {
		if i.Id == img.Id && len(i.RepoTags) != 2 {
			t.Errorf("tags of one image: %v", i.RepoTags)
		}
	}
	// Removed, it is absent on this node until it is pulled again, and a restart doesn't change that.
	for range 2 {
		if _, err := n.images.RemoveImage(n.ctx(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: img.Id}}); err != nil {
			t.Fatal(err)
		}
	}
	n.kill()
	n.start()
	if n.image("example.com/probe:v1") != nil || n.image(img.Id) != nil {
		t.Error("still there after it was removed")
	}
	if _, err := n.pull("example.com/probe:v1", nil); err != nil {
		t.Error(err)
	}
	if n.image("example.com/probe:v1") == nil {
		t.Error("absent after it was pulled")
	}
}

func TestImageThatIsReplacedWhileItRuns(t *testing.T) {
	n := newNode(t)
	pod := n.runPod(n.pod("replaced"))
	old := n.image(probeImage).Id
	id := n.run(pod, ctr(probeImage))
	next := filepath.Join(n.dir, "next")
	program, err := os.ReadFile(filepath.Join(base, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next, append(program, "another"...), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.LoadBinary(probeImage, images.Loaded, next); err != nil {
		t.Fatal(err)
	}
	if out, code := n.execIn(id, "/probe", "exit", "3"); code != 3 {
		t.Errorf("in the container of the old image: %d, %s", code, out)
	}
	if st := n.status(id); st.ImageId != old {
		t.Errorf("image %s, want %s", st.ImageId, old)
	}
	c := ctr(probeImage, "exit", "5")
	c.Command = []string{"/next"} // it is named after its file
	if st := n.wait(n.run(pod, c)); st.ExitCode != 5 || st.ImageId == old {
		t.Errorf("the next container: %v", st)
	}
	if _, err := n.RemoveContainer(n.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.LoadBinary("example.com/other", images.Loaded, next); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.ImageDir, "content", strings.TrimPrefix(old, "sha256:"))); err == nil {
		t.Error("the old image's files are still there, which nothing uses")
	}
}

func TestPullFromRegistry(t *testing.T) {
	n := newNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	ref := l.Addr().String() + "/team/app:v1"
	img, err := random.Image(100, 2)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img, remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.pull(ref, nil); err == nil || !strings.Contains(err.Error(), "UNAUTHORIZED") {
		t.Errorf("without a pull secret: %v", err)
	}
	want := l.Addr().String() + "/team/app@" + digest.String()
	for what, auth := range map[string]*runtimeapi.AuthConfig{
		"user and password": {Username: "me", Password: "secret"},
		"auth":              {Auth: base64.StdEncoding.EncodeToString([]byte("me:secret"))},
	} {
		if got, err := n.pull(ref, auth); err != nil || got != want {
			t.Errorf("with %s: %s, %v; want %s", what, got, err, want)
		}
	}
	if got := n.image(want); got == nil || got.Pinned || !slices.Contains(got.RepoDigests, want) {
		t.Errorf("image %v", got)
	}
	if _, err := n.pull(ref, &runtimeapi.AuthConfig{Auth: "not base64!"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("error %v", err)
	}
}
