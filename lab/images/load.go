// SPDX-License-Identifier: Apache-2.0

package images

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// defaultPath is the PATH of a container whose image says nothing.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// caBundles are the places where a host keeps its certificate authorities in one file.
var caBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/cert.pem",
	"/etc/ssl/ca-bundle.pem",
}

// LoadBinary registers under ref an image that holds a static program, as /<its name>, which is the entrypoint. Beside
// it are a minimal /etc and /tmp, and further static programs, if any.
func (s *Store) LoadBinary(ref string, origin Origin, path string, beside ...string) (Image, error) {
	pattern, err := ParsePattern(ref)
	if err != nil {
		return Image{}, err
	}
	programs := append([]string{path}, beside...)
	img := Image{
		Created: time.Now().UTC(),
		Config:  Config{Entrypoint: []string{"/" + filepath.Base(path)}, Env: []string{defaultPath + ":/"}, WorkingDir: "/"},
	}
	var sums []string
	for _, p := range programs {
		if err := checkStatic(p); err != nil {
			return Image{}, err
		}
		sum, size, err := hashFile(p)
		if err != nil {
			return Image{}, fmt.Errorf("load image %s: %w", pattern, err)
		}
		img.Size += size
		sums = append(sums, sum)
	}
	img.ID = contentID(img.Config, strings.Join(sums, " "))
	err = s.add(pattern, origin, &img, func(dir string) error {
		if err := baseFiles(dir); err != nil {
			return err
		}
		for _, p := range programs {
			if err := copyFile(p, filepath.Join(dir, filepath.Base(p)), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("load image %s: %w", pattern, err)
	}
	return img, nil
}

// LoadRootfs registers under ref an image whose files are those of dir, in place: nothing is copied, and the
// directory must not change while containers of the image run. Its command is a shell, if it has one.
func (s *Store) LoadRootfs(ref string, origin Origin, dir string) (Image, error) {
	pattern, err := ParsePattern(ref)
	if err != nil {
		return Image{}, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return Image{}, err
	}
	if info, err := os.Stat(dir); err != nil {
		return Image{}, fmt.Errorf("load image %s: %w", pattern, err)
	} else if !info.IsDir() {
		return Image{}, fmt.Errorf("load image %s: %s is not a directory", pattern, dir)
	}
	img := Image{
		Lowers:  []string{dir},
		Size:    treeSize(dir),
		Created: time.Now().UTC(),
		Config:  Config{Env: []string{defaultPath}, WorkingDir: "/"},
	}
	if _, err := os.Lstat(filepath.Join(dir, "bin/sh")); err == nil {
		img.Config.Cmd = []string{"/bin/sh"}
	}
	img.ID = contentID(img.Config, fmt.Sprintf("%s %d", dir, img.Created.UnixNano()))
	done, err := s.register(pattern, origin, img)
	if err == nil && !done {
		err = fmt.Errorf("load image %s: %s is gone", pattern, dir)
	}
	return img, err
}

// contentID is the ID of an image that has no config of its own: the digest of one that could describe it.
func contentID(c Config, content string) string {
	body, _ := json.Marshal(struct {
		OS, Architecture, Content string
		Config                    Config
	}{"linux", runtime.GOARCH, content, c})
	sum := sha256.Sum256(body)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// checkStatic refuses what would fail in an empty root with nothing better than "no such file or directory".
func checkStatic(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load binary: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("load binary: %s is not a file", path)
	}
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("load binary: %s is not a Linux program: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("load binary: %s is dynamically linked and its image would lack the libraries: "+
				"build it static (Go: CGO_ENABLED=0), or load a root file system with --rootfs DIR", path)
		}
	}
	return nil
}

func hashFile(path string) (sum string, size uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return filepath.Base(path) + " " + hex.EncodeToString(h.Sum(nil)), uint64(n), err
}

// baseFiles makes what most programs expect of a root file system.
func baseFiles(dir string) error {
	for _, d := range []string{"dev", "etc/ssl/certs", "home", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/log", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(dir, d), 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", filepath.Join(dir, "var/run")); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\n" +
			"nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n" +
			"nonroot:x:65532:65532:nonroot:/home:/sbin/nologin\n",
		"etc/group":         "root:x:0:\ntty:x:5:\nnobody:x:65534:\nnonroot:x:65532:\n",
		"etc/nsswitch.conf": "hosts: files dns\n",
		"etc/os-release":    "ID=weft-lab\nNAME=\"weft lab\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, bundle := range caBundles {
		if _, err := os.Stat(bundle); err == nil {
			return copyFile(bundle, filepath.Join(dir, caBundles[0]), 0o644)
		}
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	if err := out.Chmod(mode); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// treeSize adds up the files below dir, as far as they can be read.
func treeSize(dir string) uint64 {
	var size uint64
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			size += uint64(info.Size())
		}
		return nil
	})
	return size
}

// hostPrograms are the top-level directories of the host that the tools image shows.
var hostPrograms = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "nix", "gnu"}

// hostSettings are what the tools image shows of the host's /etc: what programs need, nothing that is secret.
var hostSettings = []string{
	"alternatives", "bash.bashrc", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version",
	"gai.conf", "host.conf", "inputrc", "iproute2", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
	"magic", "mime.types", "nsswitch.conf", "os-release", "pki/ca-trust", "pki/tls/certs", "profile", "profile.d",
	"protocols", "rpc", "services", "shells", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
}

// LoadTools registers under ref an image whose programs are the host's own: its directories of programs, copy on
// write, and a few files of its /etc. Nothing else of the host's is visible.
func (s *Store) LoadTools(ref string, origin Origin) (Image, error) {
	pattern, err := ParsePattern(ref)
	if err != nil {
		return Image{}, err
	}
	img := Image{
		HostPrograms: true,
		Created:      time.Now().UTC(),
		Config:       Config{Cmd: []string{"/bin/sh"}, Env: []string{defaultPath}, WorkingDir: "/"},
	}
	img.ID = contentID(img.Config, "the host's own programs")
	if err := s.add(pattern, origin, &img, hostFiles); err != nil {
		return Image{}, fmt.Errorf("load image %s: %w", pattern, err)
	}
	return img, nil
}

// hostFiles fills the root of the tools image: what is not one of HostDirs.
func hostFiles(dir string) error {
	if err := baseFiles(dir); err != nil {
		return err
	}
	for _, p := range hostPrograms {
		// On most hosts /bin and its like are links to what is below /usr.
		if link, err := os.Readlink("/" + p); err == nil {
			if err := os.Symlink(link, filepath.Join(dir, p)); err != nil {
				return err
			}
		}
	}
	for _, name := range hostSettings {
		if err := copyTree(filepath.Join("/etc", name), filepath.Join(dir, "etc", name)); err != nil {
			return err
		}
	}
	return nil
}

// HostDirs lists the directories of this host that the tools image shows.
func HostDirs() []string {
	var dirs []string
	for _, p := range hostPrograms {
		if info, err := os.Lstat("/" + p); err == nil && info.IsDir() {
			dirs = append(dirs, "/"+p)
		}
	}
	return dirs
}

// copyTree copies a file or directory with its links, as far as it is there and readable.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(target, info.Mode().Perm())
		case info.Mode()&os.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return nil
			}
			if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
				return err
			}
			return os.Symlink(link, target)
		case info.Mode().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return nil // not readable for whom the lab runs as, so not for a container either
			}
			f.Close()
			return copyFile(path, target, info.Mode().Perm())
		}
		return nil
	})
}
