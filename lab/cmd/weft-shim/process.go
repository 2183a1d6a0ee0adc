// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/lab/cri/wire"
)

// execSession is what the shim tells the child that is to become an exec session's process.
type execSession struct {
	Process      wire.Process
	ContainerPID int // whose mount namespace to join
}

// containerInit turns this process into a container's.
func containerInit(specName, root string) {
	unix.CloseOnExec(controlFD)
	var spec wire.Container
	if err := wire.ReadFile(specName, &spec); err != nil {
		reportAndExit(err)
	}
	dieWithParent()
	if err := buildRoot(&spec, root); err != nil {
		reportAndExit(err)
	}
	if err := execute(&spec.Process, true); err != nil {
		reportAndExit(err)
	}
}

// execInit turns this process into one more of a running container.
func execInit() {
	unix.CloseOnExec(controlFD)
	dieWithParent()
	session, err := readSession()
	if err != nil {
		reportAndExit(err)
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(session.ContainerPID) + "/ns/mnt")
	if err != nil {
		reportAndExit(fmt.Errorf("the container is not running: %w", err))
	}
	// A mount namespace can be joined by a thread that shares its root and working directory with no other.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		reportAndExit(err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		reportAndExit(fmt.Errorf("join the container's mount namespace: %w", err))
	}
	if err := execute(&session.Process, false); err != nil {
		reportAndExit(err)
	}
}

func readSession() (*execSession, error) {
	var head [8]byte
	if err := readFull(head[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.LittleEndian.Uint32(head[:4]))
	if err := readFull(body); err != nil {
		return nil, err
	}
	s := new(execSession)
	return s, json.Unmarshal(body, s)
}

func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(controlFD, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the shim is gone")
		}
		b = b[n:]
	}
	return nil
}

// dieWithParent asks the kernel to kill this process when the shim's spawning thread, and so the shim, ends. A
// change of credentials undoes it.
func dieWithParent() {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		reportAndExit(fmt.Errorf("parent death signal: %w", err))
	}
	if hungUp() { // it had ended before
		os.Exit(137)
	}
}

// execute becomes p: terminal, limits, working directory, credentials, program. It returns only with an error.
func execute(p *wire.Process, first bool) error {
	if p.TTY {
		master, err := openTerminal(p.User, first)
		if err != nil {
			return err
		}
		if err := sendMaster(master); err != nil {
			return err
		}
	}
	unix.Umask(0o022)
	if p.OOMScoreAdj != nil {
		// Lowering it needs a privilege that a user namespace lacks; it is advice in any case.
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*p.OOMScoreAdj)), 0)
	}
	raiseFileLimit()
	if err := unix.Chdir(p.Cwd); err != nil {
		return fmt.Errorf("working directory %s: %w", p.Cwd, err)
	}
	if err := unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close files on exec: %w", err)
	}
	if err := become(p); err != nil {
		return err
	}
	dieWithParent()
	return executeProgram(p)
}

func sendMaster(master int) error {
	body := []byte("{}")
	head := make([]byte, 8, 8+len(body))
	head[0], head[4] = byte(len(body)), 1
	err := unix.Sendmsg(controlFD, append(head, body...), unix.UnixRights(master), nil, 0)
	unix.Close(master)
	if err != nil {
		return fmt.Errorf("pass the terminal: %w", err)
	}
	return nil
}

// raiseFileLimit gives containers the limit on open files that other runtimes give, as far as this process may.
func raiseFileLimit() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return
	}
	l.Cur = min(l.Max, 1<<20)
	l.Max = l.Cur
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

// become takes on the process's credentials. It changes this thread only, which is the one that executes.
func become(p *wire.Process) error {
	// The kernel answers EINVAL for the first number that it does not know.
	for c := uintptr(0); c < 64; c++ {
		if p.Caps.Bounding&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL {
			break
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := setGroups(p.User.Groups); err != nil {
		return fmt.Errorf("supplementary groups %v: %w", p.User.Groups, explainUnmapped(err))
	}
	gid := uintptr(p.User.GID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("group %d: %w", gid, explainUnmapped(errno))
	}
	uid := uintptr(p.User.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("user %d: %w", uid, explainUnmapped(errno))
	}
	if err := setCaps(p.Caps); err != nil {
		return err
	}
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
	}
	return nil
}

func explainUnmapped(err error) error {
	if errors.Is(err, unix.EINVAL) && inUserNamespace() {
		return errors.New("no such id in this lab, which runs in a user namespace without it: " +
			"give your user a range in /etc/subuid and /etc/subgid (and install newuidmap), or run the lab as root")
	}
	return err
}

func setGroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0)
	if errno == 0 {
		return nil
	}
	// Where an ordinary user mapped only itself, the kernel forbids the call. Then there is no group to have or
	// to drop but the user's own.
	if deny, err := os.ReadFile("/proc/self/setgroups"); errno == unix.EPERM && err == nil &&
		strings.TrimSpace(string(deny)) == "deny" && allZero(groups) {
		return nil
	}
	return errno
}

func allZero(groups []uint32) bool {
	for _, g := range groups {
		if g != 0 {
			return false
		}
	}
	return true
}

func setCaps(want wire.Caps) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&hdr, &now[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	// What the lab itself lacks, as in a container that hosts it, it can't give.
	have := uint64(now[0].Permitted) | uint64(now[1].Permitted)<<32
	permitted, effective := want.Permitted&have, want.Effective&have
	inheritable := want.Inheritable & have
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	for c := uintptr(0); c < 64; c++ {
		if want.Ambient&inheritable&(1<<c) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("raise ambient capability %d: %w", c, err)
		}
	}
	return nil
}

// executeProgram replaces this process by p.Args, found along the PATH of p.Env.
func executeProgram(p *wire.Process) error {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		return fmt.Errorf("exec %q: %w", name, syscall.Exec(name, p.Args, p.Env))
	}
	var denied error
	for _, dir := range strings.Split(lookupEnv(p.Env, "PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		err := syscall.Exec(dir+"/"+name, p.Args, p.Env)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		case errors.Is(err, unix.EACCES):
			denied = err
		default:
			return fmt.Errorf("exec %q: %w", dir+"/"+name, err)
		}
	}
	if denied != nil {
		return fmt.Errorf("exec %q: %w", name, denied)
	}
	return fmt.Errorf("exec %q: executable file not found in $PATH", name)
}
