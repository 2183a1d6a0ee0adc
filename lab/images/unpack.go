// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/inroot"
)

// LoadOCI registers under ref the image in file: an OCI layout, as a directory or a tar archive, or what `docker
// save` writes. Of an image for several platforms it takes this machine's.
func (s *Store) LoadOCI(ref string, origin Origin, file string) (Image, error) {
	pattern, err := ParsePattern(ref)
	if err != nil {
		return Image{}, err
	}
	fail := func(err error) (Image, error) {
		return Image{}, fmt.Errorf("load image %s from %s: %w", pattern, file, err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return fail(err)
	}
	var img v1.Image
	switch {
	case info.IsDir():
		img, err = fromLayout(file, pattern)
	default:
		var docker bool
		if docker, err = holdsFile(file, "manifest.json"); err != nil {
			return fail(fmt.Errorf("it is neither a directory nor a tar archive: %w", err))
		}
		if docker {
			img, err = fromDockerSave(file, pattern)
			break
		}
		// The archive of a layout is unpacked next to the content and removed again.
		var tmp string
		if tmp, err = os.MkdirTemp(s.dir, "unpack-*"); err != nil {
			return fail(err)
		}
		defer os.RemoveAll(tmp)
		if err = untarFile(file, tmp); err == nil {
			img, err = fromLayout(tmp, pattern)
		}
	}
	if err != nil {
		return fail(err)
	}
	got, err := s.unpack(pattern, origin, img, "")
	if err != nil {
		return fail(err)
	}
	return got, nil
}

// refName is the annotation by which the index of an OCI layout names an image.
const refName = "org.opencontainers.image.ref.name"

func fromLayout(dir, pattern string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("it is no OCI layout: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	candidates := manifest.Manifests
	if len(candidates) > 1 {
		var named []v1.Descriptor
		for _, d := range candidates {
			if n := d.Annotations[refName]; n != "" && strings.HasSuffix(pattern, n) {
				named = append(named, d)
			}
		}
		if len(named) > 0 {
			candidates = named
		}
	}
	return pick(index, candidates)
}

// pick chooses the image of this machine's platform, going down nested indexes.
func pick(index v1.ImageIndex, candidates []v1.Descriptor) (v1.Image, error) {
	var have []string
	for _, d := range candidates {
		if d.MediaType.IsIndex() {
			nested, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			m, err := nested.IndexManifest()
			if err != nil {
				return nil, err
			}
			if img, err := pick(nested, m.Manifests); err == nil {
				return img, nil
			}
			continue
		}
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			have = append(have, p.String())
			continue
		}
		return index.Image(d.Digest)
	}
	return nil, fmt.Errorf("it has no image for linux/%s (it has %s)", runtime.GOARCH, strings.Join(have, ", "))
}

func fromDockerSave(file, pattern string) (v1.Image, error) {
	opener := func() (io.ReadCloser, error) { return os.Open(file) }
	manifest, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, err
	}
	if len(manifest) == 1 {
		return tarball.Image(opener, nil)
	}
	var have []string
	for _, d := range manifest {
		have = append(have, d.RepoTags...)
	}
	sort.Strings(have)
	for _, tag := range have {
		if r, err := Parse(tag); err == nil && r.matchesName(pattern) {
			t, err := tagOf(tag)
			if err != nil {
				return nil, err
			}
			return tarball.Image(opener, t)
		}
	}
	return nil, fmt.Errorf("it has several images (%s) and none is %s", strings.Join(have, ", "), pattern)
}

// holdsFile reports whether a tar archive has a top-level file of that name.
func holdsFile(archive, name string) (bool, error) {
	f, err := os.Open(archive)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if path.Clean(h.Name) == name {
			return true, nil
		}
	}
}

func untarFile(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return applyLayer(f, dir)
}

