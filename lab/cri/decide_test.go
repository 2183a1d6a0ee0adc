// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/images"
)

func TestSysctlNames(t *testing.T) {
	for name, want := range map[string][2]string{ // path and scope
		"net.ipv4.ip_forward":            {"/proc/sys/net/ipv4/ip_forward", "network"},
		"net/ipv4/conf/eth0.1/rp_filter": {"/proc/sys/net/ipv4/conf/eth0.1/rp_filter", "network"},
		"net.ipv4.conf.eth0/1.rp_filter": {"/proc/sys/net/ipv4/conf/eth0.1/rp_filter", "network"},
		"kernel.shmmax":                  {"/proc/sys/kernel/shmmax", "ipc"},
		"fs.mqueue.msg_max":              {"/proc/sys/fs/mqueue/msg_max", "ipc"},
		"kernel.sem":                     {"/proc/sys/kernel/sem", "ipc"},
		"vm.swappiness":                  {"/proc/sys/vm/swappiness", ""},
		"/../../etc/passwd":              {"/proc/sys/etc/passwd", ""},
	} {
		if got := sysctlPath(name); got != want[0] {
			t.Errorf("%s: path %s, want %s", name, got, want[0])
		}
		if got := sysctlScope(name); got != want[1] {
			t.Errorf("%s: scope %q, want %q", name, got, want[1])
		}
	}
}

