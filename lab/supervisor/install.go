// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/weft-net/weft/lab/procs"
)

// installWeft installs weft from its Helm chart as a person would, and waits until it is ready. The work is done by a
// process of its own, since it takes Kubernetes' libraries and happens once.
func (l *lab) installWeft() error {
	if l.cfg.NoWeft {
		return nil
	}
	l.progress("installing weft from its chart")
	chart, err := l.chart()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		write.Close()
		return err
	}
	defer null.Close()
	args := []string{"weft-lab-kube", "install", "--kubeconfig", l.files.kubeconfig(), "--chart", chart}
	for _, file := range l.cfg.Values {
		args = append(args, "--values", file)
	}
	for _, set := range append(l.chartValues(), l.cfg.Sets...) {
		args = append(args, "--set", set)
	}
	p, err := l.table.Start(procs.Spec{
		Path:   l.files.program("weft-lab-kube"),
		Args:   args,
		Env:    []string{"PATH=" + defaultPath, "HOME=" + l.files.control()},
		Dir:    l.files.control(),
		Files:  []*os.File{null, write, write},
		Attr:   &syscall.SysProcAttr{Setsid: true},
		Inside: l.control.Do,
	})
	write.Close()
	if err != nil {
		return err
	}
	var said []string
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		if step, ok := strings.CutPrefix(lines.Text(), "progress: "); ok {
			l.progress("%s", step)
			continue
		}
		said = append(said, lines.Text())
	}
	if code := p.ExitCode(); code != 0 {
		return fmt.Errorf("install weft (`weft lab up --no-weft` starts a lab without it): %s", strings.Join(said, "\n"))
	}
	return nil
}

// chart is the directory of the chart: the one that was asked for, or else the one that this weft carries.
func (l *lab) chart() (string, error) {
	if l.cfg.Chart != "" {
		return l.cfg.Chart, nil
	}
	dir := filepath.Join(l.files.dir, "chart")
	log, err := os.Create(l.files.log("chart"))
	if err != nil {
		return "", err
	}
	defer log.Close()
	p, err := l.table.Start(procs.Spec{
		Path: l.files.program("weft"), Args: []string{"weft", "chart", dir}, Dir: "/", Files: []*os.File{nil, log, log},
	})
	if err != nil {
		return "", err
	}
	if code := p.ExitCode(); code != 0 {
		return "", fmt.Errorf("weft chart: exit status %d: %s", code, procs.Tail(log.Name(), 2000))
	}
	return dir, nil
}

// chartValues are the chart's values that follow from what a lab is.
func (l *lab) chartValues() []string {
	var dns []string
	for _, addr := range l.plan.ServiceIP(10) {
		dns = append(dns, addr.String())
	}
	return []string{
		"apiServer=" + l.cluster.Server(),
		"dns.service.clusterIPs={" + strings.Join(dns, ",") + "}",
	}
}
