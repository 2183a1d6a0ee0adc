// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/podnet/plugin"
)

// requestTimeout bounds one request in the agent. It is shorter than the plugin's own patience with an answer, so
// that the runtime gets the reason.
const requestTimeout = 50 * time.Second

// statusPatience is how long STATUS waits for what ADD needs, the node's podCIDRs.
const statusPatience = 5 * time.Second

// Serve answers the CNI plugin on the configured socket until ctx is done, and first carries out what was deleted
// while no agent ran. Only root can reach the socket. Requests under way are finished before it returns.
func (n *Network) Serve(ctx context.Context) error {
	n.deletePending()
	l, err := listen(n.cfg.Socket)
	if err != nil {
		return fmt.Errorf("pod network: CNI socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("pod network: CNI socket: %w", err)
		}
		serving.Go(func() {
			defer c.Close()
			// Not ctx: a request that has begun is finished, or the pod would wait for the next agent.
			rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
			defer cancel()
			if err := n.serve(rctx, c); err != nil {
				n.log.Warn("podnet: CNI request", "err", err)
			}
		})
	}
}

// listen opens the socket under another name and renames it into place, so that a connection never finds a socket
// that nobody listens on between two agents, and a stale one is replaced.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// deletePending carries out the deletions that the plugin noted while no agent ran.
func (n *Network) deletePending() {
	dir := plugin.PendingDir(n.cfg.Socket)
	entries, err := os.ReadDir(dir)
	if err != nil {
		n.log.Warn("podnet: deletions noted while no agent ran", "err", err)
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var a plugin.Attachment
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		if err == nil {
			err = n.Del(a.ContainerID, a.IfName)
		}
		// What can't be read can't be carried out either; GC and the missing namespace find the rest.
		if err = errors.Join(err, os.Remove(path)); err != nil {
			n.log.Warn("podnet: deletion noted while no agent ran", "file", path, "err", err)
		}
	}
}

func (n *Network) serve(ctx context.Context, c *net.UnixConn) error {
	began := time.Now()
	if err := c.SetDeadline(began.Add(requestTimeout)); err != nil {
		return err
	}
	msg, netns, err := readRequest(c)
	if netns != nil {
		defer netns.Close()
	}
	var req plugin.Request
	if err == nil {
		err = json.Unmarshal(msg, &req)
	}
	if err != nil {
		return fmt.Errorf("unreadable: %w", err)
	}
	var resp plugin.Response
	if resp.Result, err = n.answer(ctx, &req, netns); err != nil {
		var e *plugin.Error
		if !errors.As(err, &e) {
			e = plugin.Errorf(plugin.CodeInternal, "%v", err)
		}
		resp.Error = e
		n.metrics.served(commandLabel(req.Command), began, e.Code)
		if req.Command != "STATUS" {
			n.log.Warn("podnet: CNI request failed", "command", req.Command, "container", req.ContainerID, "err", err)
		}
	} else {
		n.metrics.served(commandLabel(req.Command), began, 0)
	}
	out, err := json.Marshal(&resp)
	if err != nil {
		return err
	}
	_, err = c.Write(out)
	return err
}

// commandLabel keeps the metrics' labels few, whatever comes over the socket.
func commandLabel(command string) string {
	switch command {
	case "ADD", "DEL", "CHECK", "STATUS", "GC":
		return command
	}
	return "unknown"
}

// readRequest reads to the end of the stream, and the file that came with its first byte, if one did.
func readRequest(c *net.UnixConn) (msg []byte, netns *os.File, err error) {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	for {
		k, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if oobn > 0 && netns == nil {
			netns = receivedFile(oob[:oobn])
		}
		msg = append(msg, buf[:k]...)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return nil, netns, err
		case err != nil || k == 0:
			return msg, netns, nil
		case len(msg) > plugin.MaxMessage:
			return nil, netns, fmt.Errorf("more than %d bytes", plugin.MaxMessage)
		}
	}
}

func receivedFile(oob []byte) *os.File {
	cs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(cs) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&cs[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "of the pod")
}

