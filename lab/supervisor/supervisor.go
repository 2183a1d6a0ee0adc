// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/weft-net/weft/lab/components"
	"github.com/weft-net/weft/lab/control"
	"github.com/weft-net/weft/lab/fabric"
	"github.com/weft-net/weft/lab/forward"
	"github.com/weft-net/weft/lab/namespace"
	"github.com/weft-net/weft/lab/procs"
	"github.com/weft-net/weft/lab/topology"
	"golang.org/x/sys/unix"
)

// internet is the name of the server beyond the cluster, among the components.
const internet = "internet"

// lab is the running lab.
type lab struct {
	cfg   Config
	plan  topology.Plan
	files files
	table *procs.Table

	fabric           *fabric.Fabric
	outside, control *namespace.Net
	cluster          *components.Cluster
	api              *apiClient
	server           string // the API server's URL on the host
	started          time.Time
	pullPassword     string // of the proxy that images are pulled through

	linkMu sync.Mutex // events are written by many
	link   *net.UnixConn

	services []*procs.Service // the control plane, in starting order

	// prepared is closed when all of the above has its final value: until then commands wait.
	prepared chan struct{}

	changes sync.Mutex // held while nodes change, which takes its time; before mu

	mu    sync.Mutex // guards what follows
	nodes []*clusterNode
	ready bool
}

// Main is the supervisor. It ends with the lab; with unmapped it first waits for its user namespace's mapping.
func Main(unmapped bool) error {
	if unmapped {
		return remap()
	}
	// The guardian asked for this at the start, but the kernel forgets it where exec brings new capabilities.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	syscall.CloseOnExec(linkFD)
	syscall.CloseOnExec(bootFD)
	bootFile := os.NewFile(bootFD, "boot")
	var cfg Config
	if err := json.NewDecoder(bootFile).Decode(&cfg); err != nil {
		return fmt.Errorf("supervisor: read descriptor %d: %w (`weft lab up` starts this command, people don't)", bootFD, err)
	}
	bootFile.Close()
	conn, err := net.FileConn(os.NewFile(linkFD, "link"))
	if err != nil {
		return err
	}
	l := &lab{
		cfg:          cfg,
		plan:         topology.Plan{Families: cfg.Families, Segments: cfg.Segments},
		link:         conn.(*net.UnixConn),
		started:      time.Now(),
		pullPassword: rand.Text(),
		prepared:     make(chan struct{}),
	}
	go func() {
		if err := l.up(); err != nil {
			l.event(Event{Failed: err.Error()})
		}
	}()
	l.serve()
	return nil
}

// remap waits for the user namespace's mapping and becomes its root by executing itself anew.
func remap() error {
	f := os.NewFile(mappedFD, "mapped")
	if _, err := f.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the user namespace's mapping: %w", err)
	}
	f.Close()
	for _, fd := range []uintptr{linkFD, bootFD} {
		if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	args := slices.DeleteFunc(slices.Clone(os.Args), func(a string) bool { return a == "--unmapped" })
	return syscall.Exec("/proc/self/exe", args, os.Environ())
}

// event tells the guardian. When it can't be told it is dead, and so are we in a moment.
func (l *lab) event(e Event) {
	l.linkMu.Lock()
	defer l.linkMu.Unlock()
	json.NewEncoder(l.link).Encode(e)
}

func (l *lab) progress(format string, args ...any) {
	l.event(Event{Progress: fmt.Sprintf(format, args...)})
}

// serve answers the commands that the guardian passes on, until it is gone.
func (l *lab) serve() {
	for {
		conn, err := control.ReceiveConn(l.link)
		if err != nil {
			os.Exit(1) // not even deferred work: the kernel cleans up after PID 1
		}
		go l.answer(conn)
	}
}

// up brings the lab to what its Config says.
func (l *lab) up() error {
	l.progress("making namespaces, network and certificates")
	if err := checkInotify(l.cfg.Nodes); err != nil {
		return err
	}
	var err error
	if l.files, err = prepareFiles(l.cfg); err != nil {
		return err
	}
	l.table = procs.NewTable()
	if err := l.makeNetwork(); err != nil {
		return err
	}
	if l.cluster, err = components.NewCluster(l.cfg.Name, l.plan, l.files.control()); err != nil {
		return err
	}
	if l.api, err = newAPIClient(l.cluster, l.control); err != nil {
		return err
	}
	if err := l.registerImages(); err != nil {
		return err
	}
	if err := l.exposeAPI(); err != nil {
		return err
	}
	if err := l.serveOutside(); err != nil {
		return err
	}
	l.defineControlPlane()
	l.changes.Lock() // who adds a node meanwhile waits for those that are asked for
	close(l.prepared)
	err = l.start()
	l.changes.Unlock()
	if err != nil {
		return err
	}
	if err := l.waitNodesReady(); err != nil {
		return err
	}
	l.mu.Lock()
	l.ready = true
	l.mu.Unlock()
	l.event(Event{Ready: &Ready{Name: l.cfg.Name, Server: l.server}})
	return nil
}

