// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/inroot"
	"github.com/weft-net/weft/lab/cri/wire"
	"github.com/weft-net/weft/lab/images"
)

// defaultPath is the PATH of a container whose image and pod give none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// buildSpec turns what kubelet and the image say into what the shim does, and completes c's record.
func (s *server) buildSpec(sb *sandbox, c *container) (*wire.Container, error) {
	config := c.rec.Config
	sc := config.GetLinux().GetSecurityContext()
	ref := config.GetImage().GetImage()
	entry, ok, err := s.images.Find(ref)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, status.Errorf(codes.NotFound, "image %q is not on this node", ref)
	}
	img := entry.Image
	invalid := func(err error) (*wire.Container, error) {
		return nil, status.Errorf(codes.InvalidArgument, "container %q: %v", config.Metadata.Name, err)
	}
	if len(config.CDIDevices) > 0 {
		return invalid(errors.New("the lab has no CDI devices"))
	}
	spec := &wire.Container{
		ID: c.rec.ID, Lowers: img.Lowers,
		ReadOnlyRoot: sc.GetReadonlyRootfs(), Privileged: sc.GetPrivileged(),
		MaskedPaths: sc.GetMaskedPaths(), ReadonlyPaths: sc.GetReadonlyPaths(),
		Stdin: config.Stdin, StdinOnce: config.StdinOnce,
	}
	if spec.Privileged {
		// kubelet sends the default lists for privileged containers too; every runtime drops them there.
		spec.MaskedPaths, spec.ReadonlyPaths = nil, nil
	}
	if img.HostPrograms {
		spec.HostDirs = images.HostDirs()
	}
	p := &spec.Process
	if p.Args = commandLine(config, img.Config); len(p.Args) == 0 {
		return invalid(errors.New("neither the image nor the pod names a command"))
	}
	known, err := readAccounts(img.Lowers)
	if err != nil {
		return invalid(err)
	}
	var home string
	if p.User, home, err = resolveUser(sc, img.Config.User, known); err != nil {
		return invalid(err)
	}
	p.Env = environment(sb, config, img.Config, home)
	p.Cwd = config.WorkingDir
	if p.Cwd == "" {
		p.Cwd = img.Config.WorkingDir
	}
	if p.Cwd = path.Clean("/" + p.Cwd); config.WorkingDir != "" && !path.IsAbs(config.WorkingDir) {
		return invalid(fmt.Errorf("workingDir %q is not absolute", config.WorkingDir))
	}
	if p.Caps, err = capabilities(sc); err != nil {
		return invalid(err)
	}
	p.NoNewPrivs, p.TTY = sc.GetNoNewPrivs(), config.Tty
	if r := config.GetLinux().GetResources(); r != nil {
		adj := int(r.OomScoreAdj)
		p.OOMScoreAdj = &adj
	}
	if err := s.pidMode(sb, sc, spec); err != nil {
		return invalid(err)
	}
	if spec.Mounts, err = s.mounts(sb, config); err != nil {
		return invalid(err)
	}
	spec.Holds = append(spec.Holds, img.Lowers...)
	for _, m := range config.Mounts {
		if ref := m.GetImage().GetImage(); ref != "" {
			if e, ok, err := s.images.Find(ref); err == nil && ok {
				spec.Holds = append(spec.Holds, e.Image.Lowers...)
			}
		}
	}
	for _, d := range config.Devices {
		spec.Devices = append(spec.Devices, wire.Mount{
			Source: d.HostPath, Target: d.ContainerPath, ReadOnly: !strings.Contains(d.Permissions, "w"),
		})
	}
	if dir := sb.rec.Config.LogDirectory; dir != "" && config.LogPath != "" {
		spec.LogPath = filepath.Join(dir, config.LogPath)
		if err := os.MkdirAll(filepath.Dir(spec.LogPath), 0o755); err != nil {
			return nil, fmt.Errorf("log directory: %w", err)
		}
	}
	if c.rec.StopSignal, err = stopSignal(config, img.Config.StopSignal); err != nil {
		return invalid(err)
	}
	c.rec.ImageID, c.rec.ImageRef, c.rec.ImageName = img.ID, imageRef(entry), imageName(config.Image, entry)
	c.rec.LogPath, c.rec.User = spec.LogPath, p.User
	return spec, nil
}

// imageName is the reference that the pod's author wrote, or if kubelet doesn't tell, one that means the image.
func imageName(spec *runtimeapi.ImageSpec, e images.Entry) string {
	for _, ref := range []string{spec.GetUserSpecifiedImage(), spec.GetImage()} {
		if r, err := images.Parse(ref); err == nil && ref != e.Image.ID {
			return r.String()
		}
	}
	return e.Pattern
}

// commandLine follows the API: command replaces the image's entrypoint and its arguments, args its arguments.
func commandLine(config *runtimeapi.ContainerConfig, img images.Config) []string {
	switch {
	case len(config.Command) > 0:
		return append(append([]string{}, config.Command...), config.Args...)
	case len(config.Args) > 0:
		return append(append([]string{}, img.Entrypoint...), config.Args...)
	}
	return append(append([]string{}, img.Entrypoint...), img.Cmd...)
}

