// SPDX-License-Identifier: Apache-2.0

// Package wire is what the lab's CRI server and a pod's shim say to each other: the values they leave for one
// another on disk and the messages on the shim's unix socket.
//
// The shim outlives the server, so everything the server must find again after being killed is either a file that
// the shim wrote (Status) or an answer on the socket. It imports the standard library only: the shim has to stay
// small and start in milliseconds.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Names of the files inside a sandbox's and a container's directory.
const (
	SocketName = "shim.sock"   // in a sandbox's directory: the shim listens here
	SpecName   = "spec.json"   // in a container's directory: a Container, written by the server before Start
	StatusName = "status.json" // in a container's directory: a Status, written by the shim
)

// PIDMode says which PID namespace a container's first process joins.
type PIDMode string

const (
	PIDPrivate PIDMode = "private" // a new one; the container's process is its PID 1
	PIDPod     PIDMode = "pod"     // the pod's, whose PID 1 is the shim's pause process
	PIDNode    PIDMode = "node"    // the node's, which is the shim's own
	PIDTarget  PIDMode = "target"  // that of another container of the pod (ephemeral debug containers)
)

// Propagation of a bind mount, as in the CRI's MountPropagation.
type Propagation int

const (
	PropagationPrivate Propagation = iota
	PropagationHostToContainer
	PropagationBidirectional
)

// Mount is one bind mount of the node's file system into a container.
type Mount struct {
	Source, Target    string
	ReadOnly          bool
	RecursiveReadOnly bool
	Propagation       Propagation
	Options           []string // noexec, nosuid, nodev
}

// User is the identity of a process.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Caps are capability sets as bit masks, bit N being capability number N of linux/capability.h.
type Caps struct {
	Bounding, Effective, Inheritable, Permitted, Ambient uint64
}

// Process is what to execute and as whom. Containers and exec sessions share it.
type Process struct {
	Args        []string
	Env         []string
	Cwd         string
	User        User
	Caps        Caps
	NoNewPrivs  bool
	TTY         bool
	OOMScoreAdj *int `json:",omitempty"`
}

// Container is everything the shim needs to run one container.
type Container struct {
	ID      string
	Process Process
	// Lowers are the image's directories, top first, over which the container's writable layer lies.
	Lowers []string
	// Holds are directories that the shim holds a shared flock on while the container runs, so that the image store
	// doesn't clear them away.
	Holds []string `json:",omitempty"`
	// HostDirs are directories of the node that the container shows at the same path, copy on write.
	HostDirs      []string `json:",omitempty"`
	ReadOnlyRoot  bool
	Privileged    bool // writable /proc and /sys, a few more devices
	Mounts        []Mount
	Devices       []Mount
	MaskedPaths   []string
	ReadonlyPaths []string
	PID           PIDMode
	PIDTarget     string // with PIDTarget: that container's ID
	LogPath       string // "" to drop output
	Stdin         bool
	StdinOnce     bool // stdin ends with the first client that leaves
}

// State of a container as the shim knows it. A container that the shim was never asked to start has no Status.
type State string

const (
	Running State = "running"
	Exited  State = "exited"
)

// Status is a container's state, kept in the file StatusName. Times are Unix nanoseconds.
type Status struct {
	ID         string
	State      State
	PID        int    // of the container's process, in the node's PID namespace
	MountNS    uint64 // inode of its mount namespace: every process of the container has it
	StartedAt  int64
	FinishedAt int64
	ExitCode   int
	// StartError says why the container could not be started, "" when it ran.
	StartError string `json:",omitempty"`
}

// Op names a request.
type Op string

const (
	OpList   Op = "list"   // -> Reply.Containers
	OpWatch  Op = "watch"  // -> a Reply with all containers now, then one Reply.Status per change
	OpStart  Op = "start"  // Container's directory holds its spec -> Reply.Status
	OpSignal Op = "signal" // Signal to Container's process; to all its processes with All
	OpReopen Op = "reopen" // open Container's log file anew
	OpResize Op = "resize" // the terminal of Container, or of the exec session of this connection
	OpExec   Op = "exec"   // run Process in Container; fds: stdin, stdout, stderr (none with a terminal)
	OpAttach Op = "attach" // fds of the streams named in Streams join Container's stdio
	OpRemove Op = "remove" // forget Container, which must have exited
	OpExit   Op = "exit"   // kill every container, then exit
)

