// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/wire"
	"github.com/weft-net/weft/lab/images"
)

// imageSet remembers which images kubelet has removed from this node. The store belongs to all nodes of the lab, so
// nothing is deleted from it; a pull brings the image back.
type imageSet struct {
	file string
	mu   sync.Mutex
	ids  map[string]bool
}

func openImageSet(root string) (*imageSet, error) {
	s := &imageSet{file: filepath.Join(root, "removed-images.json"), ids: map[string]bool{}}
	err := wire.ReadFile(s.file, &s.ids)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cri: %w", err)
	}
	return s, nil
}

func (s *imageSet) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id]
}

func (s *imageSet) set(id string, in bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids[id] == in {
		return nil
	}
	if in {
		s.ids[id] = true
	} else {
		delete(s.ids, id)
	}
	return wire.WriteFile(s.file, s.ids)
}

// imageRef is what pods show as imageID: the reference by digest of an image that has one, or else the ID.
func imageRef(e images.Entry) string {
	if e.Image.Digest == "" {
		return e.Image.ID
	}
	return repository(e.Pattern) + "@" + e.Image.Digest
}

func repository(pattern string) string {
	at, _, _ := strings.Cut(pattern, "@")
	if i := strings.LastIndexByte(at, ':'); i > strings.LastIndexByte(at, '/') {
		return at[:i]
	}
	return at
}

// findImage looks for an image that is present on this node.
func (s *server) findImage(ref string) (images.Entry, bool, error) {
	e, ok, err := s.images.Find(ref)
	if err != nil {
		return e, false, status.Error(codes.InvalidArgument, err.Error())
	}
	return e, ok && !s.absent.has(e.Image.ID), nil
}

// ListImages lists the images that are present on this node.
func (s *server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.listImages(req.Filter)
	return &runtimeapi.ListImagesResponse{Images: list}, err
}

// StreamImages is ListImages in pieces.
func (s *server) StreamImages(req *runtimeapi.StreamImagesRequest, to runtimeapi.ImageService_StreamImagesServer) error {
	list, err := s.listImages(req.Filter)
	if err != nil {
		return err
	}
	return inPieces(list, func(part []*runtimeapi.Image) error {
		return to.Send(&runtimeapi.StreamImagesResponse{Images: part})
	})
}

func (s *server) listImages(filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := filter.GetImage().GetImage(); ref != "" {
		e, ok, err := s.findImage(ref)
		if err != nil || !ok {
			return nil, err
		}
		return []*runtimeapi.Image{describe([]images.Entry{e})}, nil
	}
	entries, err := s.images.List()
	if err != nil {
		return nil, err
	}
	byID := map[string][]images.Entry{}
	var order []string
	for _, e := range entries {
		if s.absent.has(e.Image.ID) {
			continue
		}
		if byID[e.Image.ID] == nil {
			order = append(order, e.Image.ID)
		}
		byID[e.Image.ID] = append(byID[e.Image.ID], e)
	}
	var list []*runtimeapi.Image
	for _, id := range order {
		list = append(list, describe(byID[id]))
	}
	return list, nil
}

// describe puts the entries of one image into the terms of the CRI.
func describe(entries []images.Entry) *runtimeapi.Image {
	img := entries[0].Image
	out := &runtimeapi.Image{Id: img.ID, Size: max(img.Size, 1), Spec: &runtimeapi.ImageSpec{Image: img.ID}}
	for _, e := range entries {
		if e.Origin != images.Pulled {
			out.Pinned = true // it can't be had again by pulling
		}
		if !strings.Contains(e.Pattern, "@") {
			out.RepoTags = append(out.RepoTags, e.Pattern)
		}
		if img.Digest != "" {
			out.RepoDigests = append(out.RepoDigests, repository(e.Pattern)+"@"+img.Digest)
		}
	}
	user, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else if user != "" {
		out.Username = user
	} else {
		out.Uid = &runtimeapi.Int64Value{}
	}
	return out
}

// ImageStatus returns no image, and no error, for one that is not present.
func (s *server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	e, ok, err := s.findImage(req.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	resp := &runtimeapi.ImageStatusResponse{Image: describe([]images.Entry{e})}
	if req.Verbose {
		resp.Info = map[string]string{"lowers": strings.Join(e.Image.Lowers, ":")}
	}
	return resp, nil
}

// PullImage finds what is loaded or shipped before it asks a registry. Its error is what a pod in ImagePullBackOff
// shows, so it says what to do.
func (s *server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	auth, err := registryAuth(req.Auth)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	e, err := s.pulls.Pull(ctx, ref, auth)
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err := s.absent.set(e.Image.ID, false); err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: imageRef(e)}, nil
}

func registryAuth(a *runtimeapi.AuthConfig) (images.Auth, error) {
	if a == nil {
		return images.Auth{}, nil
	}
	auth := images.Auth{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	if a.Auth != "" {
		both, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return auth, fmt.Errorf("image pull secret: auth is not base64: %w", err)
		}
		user, password, ok := strings.Cut(string(both), ":")
		if !ok {
			return auth, errors.New("image pull secret: auth is not user:password")
		}
		auth.Username, auth.Password = user, strings.TrimRight(password, "\x00")
	}
	return auth, nil
}

// RemoveImage makes the image absent on this node.
func (s *server) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	e, ok, err := s.findImage(req.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	if ok {
		if err := s.absent.set(e.Image.ID, true); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo describes the file systems of images and of containers' writable layers.
func (s *server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	img, err := filesystem(s.images.Dir())
	if err != nil {
		return nil, err
	}
	ctr, err := filesystem(s.cfg.containersDir())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{img},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{ctr},
	}, nil
}

func filesystem(dir string) (*runtimeapi.FilesystemUsage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", dir, err)
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: dir},
		UsedBytes:  &runtimeapi.UInt64Value{Value: (st.Blocks - st.Bfree) * uint64(st.Bsize)},
		InodesUsed: &runtimeapi.UInt64Value{Value: st.Files - st.Ffree},
	}, nil
}
