// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/weft-net/weft/lab/images"
	"golang.org/x/sys/unix"
)

// Repository is where the shipped images would be; in a lab their references never reach a registry.
const Repository = "ghcr.io/weft-net"

// registerImages puts the images that come with the lab into its store.
func (l *lab) registerImages() error {
	store, err := images.Open(l.files.images())
	if err != nil {
		return err
	}
	for _, programs := range [][]string{{"weft", "weft-cni"}, {"echo"}} {
		var paths []string
		for _, p := range programs {
			paths = append(paths, l.files.program(p))
		}
		if _, err := store.LoadBinary(Repository+"/"+programs[0]+":*", images.Shipped, paths[0], paths[1:]...); err != nil {
			return err
		}
	}
	_, err = store.LoadTools(Repository+"/tools:*", images.Shipped)
	return err
}

// LoadArgs are the arguments of OpLoad.
type LoadArgs struct {
	Ref  string
	Kind string // binary, rootfs or oci
	Path string // absolute
}

// ImageInfo is an image that a lab has, for a person.
type ImageInfo struct {
	Ref    string `json:"reference"`
	Origin string `json:"origin"`
	ID     string `json:"id"`
	Size   uint64 `json:"size"`
}

// load registers an image. A root file system stays where it is, and is mounted where every node sees it.
func (l *lab) load(args LoadArgs) (any, error) {
	store, err := images.Open(l.files.images())
	if err != nil {
		return nil, err
	}
	var img images.Image
	switch args.Kind {
	case "binary":
		img, err = store.LoadBinary(args.Ref, images.Loaded, args.Path)
	case "oci":
		img, err = store.LoadOCI(args.Ref, images.Loaded, args.Path)
	case "rootfs":
		var dir string
		if dir, err = l.mountRootfs(args.Path); err == nil {
			img, err = store.LoadRootfs(args.Ref, images.Loaded, dir)
		}
	default:
		err = fmt.Errorf("unknown kind of image %q", args.Kind)
	}
	if err != nil {
		return nil, err
	}
	return ImageInfo{Ref: args.Ref, Origin: "loaded", ID: img.ID, Size: img.Size}, nil
}

func (l *lab) mountRootfs(source string) (string, error) {
	if info, err := os.Stat(source); err != nil {
		return "", err
	} else if !info.IsDir() {
		return "", fmt.Errorf("%s is not a directory", source)
	}
	parent := filepath.Join(l.files.images(), "rootfs")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, "")
	if err != nil {
		return "", err
	}
	if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("mount %s in the lab: %w", source, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return dir, unix.MountSetattr(unix.AT_FDCWD, dir, 0, &attr)
}

func (l *lab) listImages() (any, error) {
	store, err := images.Open(l.files.images())
	if err != nil {
		return nil, err
	}
	entries, err := store.List()
	if err != nil {
		return nil, err
	}
	infos := make([]ImageInfo, len(entries))
	for i, e := range entries {
		origin := map[images.Origin]string{images.Loaded: "loaded", images.Shipped: "shipped", images.Pulled: "pulled"}[e.Origin]
		infos[i] = ImageInfo{Ref: e.Pattern, Origin: origin, ID: e.Image.ID, Size: e.Image.Size}
	}
	return infos, nil
}
