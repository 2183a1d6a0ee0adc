// SPDX-License-Identifier: Apache-2.0

// Package control is how the commands of `weft lab` find a running lab and talk to it: a unix socket in the abstract
// name space, so no file is left behind when a lab dies, and one JSON object a line over it.
//
// A connection carries one Request, with open files beside it where the operation takes some, and then Messages back
// until one of them is final (an Error or a Result). It imports the standard library and golang.org/x/sys/unix only.
package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Request asks the lab for an operation.
type Request struct {
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`

	// Files came beside the request. The receiver owns them.
	Files []*os.File `json:"-"`
}

// Message is one answer to a Request.
type Message struct {
	Progress string          `json:"progress,omitempty"` // a step that began, for a person
	Data     []byte          `json:"data,omitempty"`     // output
	Error    string          `json:"error,omitempty"`    // final: it failed
	Result   json.RawMessage `json:"result,omitempty"`   // final: it worked
}

// Signal is what a client may send while its operation runs: pass this signal on.
type Signal struct {
	Signal int `json:"signal"`
}

// maxFiles is how many descriptors a request may carry.
const maxFiles = 4

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// CheckName says whether a lab, or a node, may be called this: it becomes a host name and part of link names.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: want 1 to 32 lower-case letters, digits and dashes, starting and ending with a letter or digit", name)
	}
	return nil
}

const prefix = "weft-lab/"

// Address is the socket of the lab that this user calls NAME.
func Address(uid int, name string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@%s%d/%s", prefix, uid, name)}
}

// Listen claims a lab's name.
func Listen(uid int, name string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", Address(uid, name))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("a lab named %q is running already: `weft lab down --name %s` ends it, --name OTHER starts another", name, name)
	}
	return l, err
}

// List names the labs that this user runs.
func List(uid int) ([]string, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	return parse(string(table), uid), nil
}

// parse finds the labs' names in /proc/net/unix. A listening socket and each of its connections have a line each.
func parse(table string, uid int) []string {
	var names []string
	want := fmt.Sprintf("@%s%d/", prefix, uid)
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue
		}
		if name, ok := strings.CutPrefix(fields[7], want); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Authorize lets in the user that the lab belongs to, and root.
func Authorize(c *net.UnixConn, owner int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if int(cred.Uid) != owner && cred.Uid != 0 {
		return fmt.Errorf("user %d may not use a lab of user %d", cred.Uid, owner)
	}
	return nil
}

// Call is a request in progress, seen from the client.
type Call struct {
	conn *net.UnixConn
	in   *bufio.Reader
}

// Do connects to a lab and sends it a request. Where there is no such lab the error says which there are.
func Do(uid int, name, op string, args any, files ...*os.File) (*Call, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, Address(uid, name))
	if err != nil {
		return nil, noSuchLab(uid, name, err)
	}
	line, err := json.Marshal(Request{Op: op, Args: raw})
	if err != nil {
		return nil, err
	}
	if err := sendWithFiles(conn, append(line, '\n'), files); err != nil {
		conn.Close()
		return nil, noSuchLab(uid, name, err)
	}
	return &Call{conn: conn, in: bufio.NewReader(conn)}, nil
}

func noSuchLab(uid int, name string, err error) error {
	// One that is just ending has closed its end already.
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("connect to lab %s: %w", name, err)
	}
	others, listErr := List(uid)
	if listErr != nil || len(others) == 0 {
		return fmt.Errorf("no lab named %q is running: start one with `weft lab up`", name)
	}
	return fmt.Errorf("no lab named %q is running; running: %s: choose with --name or $WEFT_LAB", name, strings.Join(others, ", "))
}

// Next is the next answer; io.EOF after the final one.
func (c *Call) Next() (Message, error) {
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return Message{}, err
	}
	var m Message
	if err := json.Unmarshal(line, &m); err != nil {
		return Message{}, fmt.Errorf("answer of the lab: %w", err)
	}
	return m, nil
}

// Signal passes a signal on to what the call runs.
func (c *Call) Signal(sig syscall.Signal) error {
	return json.NewEncoder(c.conn).Encode(Signal{Signal: int(sig)})
}

// Close ends the call: the lab stops what it does for it.
func (c *Call) Close() error { return c.conn.Close() }

// Result reads answers until the final one and decodes it into result (nil: don't). Progress and data go to the
// functions, where given.
func (c *Call) Result(result any, progress func(string), data func([]byte)) error {
	for {
		m, err := c.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the lab has ended")
			}
			return err
		}
		switch {
		case m.Error != "":
			return errors.New(m.Error)
		case m.Progress != "" && progress != nil:
			progress(m.Progress)
		case m.Data != nil && data != nil:
			data(m.Data)
		case m.Result != nil:
			if result == nil {
				return nil
			}
			return json.Unmarshal(m.Result, result)
		}
	}
}

// Reply answers a request, seen from the lab. Its methods may be called by several goroutines.
type Reply struct {
	conn *net.UnixConn
	in   *bufio.Reader
	mu   sync.Mutex
}

// Receive reads the request off a new connection.
func Receive(conn *net.UnixConn) (Request, *Reply, error) {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return Request{}, nil, err
	}
	files, err := parseFiles(oob[:oobn])
	if err != nil {
		return Request{}, nil, err
	}
	// A long request arrives in pieces; its files came with the first.
	in := bufio.NewReader(io.MultiReader(strings.NewReader(string(buf[:n])), conn))
	line, err := in.ReadBytes('\n')
	req := Request{Files: files}
	if err == nil {
		err = json.Unmarshal(line, &req)
	}
	if err != nil {
		req.CloseFiles()
		return Request{}, nil, err
	}
	return req, &Reply{conn: conn, in: in}, nil
}

// CloseFiles closes the files that came with the request.
func (r Request) CloseFiles() {
	for _, f := range r.Files {
		f.Close()
	}
}

// Progress tells the client of a step.
func (r *Reply) Progress(text string) { r.send(Message{Progress: text}) }

// Data sends output. The error says that the client is gone.
func (r *Reply) Data(b []byte) error { return r.send(Message{Data: b}) }

// End sends the final answer: the error, or else the result.
func (r *Reply) End(result any, err error) {
	defer r.conn.Close()
	if err != nil {
		r.send(Message{Error: err.Error()})
		return
	}
	raw, err := json.Marshal(result)
	if err != nil {
		r.send(Message{Error: err.Error()})
		return
	}
	r.send(Message{Result: raw})
}

func (r *Reply) send(m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err = r.conn.Write(append(line, '\n'))
	return err
}

// Signals yields the signals that the client passes on, until the client is gone.
func (r *Reply) Signals() <-chan syscall.Signal {
	signals := make(chan syscall.Signal)
	go func() {
		defer close(signals)
		dec := json.NewDecoder(r.in)
		for {
			var s Signal
			if dec.Decode(&s) != nil {
				return
			}
			signals <- syscall.Signal(s.Signal)
		}
	}()
	return signals
}

// SendConn passes an accepted connection to another process over a socket pair. The caller still owns conn.
func SendConn(over *net.UnixConn, conn *net.UnixConn) error {
	f, err := conn.File()
	if err != nil {
		return err
	}
	defer f.Close()
	return sendWithFiles(over, []byte{'c'}, []*os.File{f})
}

// ReceiveConn takes a connection that SendConn passed.
func ReceiveConn(over *net.UnixConn) (*net.UnixConn, error) {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*maxFiles))
	_, oobn, _, _, err := over.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	files, err := parseFiles(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, io.EOF
	}
	defer Request{Files: files}.CloseFiles()
	conn, err := net.FileConn(files[0])
	if err != nil {
		return nil, err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("passed descriptor is a %T, not a unix socket", conn)
	}
	return u, nil
}

// Pair is a connected pair of sockets: our end, and the one to hand to a process.
func Pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

func sendWithFiles(conn *net.UnixConn, b []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = conn.Write(b[n:])
	}
	return err
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed-"+strconv.Itoa(fd)))
		}
	}
	return files, nil
}
