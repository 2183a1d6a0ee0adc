// SPDX-License-Identifier: Apache-2.0

package guardian

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mapping is how an ordinary user becomes root of the lab: as UID 0 of a user namespace, with the user's subordinate
// IDs (subuid(5)) as the others where newuidmap(1) can map them. Without them, containers can only run as UID 0.
type mapping struct {
	uid, gid         int
	subUIDs, subGIDs idRange // empty: only the user's own ID
}

type idRange struct{ first, count int }

// userMapping is nil for root, who needs none.
func userMapping(uid, gid int) (*mapping, error) {
	if uid == 0 {
		return nil, nil
	}
	m := &mapping{uid: uid, gid: gid}
	for _, helper := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(helper); err != nil {
			return m, nil
		}
	}
	subUIDs, err := subordinate("/etc/subuid", uid)
	if err != nil {
		return nil, err
	}
	subGIDs, err := subordinate("/etc/subgid", uid)
	if err != nil {
		return nil, err
	}
	if subUIDs.count > 0 && subGIDs.count > 0 {
		m.subUIDs, m.subGIDs = subUIDs, subGIDs
	}
	return m, nil
}

// subordinate is the user's first range in /etc/subuid or /etc/subgid.
func subordinate(path string, uid int) (idRange, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return idRange{}, nil
	} else if err != nil {
		return idRange{}, err
	}
	names := []string{strconv.Itoa(uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	return findRange(string(text), names), nil
}

// findRange reads lines of NAME:FIRST:COUNT.
func findRange(text string, names []string) idRange {
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 {
			continue
		}
		for _, name := range names {
			if fields[0] != name {
				continue
			}
			first, err1 := strconv.Atoi(fields[1])
			count, err2 := strconv.Atoi(fields[2])
			if err1 == nil && err2 == nil && count > 0 {
				return idRange{first, count}
			}
		}
	}
	return idRange{}
}

// start starts the supervisor in a user namespace with this mapping.
func (m *mapping) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	if m.subUIDs.count == 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: m.uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: m.gid, Size: 1}}
		return forbidden(cmd.Start())
	}
	// Only newuidmap may map more than our own ID, and it needs a process to map: the supervisor waits for a byte on
	// descriptor 5, and then executes itself anew, since a process keeps its capabilities across exec only as UID 0.
	wait, mapped, err := os.Pipe()
	if err != nil {
		return err
	}
	defer mapped.Close()
	defer wait.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, wait)
	cmd.Args = append(cmd.Args, "--unmapped")
	if err := forbidden(cmd.Start()); err != nil {
		return err
	}
	for _, call := range [][]string{
		{"newuidmap", "0", strconv.Itoa(m.uid), "1", "1", strconv.Itoa(m.subUIDs.first), strconv.Itoa(m.subUIDs.count)},
		{"newgidmap", "0", strconv.Itoa(m.gid), "1", "1", strconv.Itoa(m.subGIDs.first), strconv.Itoa(m.subGIDs.count)},
	} {
		args := append([]string{strconv.Itoa(cmd.Process.Pid)}, call[1:]...)
		if out, err := exec.Command(call[0], args...).CombinedOutput(); err != nil {
			cmd.Process.Kill()
			cmd.Wait()
			return fmt.Errorf("%s: %s: %w (is it installed set-user-ID root?)", call[0], strings.TrimSpace(string(out)), err)
		}
	}
	_, err = mapped.Write([]byte{1})
	return err
}

// forbidden explains an error in making a user namespace.
func forbidden(err error) error {
	if err == nil {
		return nil
	}
	for _, s := range []struct{ path, bad, cure string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		value, readErr := os.ReadFile(s.path)
		if readErr == nil && strings.TrimSpace(string(value)) == s.bad {
			return fmt.Errorf("this machine forbids user namespaces to ordinary users (%w): allow them with `sudo %s`, or run the lab as root", err, s.cure)
		}
	}
	return fmt.Errorf("start the supervisor in a user namespace: %w (a container or security module may forbid it: run the lab as root, or outside of it)", err)
}