// unpack puts an image's files into the store, all layers flattened into one directory, and records that pattern
// means it. A digest that is given, an index's, stands for the manifest's.
func (s *Store) unpack(pattern string, origin Origin, img v1.Image, indexDigest string) (Image, error) {
	id, err := img.ConfigName()
	if err != nil {
		return Image{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return Image{}, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return Image{}, err
	}
	if os := config.OS; os != "" && os != "linux" || config.Architecture != "" && config.Architecture != runtime.GOARCH {
		return Image{}, fmt.Errorf("it is for %s/%s, this machine is linux/%s", config.OS, config.Architecture, runtime.GOARCH)
	}
	layers, err := img.Layers()
	if err != nil {
		return Image{}, err
	}
	got := Image{ID: id.String(), Digest: digest.String(), Created: config.Created.Time, Config: Config{
		Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env,
		User: config.Config.User, WorkingDir: config.Config.WorkingDir, StopSignal: config.Config.StopSignal,
	}}
	for port := range config.Config.ExposedPorts {
		got.Config.ExposedPorts = append(got.Config.ExposedPorts, port)
	}
	sort.Strings(got.Config.ExposedPorts)
	if indexDigest != "" {
		got.Digest = indexDigest
	}
	err = s.add(pattern, origin, &got, func(dir string) error {
		for i, l := range layers {
			if err := applyOne(l, dir); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
		}
		return nil
	})
	return got, err
}

func applyOne(l v1.Layer, dir string) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	return applyLayer(r, dir)
}

const (
	whiteoutPrefix = ".wh."         // the name after it is gone (OCI image layer specification)
	whiteoutOpaque = ".wh..wh..opq" // everything lower layers have in this directory is gone
)

// applyLayer unpacks a layer over what earlier ones left in dir.
func applyLayer(r io.Reader, dir string) error {
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	mine := map[string]bool{} // what this layer has made: an opaque mark spares it
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			// What follows the archive's end belongs to the layer's digest, which is checked at the end.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		if name == "/" {
			continue
		}
		if err := applyEntry(root, t, h, name, mine); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func applyEntry(root *os.File, t *tar.Reader, h *tar.Header, name string, mine map[string]bool) error {
	parent, err := inroot.Ensure(root, path.Dir(name), true)
	if err != nil {
		return err
	}
	defer parent.Close()
	// The parent with its links resolved: all that follows is inside of it.
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", parent.Fd()))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if base == whiteoutOpaque {
		return emptyDir(dir, mine)
	}
	if gone, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		if gone == "" || gone == "." || gone == ".." {
			return fmt.Errorf("malformed whiteout")
		}
		return os.RemoveAll(filepath.Join(dir, gone))
	}
	target := filepath.Join(dir, base)
	for p := target; len(p) > len(root.Name()) && !mine[p]; p = filepath.Dir(p) {
		mine[p] = true
	}
	if info, err := os.Lstat(target); err == nil && !(info.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := os.RemoveAll(target); err != nil {
			return err
		}
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, target); err != nil {
			return err
		}
		return owned(os.Lchown(target, h.Uid, h.Gid))
	case tar.TypeLink:
		old, err := inroot.Open(root, path.Dir(path.Clean("/"+h.Linkname)), unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer old.Close()
		return unix.Linkat(int(old.Fd()), path.Base(h.Linkname), int(parent.Fd()), base, 0)
	case tar.TypeFifo:
		if err := unix.Mkfifo(target, uint32(mode.Perm())); err != nil {
			return err
		}
	default:
		return nil // devices: a container's /dev is the runtime's
	}
	if err := owned(os.Lchown(target, h.Uid, h.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(target, mode); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			// Where the lab may not set one (file capabilities in a user namespace), it would have no effect.
			_ = unix.Lsetxattr(target, attr, []byte(value), 0)
		}
	}
	return os.Chtimes(target, h.ModTime, h.ModTime)
}

// owned lets pass that an owner can't be set where only a few are mapped, in a user namespace.
func owned(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

func emptyDir(dir string, mine map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case !mine[name]:
			err = os.RemoveAll(name)
		case e.IsDir():
			err = emptyDir(name, mine)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
