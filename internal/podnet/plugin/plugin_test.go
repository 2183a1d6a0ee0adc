// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func env(kv ...string) func(string) string {
	return func(k string) string {
		for _, e := range kv {
			if v, ok := strings.CutPrefix(e, k+"="); ok {
				return v
			}
		}
		return ""
	}
}

func TestReadRequest(t *testing.T) {
	const conf = `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni"}`
	add := []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/n"}
	for _, c := range []struct {
		name  string
		env   []string
		stdin string
		code  uint // 0: fine
	}{
		{"ADD", add, conf, 0},
		{"ADD with no version means 0.2.0", add, `{"name":"weft"}`, 0},
		{"DEL needs no namespace", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0"}, conf, 0},
		{"GC needs no container", []string{"CNI_COMMAND=GC"}, conf, 0},
		{"STATUS needs no container", []string{"CNI_COMMAND=STATUS"}, conf, 0},
		{"VERSION needs nothing", []string{"CNI_COMMAND=VERSION"}, "", 0},
		{"no command", nil, conf, CodeInvalidEnvironment},
		{"unknown command", []string{"CNI_COMMAND=add"}, conf, CodeInvalidEnvironment},
		{"no namespace", add[:3], conf, CodeInvalidEnvironment},
		{"no container", append([]string{"CNI_CONTAINERID="}, add...), conf, CodeInvalidEnvironment},
		{"a container id that is a path", append([]string{"CNI_CONTAINERID=../x"}, add...), conf, CodeInvalidEnvironment},
		{"an interface name that is too long", append([]string{"CNI_IFNAME=0123456789abcdef"}, add...), conf, CodeInvalidEnvironment},
		{"an interface name that is a path", append([]string{"CNI_IFNAME=a/b"}, add...), conf, CodeInvalidEnvironment},
		{"no JSON", add, `{`, CodeDecodingFailure},
		{"a list", add, `[]`, CodeDecodingFailure},
		{"a version that is none", add, `{"cniVersion":"2.0.0","name":"weft"}`, CodeIncompatibleVersion},
		{"no name", add, `{"cniVersion":"1.1.0"}`, CodeInvalidConfig},
		{"a name with a blank", add, `{"cniVersion":"1.1.0","name":"a b"}`, CodeInvalidConfig},
		{"a socket that is relative", add, `{"cniVersion":"1.1.0","name":"weft","socket":"x"}`, CodeInvalidConfig},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, conf, err := ReadRequest(env(c.env...), []byte(c.stdin))
			var e *Error
			switch {
			case c.code == 0 && (err != nil || r == nil || conf == nil):
				t.Errorf("%v, %v, %v", r, conf, err)
			case c.code != 0 && (!errors.As(err, &e) || e.Code != c.code):
				t.Errorf("error %v, want code %d", err, c.code)
			}
		})
	}
}

// agent answers every request with fn's response; nil drops the connection.
func agent(t *testing.T, fn func(*Request) *Response) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	listen(t, socket, fn)
	return socket
}

func listen(t *testing.T, socket string, fn func(*Request) *Response) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, err := io.ReadAll(c)
			var r Request
			if err == nil {
				err = json.Unmarshal(b, &r)
			}
			if err != nil {
				t.Errorf("request %q: %v", b, err)
			}
			if resp := fn(&r); resp != nil {
				out, _ := json.Marshal(resp)
				_, _ = c.Write(out)
			}
			c.Close()
		}
	}()
}

