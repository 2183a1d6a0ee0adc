// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "node1": true, "my-lab": true, strings.Repeat("x", 32): true,
		"": false, "-a": false, "a-": false, "A": false, "a/b": false, "a b": false, strings.Repeat("x", 33): false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

func TestParse(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 18001 @weft-lab/1000/two
0000000000000000: 00000003 00000000 00000000 0001 03 18003 @weft-lab/1000/two
0000000000000000: 00000002 00000000 00010000 0001 01 18002 @weft-lab/1000/one
0000000000000000: 00000002 00000000 00010000 0001 01 18004 @weft-lab/100/other
0000000000000000: 00000002 00000000 00010000 0001 01 18005 /run/weft-lab/1000/file
0000000000000000: 00000002 00000000 00000000 0002 01 18006
`
	if got, want := parse(table, 1000), []string{"one", "two"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// serve claims a name of this test's own and answers one request with f.
func serve(t *testing.T, f func(Request, *Reply)) (uid int, name string) {
	t.Helper()
	uid, name = os.Getuid(), fmt.Sprintf("test-%d", os.Getpid())
	l, err := Listen(uid, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		req, reply, err := Receive(conn)
		if err != nil {
			t.Error(err)
			return
		}
		defer req.CloseFiles()
		f(req, reply)
	}()
	return uid, name
}

func TestCall(t *testing.T) {
	long := strings.Repeat("long ", 50_000) // arrives in several pieces
	uid, name := serve(t, func(req Request, reply *Reply) {
		var text string
		if err := json.Unmarshal(req.Args, &text); err != nil || text != long || req.Op != "test" {
			t.Errorf("request %s with %d bytes, %v", req.Op, len(text), err)
		}
		io.WriteString(req.Files[0], "through a passed file")
		reply.Progress("half way")
		reply.Data([]byte("some data"))
		if sig := <-reply.Signals(); sig != syscall.SIGHUP {
			t.Errorf("signal %v", sig)
		}
		reply.End(42, nil)
	})
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	call, err := Do(uid, name, "test", long, write)
	if err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	write.Close()
	if err := call.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	var result int
	var steps, data []string
	err = call.Result(&result, func(s string) { steps = append(steps, s) }, func(b []byte) { data = append(data, string(b)) })
	if err != nil || result != 42 || !reflect.DeepEqual(steps, []string{"half way"}) || !reflect.DeepEqual(data, []string{"some data"}) {
		t.Errorf("result %d, steps %q, data %q, %v", result, steps, data, err)
	}
	if got, err := io.ReadAll(read); err != nil || string(got) != "through a passed file" {
		t.Errorf("passed file: %q, %v", got, err)
	}
}

func TestCallFails(t *testing.T) {
	uid, name := serve(t, func(_ Request, reply *Reply) { reply.End(nil, io.ErrUnexpectedEOF) })
	if names, err := List(uid); err != nil || !strings.Contains(strings.Join(names, " "), name) {
		t.Errorf("list: %v, %v", names, err)
	}
	if _, err := Listen(uid, name); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second lab of the name: %v", err)
	}
	call, err := Do(uid, name, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer call.Close()
	if err := call.Result(nil, nil, nil); err == nil || err.Error() != io.ErrUnexpectedEOF.Error() {
		t.Errorf("got %v", err)
	}
}

func TestNoSuchLab(t *testing.T) {
	if _, err := Do(os.Getuid(), "nothing-here", "test", nil); err == nil || !strings.Contains(err.Error(), "no lab named") {
		t.Errorf("got %v", err)
	}
}

func TestPassedConnection(t *testing.T) {
	ours, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	a, bFile, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := net.FileConn(bFile)
	bFile.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := SendConn(ours, b.(*net.UnixConn)); err != nil {
		t.Fatal(err)
	}
	b.Close()
	passed, err := ReceiveConn(theirs.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := passed.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	passed.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	ours.Close()
	if _, err := ReceiveConn(theirs.(*net.UnixConn)); err == nil {
		t.Error("no error when the other end is gone")
	}
}

func TestAuthorize(t *testing.T) {
	a, file, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer file.Close()
	if err := Authorize(a, os.Getuid()); err != nil {
		t.Errorf("the owner: %v", err)
	}
	err = Authorize(a, os.Getuid()+1)
	if isRoot := os.Getuid() == 0; (err == nil) != isRoot {
		t.Errorf("another user (root: %v): %v", isRoot, err)
	}
}