// answer carries out one request and gives what the plugin is to print.
func (n *Network) answer(ctx context.Context, req *plugin.Request, netns *os.File) ([]byte, error) {
	conf, err := plugin.ParseConfig(req.Config)
	if err != nil {
		return nil, err
	}
	r := Request{ContainerID: req.ContainerID, IfName: req.IfName, NetNS: req.NetNS, Args: req.Args, HostPorts: conf.RuntimeConfig.PortMappings}
	switch req.Command {
	case "ADD", "CHECK":
		if netns == nil {
			return nil, plugin.Errorf(plugin.CodeInvalidEnvironment, "CNI_NETNS %s did not come along with the request", req.NetNS)
		}
		pod, err := newNetNS(netns)
		if err != nil {
			return nil, plugin.Errorf(plugin.CodeInvalidEnvironment, "CNI_NETNS %s: %v", req.NetNS, err)
		}
		if req.Command == "CHECK" {
			ips, err := prevIPs(conf.CNIVersion, req.Config)
			if err != nil {
				return nil, err
			}
			return nil, n.Check(r, ips, pod)
		}
		a, err := n.Add(ctx, r, pod)
		if err != nil {
			return nil, err
		}
		return result(conf.CNIVersion, r, a)
	case "DEL":
		return nil, n.Del(r.ContainerID, r.IfName)
	case "GC":
		if conf.ValidAttachments == nil {
			return nil, plugin.Errorf(plugin.CodeInvalidConfig, "network configuration: GC needs cni.dev/valid-attachments")
		}
		return nil, n.GC(conf.ValidAttachments)
	case "STATUS":
		select { // an agent that has just started is about to be
		case <-n.ready:
		case <-time.After(statusPatience):
		case <-ctx.Done():
		}
		if err := n.Status(); err != nil {
			return nil, plugin.Errorf(plugin.CodePluginNotAvailable, "%v", err)
		}
		return nil, nil
	}
	return nil, plugin.Errorf(plugin.CodeInvalidEnvironment, "CNI_COMMAND %q is unknown", req.Command)
}

// result is ADD's answer in the version of the spec that the runtime speaks.
func result(version string, req Request, a Attached) ([]byte, error) {
	res := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: a.Pod.Link, Mac: gatewayMAC.String(), Mtu: a.MTU},
			{Name: req.IfName, Mac: a.MAC, Mtu: a.MTU, Sandbox: req.NetNS},
		},
	}
	for _, ip := range a.Pod.IPs {
		gw := gatewayOf(ip)
		res.IPs = append(res.IPs, &types100.IPConfig{Interface: types100.Int(1), Address: *ipNet(hostPrefix(ip)), Gateway: gw.AsSlice()})
		res.Routes = append(res.Routes, &types.Route{Dst: *ipNet(netip.PrefixFrom(gw, 0).Masked()), GW: gw.AsSlice()})
	}
	out, err := res.GetAsVersion(version)
	if err != nil {
		return nil, plugin.Errorf(plugin.CodeIncompatibleVersion, "result for cniVersion %s: %v", version, err)
	}
	return json.Marshal(out)
}

// prevIPs reads the addresses of prevResult, which a runtime must give CHECK.
func prevIPs(version string, config []byte) ([]netip.Addr, error) {
	var c struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, plugin.Errorf(plugin.CodeDecodingFailure, "prevResult: %v", err)
	}
	if len(c.PrevResult) == 0 {
		return nil, plugin.Errorf(plugin.CodeInvalidConfig, "network configuration: CHECK needs prevResult")
	}
	r, err := create.Create(version, c.PrevResult)
	if err != nil {
		return nil, plugin.Errorf(plugin.CodeDecodingFailure, "prevResult: %v", err)
	}
	prev, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, plugin.Errorf(plugin.CodeDecodingFailure, "prevResult: %v", err)
	}
	var ips []netip.Addr
	for _, c := range prev.IPs {
		if ip, ok := netip.AddrFromSlice(c.Address.IP); ok {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips, nil
}
