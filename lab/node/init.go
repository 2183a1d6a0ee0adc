// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/weft-net/weft/lab/components"
	"github.com/weft-net/weft/lab/procs"
)

const (
	logSize = 8 << 20 // of each service's log, twice
	path    = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Response answers a Request.
type Response struct {
	Error    string
	Services []procs.ServiceState
}

// machine is the node's init at work.
type machine struct {
	boot     Boot
	table    *procs.Table
	services []*procs.Service
}

// Main is a node's init. It returns when the supervisor is gone or something is badly wrong; the kernel then ends the
// node.
func Main() error {
	link := os.NewFile(linkFD, "link")
	bootFile := os.NewFile(bootFD, "boot")
	syscall.CloseOnExec(linkFD)
	syscall.CloseOnExec(bootFD)
	var boot Boot
	if err := json.NewDecoder(bootFile).Decode(&boot); err != nil {
		return fmt.Errorf("node's init: read descriptor %d: %w (the lab starts this command, people don't)", bootFD, err)
	}
	bootFile.Close()
	if err := enter(boot); err != nil {
		err = fmt.Errorf("node %s: %w", boot.Name, err)
		return errors.Join(err, answer(link, err, nil))
	}
	m := &machine{boot: boot, table: procs.NewTable()}
	m.services = []*procs.Service{m.service(CRI, m.cri), m.service(Kubelet, m.kubelet)}
	if err := answer(link, nil, nil); err != nil {
		return err
	}
	return m.serve(link)
}

func (m *machine) service(name string, spec func() procs.Spec) *procs.Service {
	return m.table.Service(&procs.Service{
		Name:  name,
		Spec:  spec,
		Log:   procs.NewLog(filepath.Join(LogDir, name+".log"), logSize),
		Grace: 5 * time.Second,
	})
}

func (m *machine) cri() procs.Spec {
	return procs.Spec{
		Path: filepath.Join(BinDir, "weft-lab"),
		Args: []string{"weft-lab", "cri", "--node", m.boot.Name,
			"--socket", components.CRISocket, "--root", CRIRoot, "--images", m.boot.ImageDir,
			"--shim", filepath.Join(BinDir, "weft-shim")},
		Env:  append([]string{path, "HOME=/root"}, m.boot.CRIEnv...),
		Dir:  "/",
		Attr: &syscall.SysProcAttr{Setsid: true},
	}
}

func (m *machine) kubelet() procs.Spec {
	return procs.Spec{
		Path: filepath.Join(BinDir, "weft-lab-kube"),
		Args: append([]string{"weft-lab-kube", "kubelet"}, m.boot.Kubelet.Args...),
		Env:  append([]string{path, "HOME=/root"}, m.boot.Kubelet.Env...),
		Dir:  "/",
		Attr: &syscall.SysProcAttr{Setsid: true},
	}
}

func (m *machine) serve(link io.ReadWriter) error {
	in := json.NewDecoder(link)
	for {
		var req Request
		if err := in.Decode(&req); err != nil {
			return nil // the supervisor is gone
		}
		if err := answer(link, m.do(req), m.states()); err != nil {
			return err
		}
	}
}

func (m *machine) do(req Request) error {
	switch req.Op {
	case OpState:
		return nil
	case OpStart:
		for _, s := range m.services {
			if err := s.Start(); err != nil {
				return err
			}
		}
		return nil
	case OpStop:
		return m.stop()
	}
	i := slices.IndexFunc(m.services, func(s *procs.Service) bool { return s.Name == req.Service })
	if i < 0 {
		return fmt.Errorf("a node has no service %q: want %s or %s", req.Service, Kubelet, CRI)
	}
	switch req.Op {
	case OpStartService:
		return m.services[i].Start()
	case OpStopService:
		m.services[i].Stop()
		return nil
	case OpKillService:
		return m.services[i].Kill()
	}
	return fmt.Errorf("unknown request %q", req.Op)
}

func (m *machine) states() []procs.ServiceState {
	var states []procs.ServiceState
	for _, s := range m.services {
		states = append(states, s.State())
	}
	return states
}

// stop is an orderly shutdown: the kubelet first, so that it doesn't restart what ends; then the pods, with their
// time to finish; then the CRI server, and whatever is left.
func (m *machine) stop() error {
	cri, kubelet := m.services[0], m.services[1]
	kubelet.Stop()
	err := stopPods()
	cri.Stop()
	return err
}

// answer tells the supervisor how a request went; its error is that of telling.
func answer(link io.Writer, err error, states []procs.ServiceState) error {
	r := Response{Services: states}
	if err != nil {
		r.Error = err.Error()
	}
	return json.NewEncoder(link).Encode(r)
}