// start starts the control plane, and then the nodes while weft is installed.
func (l *lab) start() error {
	if err := l.startControlPlane(); err != nil {
		return err
	}
	l.mu.Lock()
	for number := 1; number <= l.cfg.Nodes; number++ {
		l.nodes = append(l.nodes, &clusterNode{Name: fmt.Sprintf("node%d", number), Number: number})
	}
	l.mu.Unlock()
	return inParallel(l.startNodes, l.installWeft)
}

// inParallel runs all and gives the first error as soon as there is one, since the others may be waiting for what
// will not come.
func inParallel(all ...func() error) error {
	errs := make(chan error, len(all))
	for _, f := range all {
		go func() { errs <- f() }()
	}
	for range all {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) makeNetwork() error {
	var err error
	if l.fabric, err = fabric.New(l.plan); err != nil {
		return err
	}
	for _, h := range []struct {
		name  string
		net   **namespace.Net
		addrs []netip.Prefix
	}{{Outside, &l.outside, l.plan.Outside()}, {Control, &l.control, l.plan.Control()}} {
		if *h.net, err = namespace.NewNet(); err != nil {
			return err
		}
		if err := l.fabric.Attach(fabric.Host{Net: *h.net, Port: h.name, Addrs: h.addrs}); err != nil {
			return err
		}
	}
	return l.fabric.AddInternet(l.outside)
}

// exposeAPI lets the host reach the API server on a port of its loopback that was free.
func (l *lab) exposeAPI() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen on 127.0.0.1 for the API server: %w", err)
	}
	go forward.ServeTCP(listener, forward.In(l.control), l.cluster.Address().String())
	l.server = "https://" + listener.Addr().String()
	return nil
}

// defineControlPlane says what the lab runs beside its nodes.
func (l *lab) defineControlPlane() {
	for _, c := range l.cluster.Control() {
		l.services = append(l.services, l.table.Service(&procs.Service{
			Name:  c.Name,
			Log:   procs.NewLog(l.files.log(c.Name), logSize),
			Grace: 5 * time.Second,
			Spec:  func() procs.Spec { return l.controlSpec(c) },
		}))
	}
	l.services = append(l.services, l.table.Service(&procs.Service{
		Name: internet,
		Log:  procs.NewLog(l.files.log(internet), logSize),
		Spec: l.internetSpec,
	}))
}

// startControlPlane starts the control plane and waits until the API server serves.
func (l *lab) startControlPlane() error {
	l.progress("starting etcd and the API server")
	for _, s := range l.services[:2] {
		if err := s.Start(); err != nil {
			return err
		}
	}
	if err := l.api.waitReady(time.Minute); err != nil {
		return l.withLog(err, components.APIServer)
	}
	nodes := fmt.Sprintf("%d nodes", l.cfg.Nodes)
	if l.cfg.Nodes == 1 {
		nodes = "1 node"
	}
	l.progress("starting the controller manager, the scheduler and %s", nodes)
	for _, s := range l.services[2:] {
		if err := s.Start(); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) controlSpec(c components.Component) procs.Spec {
	return procs.Spec{
		Path:   l.files.program("weft-lab-kube"),
		Args:   append([]string{"weft-lab-kube", c.Name}, c.Args...),
		Env:    append([]string{"PATH=" + defaultPath, "HOME=" + l.files.control()}, c.Env...),
		Dir:    l.files.control(),
		Attr:   &syscall.SysProcAttr{Setsid: true},
		Inside: l.control.Do,
	}
}

// internetSpec is the server that answers on the internet's addresses, and on those of `outside`.
func (l *lab) internetSpec() procs.Spec {
	return procs.Spec{
		Path:   l.files.program("echo"),
		Args:   []string{"echo", "serve"},
		Env:    []string{"HTTP_PORT=80", "HTTPS_PORT=443", "POD_NAME=internet", "NODE_NAME=" + Outside, "DRAIN=0s", "GOGC=50"},
		Dir:    "/",
		Attr:   &syscall.SysProcAttr{Setsid: true},
		Inside: l.outside.Do,
	}
}

// withLog adds the end of a component's log to an error, since the lab and its logs are about to vanish.
func (l *lab) withLog(err error, component string) error {
	tail := procs.Tail(l.files.log(component), 2000)
	if tail == "" {
		return err
	}
	return fmt.Errorf("%w; the end of %s's log:\n%s", err, component, tail)
}

// service finds a component of the control plane.
func (l *lab) service(name string) (*procs.Service, error) {
	for _, s := range l.services {
		if s.Name == name || "kube-"+name == s.Name {
			return s, nil
		}
	}
	return nil, errors.New("unknown component " + name + ": want etcd, apiserver, controller-manager, scheduler or internet; or kubelet or cri, with --node")
}
