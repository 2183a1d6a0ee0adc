// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/lab/topology"
)

func TestOwner(t *testing.T) {
	//  1 supervisor -> 10 apiserver; 20 node1 -> 21 kubelet -> 22; 30 a command
	parents := map[int]int{1: 0, 10: 1, 20: 1, 21: 20, 22: 21, 40: 0}
	owners := map[int]string{1: "supervisor", 10: "kube-apiserver", 20: "node1"}
	for pid, want := range map[int]string{1: "supervisor", 10: "kube-apiserver", 22: "node1", 40: "others"} {
		if got := owner(pid, parents, owners); got != want {
			t.Errorf("owner of %d: got %s, want %s", pid, got, want)
		}
	}
}

func TestMeasuringOneself(t *testing.T) {
	if got := parent(os.Getpid()); got != os.Getppid() {
		t.Errorf("parent: got %d, want %d", got, os.Getppid())
	}
	if got := anonymous(os.Getpid()); got < 1<<20 || got > 1<<32 {
		t.Errorf("memory of this test: %d bytes", got)
	}
	if got := anonymous(-1); got != 0 {
		t.Errorf("memory of nobody: %d", got)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	path := "/nonexistent:" + dir
	if got, err := lookPath("program", "/", path); err != nil || got != program {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := lookPath("./program", dir, ""); err != nil || got != program {
		t.Errorf("got %s, %v", got, err)
	}
	for _, name := range []string{"data", "missing"} {
		if got, err := lookPath(name, "/", path); err == nil {
			t.Errorf("%s was found: %s", name, got)
		}
	}
}

func TestSetenv(t *testing.T) {
	env := []string{"A=1", "B=2", "A=3"}
	got := setenv(env, "A", "4")
	if want := []string{"B=2", "A=4"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if env[0] != "A=1" {
		t.Error("the caller's environment was changed")
	}
	if getenv(got, "A") != "4" || getenv(got, "C") != "" {
		t.Errorf("getenv in %v", got)
	}
}

func TestPoll(t *testing.T) {
	calls := 0
	err := poll(10*time.Second, time.Millisecond, func(context.Context) error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
	reason := errors.New("the reason")
	err = poll(20*time.Millisecond, time.Millisecond, func(ctx context.Context) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return reason
	})
	if !errors.Is(err, reason) {
		t.Errorf("got %v, want what kept it from success", err)
	}
}

func TestBootFile(t *testing.T) {
	want := Config{Name: "x", Nodes: 3, Families: topology.Families{IPv6: true}, Sets: []string{"a=b"}}
	f, err := BootFile(want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got Config
	if err := json.NewDecoder(f).Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestVantage(t *testing.T) {
	l := &lab{plan: topology.Plan{Families: topology.Families{IPv4: true, IPv6: true}, Segments: 1}}
	for _, addr := range []string{"172.30.0.200", "203.0.113.1", "fd00:30::11", "10.244.1.1"} {
		// A pod's address is reached from a node, and this lab has none that runs.
		if got := l.vantage(netip.MustParseAddr(addr)); got != Outside {
			t.Errorf("%s is reached from %s", addr, got)
		}
	}
}

func TestReadiness(t *testing.T) {
	var n apiNode
	if ready, why := n.condition(); ready || why == "" {
		t.Errorf("a node without conditions: %v, %q", ready, why)
	}
	const text = `{"status":{"conditions":[{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":"False","message":"no CNI"}]}}`
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	if ready, why := n.condition(); ready || why != "no CNI" {
		t.Errorf("got %v, %q", ready, why)
	}
	if err := json.Unmarshal([]byte(strings.Replace(text, `"Ready","status":"False"`, `"Ready","status":"True"`, 1)), &n); err != nil {
		t.Fatal(err)
	}
	if ready, _ := n.condition(); !ready {
		t.Error("a ready node is not")
	}
}

func TestCheckInotify(t *testing.T) {
	if err := checkInotify(1_000_000); err == nil || !strings.Contains(err.Error(), "max_user_instances") {
		t.Errorf("a million nodes: %v", err)
	}
}
