// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weft-net/weft/lab/cri/inroot"
	"github.com/weft-net/weft/lab/cri/wire"
)

// account is a line of an image's /etc/passwd.
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// group is a line of an image's /etc/group.
type group struct {
	name    string
	gid     uint32
	members []string
}

// accounts are the users and groups that an image knows.
type accounts struct {
	users  []account
	groups []group
}

// readAccounts reads them from the topmost of an image's directories that has the files.
func readAccounts(lowers []string) (accounts, error) {
	var a accounts
	passwd, err := readImageFile(lowers, "/etc/passwd")
	if err != nil {
		return a, err
	}
	for _, f := range fields(passwd, 6) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			a.users = append(a.users, account{f[0], uint32(uid), uint32(gid), f[5]})
		}
	}
	groups, err := readImageFile(lowers, "/etc/group")
	if err != nil {
		return a, err
	}
	for _, f := range fields(groups, 3) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		g := group{name: f[0], gid: uint32(gid)}
		if len(f) > 3 && f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		a.groups = append(a.groups, g)
	}
	return a, nil
}

// readImageFile returns nothing when the image has no such file.
func readImageFile(lowers []string, name string) ([]byte, error) {
	for _, dir := range lowers {
		body, err := inroot.ReadFile(dir, name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		return body, err
	}
	return nil, nil
}

// fields splits a file of colon-separated lines and drops those with fewer than least fields.
func fields(text []byte, least int) [][]string {
	var lines [][]string
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= least && !strings.HasPrefix(line, "#") {
			lines = append(lines, f)
		}
	}
	return lines
}

// resolveUser decides as whom a container runs, and what its home is: the security context's user and group, or
// else the image's ("user", "uid", "user:group").
func resolveUser(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, a accounts) (u wire.User, home string, err error) {
	name, groupName, _ := strings.Cut(imageUser, ":")
	switch {
	case sc.GetRunAsUser() != nil:
		name, groupName = strconv.FormatInt(sc.RunAsUser.Value, 10), ""
	case sc.GetRunAsUsername() != "":
		name, groupName = sc.RunAsUsername, ""
	}
	if g := sc.GetRunAsGroup(); g != nil {
		groupName = strconv.FormatInt(g.Value, 10)
	}
	home = "/"
	known := account{name: ""}
	if name == "" {
		name = "0"
	}
	if i := slices.IndexFunc(a.users, func(u account) bool { return u.name == name }); i >= 0 {
		known = a.users[i]
	} else {
		uid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return u, "", fmt.Errorf("user %q is not in the image's /etc/passwd: set securityContext.runAsUser to a number", name)
		}
		known.uid = uint32(uid)
		if i := slices.IndexFunc(a.users, func(u account) bool { return u.uid == uint32(uid) }); i >= 0 {
			known = a.users[i]
		}
	}
	u.UID, u.GID = known.uid, known.gid
	if known.home != "" {
		home = known.home
	}
	if groupName != "" {
		if i := slices.IndexFunc(a.groups, func(g group) bool { return g.name == groupName }); i >= 0 {
			u.GID = a.groups[i].gid
		} else if gid, err := strconv.ParseUint(groupName, 10, 32); err == nil {
			u.GID = uint32(gid)
		} else {
			return u, "", fmt.Errorf("group %q is not in the image's /etc/group: set securityContext.runAsGroup to a number", groupName)
		}
	}
	add := func(gid uint32) {
		if !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
	}
	add(u.GID)
	for _, g := range sc.GetSupplementalGroups() {
		add(uint32(g))
	}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && known.name != "" {
		for _, g := range a.groups {
			if slices.Contains(g.members, known.name) {
				add(g.gid)
			}
		}
	}
	return u, home, nil
}
