package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stage is all that runs for a picture.
type stage struct {
	ctx     context.Context
	dir     string
	cgroups []string // made here, the innermost last
	running sync.WaitGroup
	server  *grpc.Server
	names   runtime
}

// tenant is one process that leaks.
type tenant struct {
	argv                 string
	namespace, pod, name string // of a container
	unit                 string // or of a service
	user                 int    // or of a person
	leak, rate, most     int    // zombies at once, then so many a second up to most
	kid                  string // what its children are called
	block                bool   // SIGCHLD
	adopt                bool   // its zombies are orphans that fell to it
}

// build compiles the tenants' program and starts the runtime that knows them.
func (s *stage) build() error {
	if err := os.Mkdir(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { // tenants are not all root
		return err
	}
	cc := exec.Command("cc", "-O2", "-static", "-x", "c", "-o", filepath.Join(s.dir, "tenant"), "-")
	cc.Stdin = strings.NewReader(tenantSource)
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling the tenants: %w\n%s", err, out)
	}
	l, err := net.Listen("unix", filepath.Join(s.dir, "cri.sock"))
	if err != nil {
		return err
	}
	s.server = grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s.server, &s.names)
	go func() { _ = s.server.Serve(l) }()
	return nil
}

// enter starts a tenant.
func (s *stage) enter(t tenant) error {
	argv := strings.Fields(t.argv)
	path := filepath.Join(s.dir, "bin", strings.TrimSuffix(filepath.Base(argv[0]), ":"))
	program, err := os.ReadFile(filepath.Join(s.dir, "tenant"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		return err
	}
	env := []string{fmt.Sprint("LEAK=", t.leak), fmt.Sprint("RATE=", t.rate), fmt.Sprint("MOST=", t.most), "KID=" + t.kid, fmt.Sprint("USER=", t.user)}
	if t.block {
		env = append(env, "BLOCK=1")
	}
	if t.adopt {
		env = append(env, "ADOPT=1")
	}
	cgroup := ""
	switch {
	case t.pod != "":
		id := fmt.Sprintf("%x", sha256.Sum256([]byte(t.pod+t.name)))
		uid := fmt.Sprintf("%s-%s-4%s-8%s-%s", id[:8], id[8:12], id[12:15], id[15:18], id[18:30])
		s.names.put(id, uid, t)
		cgroup = "kubepods/burstable/pod" + uid + "/" + id
		env = append(env, "PIDNS=1")
	case t.unit != "":
		cgroup = "system.slice/" + t.unit
	case t.user != 0:
		cgroup = fmt.Sprintf("user.slice/user-%d.slice/session-2.scope", t.user)
	}
	files, err := s.cgroup(cgroup)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(s.ctx, path)
	cmd.Args, cmd.Env = argv, append(env, "CGROUPS="+strings.Join(files, " "))
	return s.start(cmd)
}

func (s *stage) start(cmd *exec.Cmd) error {
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	s.running.Go(func() { _ = cmd.Wait() }) // it ends by kzr or with the context
	return nil
}

// cgroup makes one in the hierarchies that name it, and returns the files through
// which a process enters.
func (s *stage) cgroup(path string) ([]string, error) {
	const mount = "/sys/fs/cgroup"
	roots := []string{mount}
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return nil, err
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		roots = []string{mount + "/systemd", mount + "/pids"}
	}
	var files []string
	for _, dir := range roots {
		for name := range strings.SplitSeq(path, "/") {
			dir = filepath.Join(dir, name)
			switch err := os.Mkdir(dir, 0o755); {
			case err == nil:
				s.cgroups = append(s.cgroups, dir)
			case !errors.Is(err, os.ErrExist):
				return nil, err
			}
		}
		files = append(files, filepath.Join(dir, "cgroup.procs"))
	}
	return files, nil
}

// clear ends what is left, once the context is over.
func (s *stage) clear() error {
	_ = s.tmux("kill-server") // it may not have come to that
	if s.server != nil {
		s.server.Stop()
	}
	s.running.Wait()
	var err error
	for _, dir := range slices.Backward(s.cgroups) {
		// Processes that have ended are accounted for a moment longer.
		if !s.poll(func() bool { return os.Remove(dir) == nil }) {
			err = errors.Join(err, fmt.Errorf("%s cannot be removed", dir))
		}
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

func (s *stage) tmux(args ...string) error {
	cmd := exec.Command("tmux", append([]string{"-S", filepath.Join(s.dir, "tmux")}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tmux %s: %w: %s", args[0], err, out)
	}
	return nil
}

// screen is what the terminal shows, "" if there is none.
func (s *stage) screen(flags ...string) string {
	cmd := exec.Command("tmux", append([]string{"-S", filepath.Join(s.dir, "tmux"), "capture-pane", "-p"}, flags...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, _ := cmd.Output()
	return string(out)
}

func (s *stage) shoot(path, title string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = draw(f, title, cells(s.screen("-e", "-N")))
	return errors.Join(err, f.Close())
}

func (s *stage) await(ok func() bool) error {
	if !s.poll(ok) {
		return errors.New("nothing after a minute")
	}
	return nil
}

func (s *stage) poll(ok func() bool) bool {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// runtime knows the names of the tenants, as containerd knows those of its
// containers.
type runtime struct {
	cri.UnimplementedRuntimeServiceServer
	mu   sync.Mutex
	made map[string]*cri.ContainerStatus
}

func (r *runtime) put(id, uid string, t tenant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made == nil {
		r.made = map[string]*cri.ContainerStatus{}
	}
	r.made[id] = &cri.ContainerStatus{
		Id: id, Metadata: &cri.ContainerMetadata{Name: t.name}, State: cri.ContainerState_CONTAINER_RUNNING,
		Image: &cri.ImageSpec{Image: "registry.example/" + t.namespace + "/" + t.name + ":1.4"},
		Labels: map[string]string{
			"io.kubernetes.pod.name": t.pod, "io.kubernetes.pod.namespace": t.namespace,
			"io.kubernetes.pod.uid": uid, "io.kubernetes.container.name": t.name,
		},
	}
}

// ContainerStatus implements the runtime service.
func (r *runtime) ContainerStatus(_ context.Context, q *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st, ok := r.made[q.ContainerId]; ok {
		return &cri.ContainerStatusResponse{Status: st}, nil
	}
	return nil, status.Error(codes.NotFound, "no such container")
}

// Version implements the runtime service.
func (r *runtime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "containerd", RuntimeVersion: "v2.1.0", RuntimeApiVersion: "v1"}, nil
}