// Request is a message to the shim.
type Request struct {
	Op        Op
	Container string   `json:",omitempty"`
	Dir       string   `json:",omitempty"` // OpStart: the container's directory
	Signal    int      `json:",omitempty"`
	All       bool     `json:",omitempty"`
	Cols      uint16   `json:",omitempty"`
	Rows      uint16   `json:",omitempty"`
	Process   *Process `json:",omitempty"`
	Streams   []string `json:",omitempty"` // OpAttach: of "stdin", "stdout", "stderr", one per passed fd
}

// Reply is a message from the shim. An exec connection gets two: one when the process runs (with a terminal, its
// master side as fd), one with Status when it ended. An attach connection gets one at once and one when the container
// ended.
type Reply struct {
	Error      string            `json:",omitempty"`
	Status     *Status           `json:",omitempty"`
	Containers map[string]Status `json:",omitempty"`
	PausePID   int               `json:",omitempty"`
}

// Conn carries messages with file descriptors over a unix stream socket. One reader and one writer may use it at
// the same time.
type Conn struct{ U *net.UnixConn }

const maxMessage = 4 << 20 // bytes; the kernel's limit for all arguments and environment is smaller in practice

// Send writes a message and passes files along. The files stay the caller's.
func (c Conn) Send(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes is over the limit of %d", len(body), maxMessage)
	}
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:4], uint32(len(body)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(files)))
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	if _, _, err := c.U.WriteMsgUnix(head[:], oob, nil); err != nil {
		return err
	}
	_, err = c.U.Write(body)
	return err
}

// Receive reads a message into v and returns the files that came with it, which are then the caller's to close.
// io.EOF means that the peer is gone.
func (c Conn) Receive(v any) ([]*os.File, error) {
	var head [8]byte
	oob := make([]byte, syscall.CmsgSpace(4*4))
	n, oobn, _, _, err := c.U.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	files, err := received(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if n < len(head) {
		if _, err := io.ReadFull(c.U, head[n:]); err != nil {
			return nil, closing(files, err)
		}
	}
	size := binary.LittleEndian.Uint32(head[:4])
	if size > maxMessage {
		return nil, closing(files, fmt.Errorf("message of %d bytes is over the limit of %d", size, maxMessage))
	}
	if want := int(binary.LittleEndian.Uint32(head[4:])); want != len(files) {
		return nil, closing(files, fmt.Errorf("message came with %d files instead of %d", len(files), want))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.U, body); err != nil {
		return nil, closing(files, err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return nil, closing(files, err)
	}
	return files, nil
}

func closing(files []*os.File, err error) error {
	for _, f := range files {
		f.Close()
	}
	return err
}

func received(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return nil, closing(files, err)
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// Stream takes over a received file that this process itself will read or write: a read then ends when the file is
// closed, and a write can have a deadline. A file that a child inherits must not be made so, since the mode is shared
// with all who have the file open.
func Stream(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Close closes the connection.
func (c Conn) Close() error { return c.U.Close() }

// Listen makes the socket of the shim whose sandbox directory is dir. It goes through /proc/self/fd, since a
// socket's path has to be shorter than 108 bytes and a state directory may lie deep.
func Listen(dir string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(dir, SocketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: viaFD(d), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// Dial connects to the shim whose sandbox directory is dir. A dead shim is syscall.ECONNREFUSED or os.ErrNotExist.
func Dial(dir string) (Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return Conn{}, err
	}
	defer d.Close()
	u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: viaFD(d), Net: "unix"})
	if err != nil {
		return Conn{}, err
	}
	return Conn{u}, nil
}

func viaFD(d *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + SocketName
}

// WriteFile replaces the file name by v as JSON, so that a reader sees the old or the new value and nothing between.
func WriteFile(name string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := name + ".new"
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// ReadFile reads what WriteFile wrote.
func ReadFile(name string, v any) error {
	body, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
