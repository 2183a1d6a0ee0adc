// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	logSize     = 8 << 20 // of each component's log, twice
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// programs are the lab's binaries, found beside weft-lab.
var programs = []string{"weft-lab", "weft-lab-kube", "weft-shim", "weft", "weft-cni", "echo"}

// files is where the lab's state lies: a tmpfs that only the lab's mount namespaces have.
type files struct{ dir string }

func (f files) control() string             { return filepath.Join(f.dir, "control") }
func (f files) bin() string                 { return filepath.Join(f.dir, "bin") }
func (f files) program(name string) string  { return filepath.Join(f.dir, "bin", name) }
func (f files) images() string              { return filepath.Join(f.dir, "images") }
func (f files) log(component string) string { return filepath.Join(f.dir, "log", component+".log") }
func (f files) node(name string) string     { return filepath.Join(f.dir, "nodes", name) }
func (f files) resolv() string              { return filepath.Join(f.dir, "resolv.conf") }
func (f files) kubeconfig() string          { return filepath.Join(f.control(), "admin.conf") }

// mountPoints are directories that a Linux system has, and that are usually empty. The state's mount must cover one,
// since making a directory would change the host; one with something in it is used only where there is no other.
var mountPoints = []string{"/srv", "/media", "/mnt", "/opt", "/var/local", "/var/opt"}

func mountPoint() (string, error) {
	fallback := ""
	for _, dir := range mountPoints {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) == 0 {
			return dir, nil
		}
		if info, err := os.Stat(dir); err == nil && info.IsDir() && fallback == "" {
			fallback = dir
		}
	}
	if fallback == "" {
		return "", fmt.Errorf("the lab's file system needs one of %v as its mount point, and this machine has none", mountPoints)
	}
	return fallback, nil
}

// prepareFiles makes the mount namespace that we were started in the lab's own, with the state's tmpfs and the
// lab's programs in it.
func prepareFiles(cfg Config) (files, error) {
	// Mounts that the host unmounts later should not be held by us, and none of ours may reach the host.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return files{}, mountError(cfg, "take mounts apart from the host's", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return files{}, mountError(cfg, "mount /proc", err)
	}
	dir, err := mountPoint()
	if err != nil {
		return files{}, err
	}
	f := files{dir: dir}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return files{}, mountError(cfg, "mount a tmpfs", err)
	}
	for _, sub := range []string{f.control(), f.bin(), f.images(), filepath.Join(dir, "log"), filepath.Join(dir, "nodes")} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return files{}, err
		}
	}
	// What is mounted into the images later shows on every node.
	if err := unix.Mount(f.images(), f.images(), "", unix.MS_BIND, ""); err != nil {
		return files{}, err
	}
	if err := unix.Mount("", f.images(), "", unix.MS_SHARED, ""); err != nil {
		return files{}, err
	}
	for _, name := range programs {
		if err := bindProgram(filepath.Join(cfg.BinDir, name), f.program(name)); err != nil {
			return files{}, err
		}
	}
	return f, os.Symlink("weft-lab-kube", f.program("kubectl"))
}

// bindProgram pins a program: a build that replaces the file doesn't change a lab that runs.
func bindProgram(source, target string) error {
	if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is missing: the lab's programs lie beside weft-lab; `make build` makes them all", source)
	}
	if err := os.WriteFile(target, nil, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	return nil
}

// mountError explains a refusal: with a user namespace it is a security module's or a container's doing.
func mountError(cfg Config, what string, err error) error {
	if cfg.Rootless && errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s: %w: this machine allows user namespaces to ordinary users, but takes away their rights in them. "+
			"`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` allows it where AppArmor is the reason; in a container, start it with more privileges; or run the lab as root", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