// environment is the image's, overridden by the pod's, with PATH, HOME, HOSTNAME and TERM where both are silent.
func environment(sb *sandbox, config *runtimeapi.ContainerConfig, img images.Config, home string) []string {
	var env []string
	at := map[string]int{}
	set := func(name, value string) {
		if i, ok := at[name]; ok {
			env[i] = name + "=" + value
			return
		}
		at[name] = len(env)
		env = append(env, name+"="+value)
	}
	set("PATH", defaultPath)
	hostname := sb.rec.Hostname
	if hostname == "" {
		hostname, _ = os.Hostname()
	}
	set("HOSTNAME", hostname)
	if config.Tty {
		set("TERM", "xterm")
	}
	for _, e := range img.Env {
		if name, value, ok := strings.Cut(e, "="); ok {
			set(name, value)
		}
	}
	for _, e := range config.Envs {
		set(e.Key, string(e.Value))
	}
	if _, ok := at["HOME"]; !ok {
		set("HOME", home)
	}
	return env
}

func (s *server) pidMode(sb *sandbox, sc *runtimeapi.LinuxContainerSecurityContext, spec *wire.Container) error {
	switch ns := sc.GetNamespaceOptions(); ns.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		spec.PID = wire.PIDPrivate
	case runtimeapi.NamespaceMode_NODE:
		spec.PID = wire.PIDNode
	case runtimeapi.NamespaceMode_TARGET:
		target, err := s.container(ns.TargetId)
		if err != nil {
			return fmt.Errorf("target of the process namespace: %w", err)
		}
		if target.rec.SandboxID != sb.rec.ID {
			return fmt.Errorf("target of the process namespace: container %s is of another pod", ns.TargetId)
		}
		spec.PID, spec.PIDTarget = wire.PIDTarget, target.rec.ID
	default:
		spec.PID = wire.PIDPrivate
		if sb.rec.SharedPID {
			spec.PID = wire.PIDPod
		}
	}
	return nil
}

// mounts are the pod's own files and what kubelet asks for, parents before children.
func (s *server) mounts(sb *sandbox, config *runtimeapi.ContainerConfig) ([]wire.Mount, error) {
	taken := map[string]bool{}
	var asked []wire.Mount
	for _, m := range config.Mounts {
		w, err := s.mount(m)
		if err != nil {
			return nil, fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		taken[path.Clean(w.Target)] = true
		asked = append(asked, w)
	}
	shm := filepath.Join(sb.dir, "shm")
	if sb.rec.HostIPC {
		shm = "/dev/shm"
	}
	readOnly := config.GetLinux().GetSecurityContext().GetReadonlyRootfs()
	var all []wire.Mount
	for _, m := range []wire.Mount{
		{Source: shm, Target: "/dev/shm", Options: []string{"nosuid", "nodev", "noexec"}},
		{Source: filepath.Join(sb.dir, "resolv.conf"), Target: "/etc/resolv.conf", ReadOnly: readOnly},
		{Source: filepath.Join(sb.dir, "hostname"), Target: "/etc/hostname", ReadOnly: readOnly},
	} {
		if taken[m.Target] {
			continue
		}
		if _, err := os.Stat(m.Source); err == nil {
			all = append(all, m)
		}
	}
	all = append(all, asked...)
	depth := func(p string) int { return strings.Count(path.Clean(p), "/") }
	sort.SliceStable(all, func(i, j int) bool { return depth(all[i].Target) < depth(all[j].Target) })
	return all, nil
}

func (s *server) mount(m *runtimeapi.Mount) (wire.Mount, error) {
	w := wire.Mount{
		Source: m.HostPath, Target: m.ContainerPath,
		ReadOnly: m.Readonly, RecursiveReadOnly: m.RecursiveReadOnly, Options: m.MountOptions,
	}
	if !path.IsAbs(m.ContainerPath) {
		return w, errors.New("the path is not absolute")
	}
	if m.RecursiveReadOnly && (!m.Readonly || m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE) {
		return w, errors.New("recursive read-only needs readOnly: true and no mount propagation")
	}
	if len(m.UidMappings)+len(m.GidMappings) > 0 {
		return w, errors.New("the lab has no id-mapped mounts")
	}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		w.Propagation = wire.PropagationHostToContainer
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		w.Propagation = wire.PropagationBidirectional
	}
	if ref := m.GetImage().GetImage(); ref != "" {
		dir, err := s.imageVolume(ref, m.ImageSubPath)
		if err != nil {
			return w, err
		}
		w.Source, w.ReadOnly = dir, true
		return w, nil
	}
	_, err := os.Stat(m.HostPath)
	if errors.Is(err, os.ErrNotExist) {
		// Pods rely on what all runtimes do: a host path without a type becomes a directory.
		err = os.MkdirAll(m.HostPath, 0o755)
	}
	return w, err
}

// imageVolume returns the directory of an image that is to be mounted as a volume, or of a path in it.
func (s *server) imageVolume(ref, sub string) (string, error) {
	e, ok, err := s.images.Find(ref)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", fmt.Errorf("image %q is not on this node", ref)
	}
	if e.Image.HostPrograms || len(e.Image.Lowers) != 1 {
		return "", fmt.Errorf("image %q can't be a volume: it shows the host's own files", ref)
	}
	dir := e.Image.Lowers[0]
	if sub == "" {
		return dir, nil
	}
	root, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := inroot.Open(root, sub, unix.O_PATH, 0)
	if err != nil {
		return "", fmt.Errorf("path %q of image %q: %w", sub, ref, err)
	}
	defer f.Close()
	// The path with its links resolved inside the image.
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}
