// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weft-net/weft/internal/podnet/plugin"
)

// Defaults of Install.
const (
	DefaultConfDir = "/etc/cni/net.d"
	DefaultBinDir  = "/opt/cni/bin"
)

// Names of what is installed. Runtimes take the configuration whose name sorts first.
const (
	confName   = "10-weft.conflist"
	pluginName = "weft-cni"
)

// Install puts the CNI plugin and its configuration where the container runtime looks for them.
type Install struct {
	ConfDir string // default DefaultConfDir
	BinDir  string // default DefaultBinDir
	Socket  string // default plugin.DefaultSocket

	// Plugin is the file to install. Default: weft-cni beside this process's own executable, else that itself, which
	// does the same under the plugin's name.
	Plugin string
}

func (i Install) withDefaults() (Install, error) {
	for _, d := range []struct {
		field *string
		value string
	}{{&i.ConfDir, DefaultConfDir}, {&i.BinDir, DefaultBinDir}, {&i.Socket, plugin.DefaultSocket}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if i.Plugin != "" {
		return i, nil
	}
	self, err := os.Executable()
	if err != nil {
		return i, fmt.Errorf("CNI plugin: %w", err)
	}
	i.Plugin = self
	if small := filepath.Join(filepath.Dir(self), pluginName); isFile(small) {
		i.Plugin = small
	}
	return i, nil
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// InstallPlugin copies the plugin, unless it is there already. It never leaves half a file under the name that a
// runtime may execute at any moment.
func (i Install) InstallPlugin() error {
	i, err := i.withDefaults()
	if err != nil {
		return err
	}
	f, err := os.Open(i.Plugin)
	if err != nil {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	defer func() { _ = f.Close() }()
	return put(filepath.Join(i.BinDir, pluginName), f, 0o755)
}

// InstallConfig writes the network configuration, which is what makes the runtime, and then kubelet, call the node's
// network ready: call it when ADD can be served.
func (i Install) InstallConfig() error {
	i, err := i.withDefaults()
	if err != nil {
		return err
	}
	b, err := i.config()
	if err != nil {
		return err
	}
	return put(filepath.Join(i.ConfDir, confName), bytes.NewReader(b), 0o644)
}

func (i Install) config() ([]byte, error) {
	b, err := json.MarshalIndent(map[string]any{
		// A runtime that knows 1.1 picks it from the list (CNI spec 1.1, section 1); an older one reads cniVersion.
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"1.0.0", "1.1.0"},
		"name":        "weft",
		"plugins": []any{map[string]any{
			"type":         pluginName,
			"socket":       i.Socket,
			"capabilities": map[string]bool{"portMappings": true},
		}},
	}, "", "  ")
	return append(b, '\n'), err
}

// put writes a file unless it is there already. It never has the whole of it in memory: the plugin may be this very
// program.
func put(path string, from io.ReadSeeker, mode fs.FileMode) error {
	if old, err := os.Open(path); err == nil {
		st, err := old.Stat()
		is := err == nil && st.Mode().Perm() == mode && sameContent(old, from)
		_ = old.Close()
		if is {
			return nil
		}
		if _, err := from.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("CNI: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	if err := copyFile(path, from, mode); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	return nil
}

// sameContent tells whether both read to the same end.
func sameContent(a, b io.Reader) bool {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if err != nil || err2 != nil {
			return ended(err) && ended(err2)
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// Remove takes both away again, the configuration first.
func (i Install) Remove() error {
	i, err := i.withDefaults()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range []string{filepath.Join(i.ConfDir, confName), filepath.Join(i.BinDir, pluginName)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("CNI: %w", err))
		}
	}
	return errors.Join(errs...)
}
