// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	b, err := os.ReadFile(i.Plugin)
	if err != nil {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	return i.put(filepath.Join(i.BinDir, pluginName), b, 0o755)
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
	return i.put(filepath.Join(i.ConfDir, confName), b, 0o644)
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

func (i Install) put(path string, b []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm() == mode {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	if err := writeFile(path, b, mode); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	return nil
}

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
