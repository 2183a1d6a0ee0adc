// SPDX-License-Identifier: Apache-2.0

// Command weft-lab-kube is the unmodified Kubernetes that a lab runs, as one binary: each component is started as
// `weft-lab-kube NAME --its-own-flags`, or through a link of that name. It is a binary of its own so that the lab's
// own processes (the supervisor, the nodes' init, the CRI servers) don't carry Kubernetes in their memory.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // what kubectl brings for other clusters' kubeconfigs
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components are the cobra commands of Kubernetes, by the name that upstream gives their binaries.
var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

// programs are the others, which parse their arguments themselves. They return the process's exit status.
var programs = map[string]func() int{
	"etcd":    runEtcd,
	"install": runInstall,
	"kubectl": runKubectl,
}

func main() {
	name := filepath.Base(os.Args[0])
	if !known(name) && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = slices.Delete(os.Args, 1, 2)
	}
	if program, ok := programs[name]; ok {
		os.Exit(program())
	}
	component, ok := components[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "weft-lab-kube: unknown component %q: want one of %s\n", name, strings.Join(names(), ", "))
		os.Exit(2)
	}
	os.Exit(cli.Run(component()))
}

func known(name string) bool { return components[name] != nil || programs[name] != nil }

func names() []string {
	var all []string
	for name := range components {
		all = append(all, name)
	}
	for name := range programs {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// runInstall installs weft's chart.
func runInstall() int {
	if err := newInstallCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// runKubectl is upstream's kubectl: its main, but for the name.
func runKubectl() int {
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, "kubectl: -v:", err)
		return 2
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // exits with kubectl's own status and words
	}
	return 0
}