// run runs the plugin against an agent.
func run(socket string, patience time.Duration, kv ...string) (out string, status int) {
	var b bytes.Buffer
	p := runner{getenv: env(append(kv, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/dev/null")...), patience: patience, patienceStatus: patience, patienceDel: patience}
	status = p.run(strings.NewReader(`{"cniVersion":"1.0.0","name":"weft","socket":"`+socket+`"}`), &b)
	return b.String(), status
}

func TestRun(t *testing.T) {
	socket := agent(t, func(r *Request) *Response {
		switch r.Command {
		case "ADD":
			return &Response{Result: []byte(`{"ips":[]}`)}
		case "CHECK":
			return &Response{Error: Errorf(CodeCheckFailed, "no link")}
		}
		return &Response{}
	})
	for _, c := range []struct {
		command, out string
		status       int
	}{
		{"ADD", `{"ips":[]}` + "\n", 0},
		{"DEL", "", 0},
		{"STATUS", "", 0},
		{"CHECK", `{"cniVersion":"1.0.0","code":101,"msg":"no link"}` + "\n", 1},
		{"VERSION", `{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n", 0},
	} {
		if out, status := run(socket, 0, "CNI_COMMAND="+c.command); out != c.out || status != c.status {
			t.Errorf("%s: %q, status %d, want %q, %d", c.command, out, status, c.out, c.status)
		}
	}
}

// TestAgentComesBack asks while there is no agent, one that goes away, and one that answers.
func TestAgentComesBack(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	for command, code := range map[string]string{"STATUS": `"code":50`, "ADD": `"code":11`, "CHECK": `"code":11`} {
		if out, status := run(socket, 0, "CNI_COMMAND="+command); status != 1 || !strings.Contains(out, code) || !strings.Contains(out, "weft-node") {
			t.Errorf("%s without an agent: %q, %d", command, out, status)
		}
	}
	for _, command := range []string{"ADD", "STATUS"} {
		t.Run(command, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "cni.sock")
			asked := make(chan struct{}, 1)
			n := 0
			go func() {
				time.Sleep(3 * redial)
				listen(t, socket, func(*Request) *Response {
					if n++; n == 1 {
						asked <- struct{}{}
						return nil // killed in the middle
					}
					return &Response{Result: []byte(`{}`)}
				})
			}()
			if out, status := run(socket, time.Minute, "CNI_COMMAND="+command); status != 0 || out != "{}\n" {
				t.Errorf("%q, %d", out, status)
			}
			<-asked
		})
	}
}

// TestPostpone deletes without an agent.
func TestPostpone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	if out, status := run(socket, 0, "CNI_COMMAND=DEL"); status != 0 || out != "" {
		t.Errorf("DEL without weft: %q, %d", out, status)
	}
	if err := os.Mkdir(PendingDir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, status := run(socket, 0, "CNI_COMMAND=DEL"); status != 0 || out != "" {
			t.Errorf("DEL without an agent: %q, %d", out, status)
		}
	}
	files, err := filepath.Glob(PendingDir(socket) + "/*")
	if err != nil || len(files) != 2 {
		t.Fatalf("noted: %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil || string(b) != `{"containerID":"c1","ifname":"eth0"}` {
		t.Errorf("noted: %s, %v", b, err)
	}
}

func TestInvoked(t *testing.T) {
	for arg0, want := range map[string]bool{"/opt/cni/bin/weft-cni": true, "weft-cni": true, "/usr/bin/weft": false, "": false} {
		if Invoked(arg0) != want {
			t.Errorf("%q: %v", arg0, !want)
		}
	}
}

// FuzzReadRequest feeds the plugin any standard input and environment: it never panics, and whatever it lets through
// keeps the promises that the agent relies on.
func FuzzReadRequest(f *testing.F) {
	f.Add("ADD", "c1", "eth0", "/n", "K8S_POD_NAME=p", []byte(`{"cniVersion":"1.1.0","name":"weft","type":"weft-cni","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]}}`))
	f.Add("GC", "", "", "", "", []byte(`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`))
	f.Add("VERSION", "", "", "", "", []byte(``))
	f.Add("DEL", "c", "eth0", "", "", []byte(`{"name":"weft","socket":"/x"}`))
	f.Fuzz(func(t *testing.T, command, id, ifName, netns, args string, stdin []byte) {
		r, c, err := ReadRequest(env("CNI_COMMAND="+command, "CNI_CONTAINERID="+id, "CNI_IFNAME="+ifName, "CNI_NETNS="+netns, "CNI_ARGS="+args), stdin)
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Code == 0 || e.Msg == "" {
				t.Fatalf("error %#v", err)
			}
			return
		}
		if !filepath.IsAbs(c.Socket) || r.Command != command {
			t.Fatalf("socket %q, command %q", c.Socket, r.Command)
		}
		if command == "ADD" && (r.NetNS == "" || strings.ContainsAny(r.ContainerID, "/ ") || len(r.IfName) > 15) {
			t.Fatalf("let through %+v", r)
		}
		msg, err := json.Marshal(r)
		if command == "VERSION" {
			return
		}
		var back Request
		if err != nil || json.Unmarshal(msg, &back) != nil {
			t.Fatalf("not to be sent: %v", err)
		}
		if _, err := ParseConfig(back.Config); err != nil {
			t.Fatalf("the agent can't read what the plugin could: %v", err)
		}
	})
}