func TestSignals(t *testing.T) {
	for name, want := range map[string]int{
		"SIGTERM": 15, "TERM": 15, "quit": 3, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "SIGRTMINPLUS3": 37, "SIGRTMAX": 64,
		"SIGRTMAX-1": 63, "SIGRTMAXMINUS14": 50, "SIGCLD": 17,
	} {
		if got, err := signalNumber(name); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"", "0", "65", "-1", "SIGNONE", "SIGRTMIN+99", "SIGRTMINX"} {
		if got, err := signalNumber(name); err == nil {
			t.Errorf("%q was taken for %d", name, got)
		}
	}
	// Every signal of the CRI is known, and named again by its number.
	for value, name := range runtimeapi.Signal_name {
		if value == 0 {
			continue
		}
		n, err := signalNumber(strings.TrimPrefix(name, "SIGNAL_"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		back, err := signalNumber(strings.TrimPrefix(signalOfNumber(n).String(), "SIGNAL_"))
		if err != nil || back != n {
			t.Errorf("%s is %d, which is named %s", name, n, signalOfNumber(n))
		}
	}
	if got, err := stopSignal(&runtimeapi.ContainerConfig{StopSignal: runtimeapi.Signal_SIGNAL_SIGINT}, "SIGQUIT"); got != 2 || err != nil {
		t.Errorf("the pod's: %d, %v", got, err)
	}
	if got, err := stopSignal(&runtimeapi.ContainerConfig{}, "SIGQUIT"); got != 3 || err != nil {
		t.Errorf("the image's: %d, %v", got, err)
	}
	if got, err := stopSignal(&runtimeapi.ContainerConfig{}, ""); got != 15 || err != nil {
		t.Errorf("the default: %d, %v", got, err)
	}
}

func TestResolveUser(t *testing.T) {
	top, bottom := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(bottom, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\n# comment:x:1:1::/:\nweb:x:33:34:www:/var/www:/bin/sh\nbroken\nbad:x:no:1::/:\n"
	groups := "root:x:0:\nweb:x:34:\nlog:x:50:web,other\ndata:x:60:other\n"
	for name, body := range map[string]string{"etc/passwd": passwd, "etc/group": groups} {
		if err := os.WriteFile(filepath.Join(bottom, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a, err := readAccounts([]string{top, bottom})
	if err != nil {
		t.Fatal(err)
	}
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	for _, tc := range []struct {
		name     string
		sc       *sc
		image    string
		uid, gid uint32
		groups   []uint32
		home     string
	}{
		{"nobody says", nil, "", 0, 0, []uint32{0}, "/root"},
		{"the image by name", nil, "web", 33, 34, []uint32{34, 50}, "/var/www"},
		{"the image by number", nil, "33", 33, 34, []uint32{34, 50}, "/var/www"},
		{"the image with a group", nil, "web:data", 33, 60, []uint32{60, 50}, "/var/www"},
		{"an unknown number", nil, "7:8", 7, 8, []uint32{8}, "/"},
		{"the pod's user", &sc{RunAsUser: id(33)}, "root:data", 33, 34, []uint32{34, 50}, "/var/www"},
		{"the pod's group for the image's user", &sc{RunAsGroup: id(9)}, "web", 33, 9, []uint32{9, 50}, "/var/www"},
		{"supplementary groups", &sc{RunAsUser: id(33), SupplementalGroups: []int64{50, 70}}, "", 33, 34, []uint32{34, 50, 70}, "/var/www"},
		{"strict", &sc{RunAsUser: id(33), SupplementalGroups: []int64{70}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict},
			"", 33, 34, []uint32{34, 70}, "/var/www"},
	} {
		u, home, err := resolveUser(tc.sc, tc.image, a)
		if err != nil || u.UID != tc.uid || u.GID != tc.gid || !slices.Equal(u.Groups, tc.groups) || home != tc.home {
			t.Errorf("%s: %+v, %s, %v", tc.name, u, home, err)
		}
	}
	for image, want := range map[string]string{"nemo": "runAsUser", "web:nemo": "runAsGroup"} {
		if _, _, err := resolveUser(nil, image, a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestCommandLine(t *testing.T) {
	img := images.Config{Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"default"}}
	for _, tc := range []struct{ command, args, want []string }{
		{nil, nil, []string{"/entry", "-x", "default"}},
		{nil, []string{"a"}, []string{"/entry", "-x", "a"}},
		{[]string{"c"}, nil, []string{"c"}},
		{[]string{"c"}, []string{"a"}, []string{"c", "a"}},
	} {
		if got := commandLine(&runtimeapi.ContainerConfig{Command: tc.command, Args: tc.args}, img); !slices.Equal(got, tc.want) {
			t.Errorf("%v %v: %v, want %v", tc.command, tc.args, got, tc.want)
		}
	}
}

func TestSingleCNIConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := &network{confDir: dir}
	if _, err := n.config(); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("an empty directory: %v", err)
	}
	write("20-broken.conf", `{"name":"x"`)
	if _, err := n.config(); err == nil || !strings.Contains(err.Error(), "20-broken.conf") {
		t.Errorf("a broken file: %v", err)
	}
	write("30-one.conf", `{"cniVersion":"1.1.0","name":"one","type":"bridge","bridge":"br0"}`)
	list, err := n.config()
	if err != nil || list.Name != "one" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "bridge" ||
		!strings.Contains(string(list.Plugins[0].Bytes), "br0") {
		t.Errorf("a single plugin: %+v, %v", list, err)
	}
	write("10-list.conflist", `{"cniVersion":"1.1.0","name":"list","plugins":[{"type":"a"},{"type":"b"}]}`)
	if list, err := n.config(); err != nil || list.Name != "list" || len(list.Plugins) != 2 {
		t.Errorf("a list that comes first: %+v, %v", list, err)
	}
	write("05-list.conf", `{"cniVersion":"1.1.0","name":"list","plugins":[{"type":"a"}]}`)
	if list, err := n.config(); err != nil || list.Name != "list" || len(list.Plugins) != 2 {
		t.Errorf("a list named .conf is passed over: %+v, %v", list, err)
	}
}

func TestResolvConf(t *testing.T) {
	got := string(resolvConf(&runtimeapi.DNSConfig{
		Servers: []string{"10.96.0.10", "fd00::a"}, Searches: []string{"a.svc", "svc"}, Options: []string{"ndots:5", "edns0"},
	}))
	if want := "search a.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
