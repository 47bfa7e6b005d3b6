package container

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kzr/internal/task"
)

// patience is for what must happen; nothing waits for it when all is well.
const patience = time.Minute

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeCRI is a runtime that the real gRPC library serves. ask is told of every
// container that somebody wants to know about.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	mu         sync.Mutex
	containers map[string]*cri.ContainerStatus
	sandboxOf  map[string]string // container to sandbox
	sandboxes  map[string]*cri.PodSandboxStatus
	asked      []string
}

func (f *fakeCRI) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.ContainerId)
	if st, ok := f.containers[r.ContainerId]; ok {
		return &cri.ContainerStatusResponse{Status: st}, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q: 100%% not found", r.ContainerId)
}

func (f *fakeCRI) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &cri.ListContainersResponse{Containers: []*cri.Container{{Id: "another", PodSandboxId: "another"}}}
	if s, ok := f.sandboxOf[r.GetFilter().GetId()]; ok {
		out.Containers = append(out.Containers, &cri.Container{Id: r.Filter.Id, PodSandboxId: s})
	}
	return out, nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st, ok := f.sandboxes[r.PodSandboxId]; ok {
		return &cri.PodSandboxStatusResponse{Status: st}, nil
	}
	return nil, status.Error(codes.NotFound, "no such sandbox")
}

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "containerd", RuntimeVersion: "v1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeCRI) put(st *cri.ContainerStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.containers == nil {
		f.containers = map[string]*cri.ContainerStatus{}
	}
	f.containers[st.Id] = st
}

func (f *fakeCRI) askedFor() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.asked...)
}

// kubeletContainer is a container as kubelet makes it.
func kubeletContainer(id, pod string) *cri.ContainerStatus {
	return &cri.ContainerStatus{
		Id:        id,
		State:     cri.ContainerState_CONTAINER_RUNNING,
		CreatedAt: 1_700_000_000_000_000_000,
		Metadata:  &cri.ContainerMetadata{Name: "web", Attempt: 3},
		Image:     &cri.ImageSpec{Image: "registry.example/web:1.2"},
		ImageRef:  "sha256:" + idC,
		Labels: map[string]string{
			"app": "x", labelPod: pod, labelNamespace: "tenant-a", labelPodUID: uidA, labelContainer: "web",
		},
		Annotations: map[string]string{"io.kubernetes.container.hash": "1", annotationGrace: "45"},
		Mounts:      []*cri.Mount{{ContainerPath: "/data", HostPath: "/var/data"}},
	}
}

func serveCRI(t *testing.T, f *fakeCRI) string {
	t.Helper()
	l, path := listen(t, "cri.sock")
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, f)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return path
}

func listen(t *testing.T, name string) (net.Listener, string) {
	t.Helper()
	// t.TempDir can be too long for the address of a unix socket.
	dir, err := os.MkdirTemp("", "kzr")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	return l, path
}

// serveConns hands each connection to f, and counts them.
func serveConns(t *testing.T, f func(net.Conn)) (string, *atomic.Int64) {
	t.Helper()
	l, path := listen(t, "cri.sock")
	var (
		wg    sync.WaitGroup
		count atomic.Int64
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { f(c); c.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return path, &count
}

// serveHTTP serves HTTP/1 or, for what grpc-go refuses to send, HTTP/2.
func serveHTTP(t *testing.T, name string, h http.HandlerFunc) string {
	t.Helper()
	l, path := listen(t, name)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return path
}

func serveJSON(t *testing.T, name string, answers map[string]any) string {
	t.Helper()
	return serveHTTP(t, name, func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			http.Error(w, `{"message":"no such container"}`, http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(a)
	})
}

// start makes a Resolver that runs until the test ends.
func start(t *testing.T, o Options) *Resolver {
	t.Helper()
	r := NewResolver(o)
	run(t, r)
	return r
}

func run(t *testing.T, r *Resolver) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		began := time.Now()
		wg.Wait()
		if d := time.Since(began); d > callTimeout {
			t.Errorf("the resolver took %v to stop", d)
		}
	})
}

func mustParse(t *testing.T, path string) Ref {
	t.Helper()
	ref, ok := Parse(path)
	if !ok {
		t.Fatalf("Parse(%q) found no container", path)
	}
	return ref
}

func pod(t *testing.T, id string) Ref {
	return mustParse(t, "/kubepods/burstable/pod"+uidA+"/"+id)
}

// await looks a container up until its names are there.
func await(t *testing.T, r *Resolver, ref Ref) task.Container {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if c, ok := r.Lookup(ref); ok {
			return c
		}
	}
	t.Fatalf("no names for %s within %v", ref.Outer.ID, patience)
	return task.Container{}
}

func TestNames(t *testing.T) {
	f := &fakeCRI{
		sandboxOf: map[string]string{idB: idC},
		sandboxes: map[string]*cri.PodSandboxStatus{
			idC: {Id: idC, Metadata: &cri.PodSandboxMetadata{Name: "db-0", Uid: uidA, Namespace: "tenant-b", Attempt: 1}},
		},
	}
	f.put(kubeletContainer(idA, "web-0"))
	f.put(&cri.ContainerStatus{Id: idB, Metadata: &cri.ContainerMetadata{Name: "db"}, Image: &cri.ImageSpec{Image: "sha256:" + idC, UserSpecifiedImage: "db:9"}})
	docker := map[string]any{
		"Id": idA, "Name": "/lucid_bose", "State": map[string]any{"Pid": 7},
		"Config": map[string]any{"Image": "alpine:3", "Labels": map[string]string{
			"maintainer": "me", labelPod: "kube-proxy", labelNamespace: "kube-system", labelPodUID: uidA, labelContainer: "proxy",
			"annotation." + annotationGrace: "7",
		}},
	}
	crisock := serveCRI(t, f)
	dockersock := serveJSON(t, "docker.sock", map[string]any{"GET /containers/" + idA + "/json": docker})
	podmansock := serveJSON(t, "podman.sock", map[string]any{"GET /containers/" + idD + "/json": map[string]any{
		"Id": idD, "Name": "/quiet_bell", "Config": map[string]any{"Image": "quay.example/x"},
	}})
	r := start(t, Options{Sockets: []string{crisock, dockersock, podmansock}})

	tests := []struct {
		name, path string
		want       task.Container
	}{
		{
			"kubelet's container", systemdPod + "/cri-containerd-" + idA + ".scope",
			task.Container{Runtime: "containerd", ID: idA, PodUID: uidA, Pod: "web-0", Namespace: "tenant-a", Name: "web", Image: "registry.example/web:1.2", GracePeriod: 45 * time.Second},
		},
		{
			"kubelet's container, cgroupfs", "/kubepods/pod" + uidA + "/" + idA,
			task.Container{Runtime: "containerd", ID: idA, PodUID: uidA, Pod: "web-0", Namespace: "tenant-a", Name: "web", Image: "registry.example/web:1.2", GracePeriod: 45 * time.Second},
		},
		{
			"a pod that kubelet did not make", systemdPod + "/crio-" + idB + ".scope",
			task.Container{Runtime: "cri-o", ID: idB, PodUID: uidA, Pod: "db-0", Namespace: "tenant-b", Name: "db", Image: "db:9"},
		},
		{
			"the sandbox itself", systemdPod + "/cri-containerd-" + idC + ".scope",
			task.Container{Runtime: "containerd", ID: idC, PodUID: uidA, Pod: "db-0", Namespace: "tenant-b"},
		},
		{
			"docker in a pod of a container", systemdPod + "/cri-containerd-" + idA + ".scope/docker/" + idB,
			task.Container{Runtime: "containerd", ID: idA, PodUID: uidA, Pod: "web-0", Namespace: "tenant-a", Name: "web", Image: "registry.example/web:1.2", GracePeriod: 45 * time.Second},
		},
		{
			"podman", "/machine.slice/libpod-" + idD + ".scope",
			task.Container{Runtime: "podman", ID: idD, Name: "quiet_bell", Image: "quay.example/x"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := await(t, r, mustParse(t, tt.path)); got != tt.want {
				t.Errorf("\n got %+v\nwant %+v", got, tt.want)
			}
		})
	}

	// Labels that an image brings along make no pod of a plain container.
	t.Run("docker", func(t *testing.T) {
		r := start(t, Options{Sockets: []string{dockersock}})
		want := task.Container{Runtime: "docker", ID: idA, Name: "lucid_bose", Image: "alpine:3"}
		if got := await(t, r, mustParse(t, "/docker/"+idA)); got != want {
			t.Errorf("\n got %+v\nwant %+v", got, want)
		}
	})
	t.Run("docker under kubelet", func(t *testing.T) {
		r := start(t, Options{Sockets: []string{dockersock}})
		want := task.Container{Runtime: "docker", ID: idA, PodUID: uidA, Pod: "kube-proxy", Namespace: "kube-system", Name: "proxy", Image: "alpine:3", GracePeriod: 7 * time.Second}
		if got := await(t, r, mustParse(t, systemdPod+"/docker-"+idA+".scope")); got != want {
			t.Errorf("\n got %+v\nwant %+v", got, want)
		}
	})
	t.Run("one shot", func(t *testing.T) {
		r := NewResolver(Options{Sockets: []string{crisock}})
		if c, ok := r.Resolve(t.Context(), pod(t, idA)); !ok || c.Pod != "web-0" {
			t.Errorf("Resolve = %+v, %v", c, ok)
		}
	})
}

// An image may carry megabytes of environment and labels: the names are found all
// the same, wherever they stand.
func TestHugeContainer(t *testing.T) {
	env := make([]string, 20)
	for i := range env {
		env[i] = "X=" + strings.Repeat(`\"é`, 16<<10)
	}
	config := map[string]any{
		"Env": env, "Image": "alpine:3", "Labels": map[string]any{
			"a": strings.Repeat("x", 1<<20), labelPod: "web-0", labelPodUID: uidA, labelNamespace: "shop", labelContainer: "app",
			// An image's, which another case does not make kubelet's.
			"IO.kubernetes.pod.namespace": "another", "io.kubernetes.pod.NAME": "another",
		},
	}
	sock := serveJSON(t, "docker.sock", map[string]any{"GET /containers/" + idA + "/json": map[string]any{"Config": config, "Id": idA, "Name": "/app"}})
	r := NewResolver(Options{Sockets: []string{sock}})
	r.sockets[0].timeout = patience // the test's server is slow
	want := task.Container{Runtime: "docker", ID: idA, PodUID: uidA, Pod: "web-0", Namespace: "shop", Name: "app", Image: "alpine:3"}
	if got, ok := r.Resolve(t.Context(), mustParse(t, systemdPod+"/docker-"+idA+".scope")); !ok || got != want {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// One whose answer is longer than anybody reads has no names, and is not waited
// for; but those that were known before are kept.
func TestTooHugeContainer(t *testing.T) {
	label := strings.Repeat("x", maxEngineAnswer)
	var huge atomic.Bool
	sock := serveHTTP(t, "docker.sock", func(w http.ResponseWriter, r *http.Request) {
		c := map[string]any{"Id": path.Base(path.Dir(r.URL.Path)), "Name": "/app"}
		if huge.Load() || c["Id"] == idB {
			c["Config"] = map[string]any{"Labels": map[string]string{"a": label}}
		}
		_ = json.NewEncoder(w).Encode(c)
	})
	r := NewResolver(Options{Sockets: []string{sock}})
	r.sockets[0].timeout = patience // it writes for as long as anybody reads
	if c, ok := r.Resolve(t.Context(), mustParse(t, "/docker/"+idB)); !ok || c.Name != "" {
		t.Errorf("got %+v, %t", c, ok)
	}
	for range 2 {
		if c, ok := r.Resolve(t.Context(), mustParse(t, "/docker/"+idA)); !ok || c.Name != "app" {
			t.Errorf("got %+v, %t", c, ok)
		}
		huge.Store(true)
		r.mu.Lock()
		r.get(idA).due = time.Time{}
		r.mu.Unlock()
	}
	if until := r.sockets[0].paused(); !until.IsZero() {
		t.Error("the socket is not asked any more")
	}
}

func TestNamedIsTold(t *testing.T) {
	f := &fakeCRI{}
	f.put(kubeletContainer(idA, "web-0"))
	told := make(chan string, 1)
	r := start(t, Options{Sockets: []string{serveCRI(t, f)}, Named: func(id string) { told <- id }})
	if c, ok := r.Lookup(pod(t, idA)); ok || c.ID != idA || c.PodUID != uidA || c.Pod != "" {
		t.Errorf("the first look-up gives %+v, %v, want what the path says", c, ok)
	}
	select {
	case id := <-told:
		if c, ok := r.Lookup(pod(t, id)); !ok || c.Pod != "web-0" {
			t.Errorf("told of %s, which is %+v, %v", id, c, ok)
		}
	case <-time.After(patience):
		t.Fatal("nobody said that the name is there")
	}
}

// What a tenant or a user can make up is not asked for.
func TestOnlyTrueIDsAreAsked(t *testing.T) {
	f := &fakeCRI{}
	f.put(kubeletContainer(idA, "mine"))
	f.put(kubeletContainer(idB, "victim"))
	r := start(t, Options{Sockets: []string{serveCRI(t, f)}})
	faked := mustParse(t, systemdPod+"/cri-containerd-"+idA+".scope/cri-containerd-"+idB+".scope")
	user := mustParse(t, userUnit+"/cri-containerd-"+idB+".scope")
	for range 3 {
		if c, ok := r.Lookup(user); ok || c.Pod != "" {
			t.Errorf("a user's fake became %+v", c)
		}
		if c, ok := r.Resolve(t.Context(), user); ok || c.Pod != "" {
			t.Errorf("a user's fake became %+v", c)
		}
		if _, ok := r.Lookup(mustParse(t, "/lxc/web")); ok {
			t.Error("LXC has names from nowhere")
		}
		if c := await(t, r, faked); c.Pod != "mine" {
			t.Errorf("a tenant's fake became %+v", c)
		}
	}
	for _, id := range f.askedFor() {
		if id != idA {
			t.Errorf("the runtime was asked for %s", id)
		}
	}
	none := NewResolver(Options{Sockets: []string{}})
	if _, ok := none.Resolve(t.Context(), pod(t, idA)); ok || len(none.Found(t.Context())) != 0 {
		t.Error("with no socket configured, somebody was asked")
	}
}

// A socket that does harm, and next to it one that works.
func TestHostileSocket(t *testing.T) {
	grpcAnswer := func(trailer string, frames ...[]byte) func(*testing.T) string {
		return func(t *testing.T) string {
			return serveHTTP(t, "cri.sock", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("Trailer", "Grpc-Status")
				for _, f := range frames {
					_, _ = w.Write(f)
				}
				w.Header().Set("Grpc-Status", trailer)
			})
		}
	}
	frame := func(msg []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	}
	status := func(pod string) []byte {
		label := func(k, v string) []byte { return sub(12, append(str(1, k), str(2, v)...)) }
		return frame(sub(1, append(append(str(1, idA), label(labelPod, pod)...), label(labelNamespace, "n")...)))
	}
	conns := func(f func(net.Conn)) func(*testing.T) string {
		return func(t *testing.T) string {
			path, _ := serveConns(t, f)
			return path
		}
	}
	// The same by hand, without the harm, is understood.
	sound := NewResolver(Options{Sockets: []string{grpcAnswer("0", status("web-0"))(t)}})
	if c, ok := sound.Resolve(t.Context(), pod(t, idA)); !ok || c.Pod != "web-0" {
		t.Fatalf("a sound answer gives %+v, %v", c, ok)
	}
	preface := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0} // an empty SETTINGS frame

	tests := map[string]func(*testing.T) string{
		"does not exist": func(t *testing.T) string { return filepath.Join(t.TempDir(), "none.sock") },
		"nobody listens": func(t *testing.T) string {
			l, path := listen(t, "cri.sock")
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			l.Close()
			return path
		},
		"is a file": func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "cri.sock")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		},
		"never accepts":  func(t *testing.T) string { _, path := listen(t, "cri.sock"); return path },
		"closes at once": conns(func(net.Conn) {}),
		"never answers":  conns(func(c net.Conn) { drain(c) }),
		"never reads": func(t *testing.T) string {
			path, _ := serveConns(t, func(net.Conn) { <-t.Context().Done() })
			return path
		},
		"speaks HTTP/2 and never answers": conns(func(c net.Conn) {
			_, _ = c.Write(preface)
			drain(c)
		}),
		"drips": conns(func(c net.Conn) {
			for _, b := range append(preface, make([]byte, 1<<16)...) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}),
		"answers garbage": conns(func(c net.Conn) { _, _ = c.Write([]byte(strings.Repeat("\x00\xff\x1b[2J garbage\n", 999))); drain(c) }),
		"floods":          conns(func(c net.Conn) { flood(c, make([]byte, 1<<16)) }),
		"floods with SETTINGS": conns(func(c net.Conn) {
			go drain(c)
			flood(c, []byte(strings.Repeat(string(preface), 1000)))
		}),
		"speaks HTTP/1": conns(func(c net.Conn) {
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
			drain(c)
		}),
		"serves a web site": func(t *testing.T) string {
			return serveHTTP(t, "cri.sock", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(status("web-0")) })
		},
		"redirects": func(t *testing.T) string {
			return serveHTTP(t, "cri.sock", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			})
		},
		"huge header": func(t *testing.T) string {
			return serveHTTP(t, "cri.sock", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("X", strings.Repeat("x", 512<<10))
				_, _ = w.Write(status("web-0"))
			})
		},
		"never ends": func(t *testing.T) string {
			return serveHTTP(t, "cri.sock", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/grpc")
				for {
					if _, err := w.Write(make([]byte, 1<<16)); err != nil {
						return
					}
				}
			})
		},
		"no CRI":                      grpcAnswer("12"),
		"no status":                   grpcAnswer("", status("web-0")),
		"a status of words":           grpcAnswer("fine\x1b[2J", status("web-0")),
		"no message":                  grpcAnswer("0"),
		"a frame that is cut off":     grpcAnswer("0", status("web-0")[:20]),
		"a frame that lies":           grpcAnswer("0", []byte{0, 0xff, 0xff, 0xff, 0xff}),
		"compressed":                  grpcAnswer("0", append([]byte{1}, status("web-0")[1:]...)),
		"two messages":                grpcAnswer("0", status("web-0"), status("web-0")),
		"broken protobuf":             grpcAnswer("0", frame([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1})),
		"an empty message":            grpcAnswer("0", frame(nil)),
		"another container's":         grpcAnswer("0", frame(sub(1, str(1, idB)))),
		"a huge name":                 grpcAnswer("0", status(strings.Repeat("x", 100_000))),
		"a name with an escape in it": grpcAnswer("0", status("web\x1b[2J")),
		"a name of two lines":         grpcAnswer("0", status("web\nevent=signal")),
		"a name that is not UTF-8":    grpcAnswer("0", status("web\xff")),
		"a huge message":              grpcAnswer("0", status(strings.Repeat("x", 2*maxAnswer))),
	}
	// What a tenant may have made so will be no better later: there are no names.
	final := []string{"never ends", "a huge message", "a huge name", "a name with an escape in it", "a name of two lines", "a name that is not UTF-8"}
	for name, serve := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, final := serve(t), slices.Contains(final, name)
			timeout := 200 * time.Millisecond
			if final {
				timeout = 10 * time.Second // it is what comes that ends it
			}
			f := &fakeCRI{}
			f.put(kubeletContainer(idA, "good"))

			// Alone it gives no name, and nobody waits for it.
			r := NewResolver(Options{Sockets: []string{bad}})
			r.sockets[0].timeout = timeout
			run(t, r)
			took := make([]time.Duration, 1000)
			for i := range took {
				began := time.Now()
				if c, ok := r.Lookup(pod(t, idA)); ok && !final || c != pod(t, idA).Container() {
					t.Fatalf("got a name: %+v", c)
				}
				took[i] = time.Since(began)
			}
			// In the loop that decides nobody waits, as seldom as the machine has time.
			if slices.Sort(took); took[500] > 2*time.Millisecond {
				t.Errorf("half of 1,000 look-ups took %v and more", took[500])
			}
			if c, ok := r.Resolve(t.Context(), pod(t, idA)); ok != final || c != pod(t, idA).Container() {
				t.Errorf("got a name: %+v, %t", c, ok)
			}

			// Before another it costs that one's names no more than a pause.
			r = NewResolver(Options{Sockets: []string{bad, serveCRI(t, f)}})
			r.sockets[0].timeout = timeout
			run(t, r)
			if c := await(t, r, pod(t, idA)); c.Pod != "good" {
				t.Errorf("got %+v", c)
			}
		})
	}
}

// answerer answers every request as it likes.
type answerer func(*http.Request) *http.Response

func (f answerer) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// Whatever a runtime answers, it can add names that can be shown, and cannot
// change what the path says.
func FuzzAnswer(f *testing.F) {
	marshal := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	status := marshal(&cri.ContainerStatusResponse{Status: kubeletContainer(idA, "web-0")})
	bare := marshal(&cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: idA, Metadata: &cri.ContainerMetadata{Name: "db"}}})
	list := marshal(&cri.ListContainersResponse{Containers: []*cri.Container{{Id: idA, PodSandboxId: idC}}})
	sandbox := marshal(&cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: idC, Metadata: &cri.PodSandboxMetadata{Name: "db-0", Uid: uidA, Namespace: "tenant-b"},
	}})
	version := marshal(&cri.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "v1.2.3"})
	engine := []byte(`{"Id":"` + idA + `","Name":"/lucid_bose","Config":{"Image":"alpine:3","Labels":{"` + labelPodUID + `":"` + uidA +
		`","` + labelPod + `":"kube-proxy","` + labelNamespace + `":"kube-system","` + labelContainer + `":"proxy"}}}`)
	f.Add(200, "application/grpc", "0", "", status, list, sandbox, version)
	f.Add(200, "application/grpc+proto", "0", "", bare, slices.Concat(list, list, list), sandbox, version)
	f.Add(200, "application/grpc", "5", "container \x1b 100%25 %zz", status, list, sandbox, version)
	f.Add(200, "application/grpc", "12", "", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, []byte{}, []byte{}, []byte{0x12, 1, '\n'})
	f.Add(200, "application/json", "", "", engine, engine, engine, []byte(`{"Version":"20.10"}`))
	f.Add(200, "application/json", "", "", []byte(`{"Id":{}}`), []byte(`{"Id":"`+idA+`","Name":7}`), engine, []byte(`{"Version":"\u202e"}`))
	other := bytes.ReplaceAll(status, []byte(idA), []byte(idB))
	f.Add(200, "application/grpc", "0", "", other, list, sandbox, version)
	other = bytes.ReplaceAll(engine, []byte(idA), []byte(idB))
	f.Add(200, "application/json", "", "", other, other, other, []byte{})
	f.Add(200, "application/json", "", "", bytes.Replace(engine, []byte(labelPodUID), []byte("x"), 1), []byte{}, []byte{}, []byte{})
	f.Add(404, "\x1b[2J", "", "", []byte{}, []byte{}, []byte{}, []byte("\x1b"))
	cgroups := []string{systemdPod + "/cri-containerd-" + idA + ".scope", "/docker/" + idA, "/kubepods/pod" + uidA + "/" + idA, "/libpod_parent/libpod-" + idA}
	f.Fuzz(func(t *testing.T, code int, contentType, grpcStatus, grpcMessage string, status, list, sandbox, version []byte) {
		asked := 0
		answer := answerer(func(r *http.Request) *http.Response {
			asked++
			body := status
			switch path.Base(r.URL.Path) {
			case "ListContainers":
				body = list
			case "PodSandboxStatus":
				body = sandbox
			case "Version", "version":
				body = version
			}
			if r.Method == http.MethodPost {
				body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
			}
			return &http.Response{
				StatusCode: code, Status: fmt.Sprint(code), Body: io.NopCloser(bytes.NewReader(body)),
				Header:  http.Header{"Content-Type": {contentType}},
				Trailer: http.Header{"Grpc-Status": {grpcStatus}, "Grpc-Message": {grpcMessage}},
			}
		})
		for _, name := range []string{"cri.sock", "docker.sock", "podman.sock"} {
			for _, cgroup := range cgroups {
				ref, _ := Parse(cgroup)
				said := ref.Container()
				r := NewResolver(Options{Sockets: []string{name}})
				r.sockets[0].client = &http.Client{Transport: answer}
				asked = 0
				got, ok := r.Resolve(t.Context(), ref)
				if asked > 4 {
					t.Errorf("%s was asked %d questions for one container", name, asked)
				}
				kept := got
				kept.Pod, kept.Namespace, kept.Name, kept.Image = "", "", "", ""
				if kept.GracePeriod < 0 || kept.GracePeriod > 24*time.Hour {
					t.Errorf("%s: a grace period of %s", name, kept.GracePeriod)
				}
				kept.GracePeriod = 0
				if said.Runtime == "" {
					kept.Runtime = ""
				}
				if said.PodUID == "" {
					kept.PodUID = ""
				}
				if kept != said || !ok && got != said {
					t.Errorf("%s says of %s that it is %+v", name, cgroup, got)
				}
				var engine struct {
					ID string `json:"Id"`
				}
				about := bytes.Contains(slices.Concat(status, sandbox), []byte(idA))
				if name != "cri.sock" {
					about = bytes.Contains(status, []byte(idA)) || json.Unmarshal(status, &engine) == nil && engine.ID == idA
				}
				if ok && !about {
					t.Errorf("%s speaks of another, and %s is %+v", name, cgroup, got)
				}
				if name != "cri.sock" && said.PodUID == "" && got.Pod+got.Namespace+got.PodUID != "" {
					t.Errorf("%s makes a pod of %s: %+v", name, cgroup, got)
				}
				for _, s := range []string{got.Runtime, got.PodUID, got.Pod, got.Namespace, got.Name, got.Image} {
					if len(s) > 512 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
						t.Errorf("%s says %q", name, s)
					}
				}
				st := r.sockets[0].status(t.Context())
				text := st.Runtime + st.Version
				if st.Err != nil {
					text = st.Err.Error()
				}
				if len(text) > 1500 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%s: %q", name, text)
				}
			}
		}
	})
}

func drain(c net.Conn) {
	buf := make([]byte, 4096)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

func flood(c net.Conn, b []byte) {
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// A socket that fails is left alone for longer and longer, and believed again.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSocket("/nowhere/cri.sock")
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			if changed := s.result(false); changed != (i == 0) {
				t.Errorf("failure %d: changed = %v", i, changed)
			}
			if got := time.Until(s.paused()); got != want*time.Second {
				t.Errorf("failure %d: a pause of %v, want %v", i, got, want*time.Second)
			}
		}
		if !s.result(true) || s.result(true) {
			t.Error("only the first success is a change")
		}
		s.result(false)
		if got := time.Until(s.paused()); got != time.Second {
			t.Errorf("a failure after a success: a pause of %v", got)
		}
	})

	path, count := serveConns(t, func(net.Conn) {})
	r := start(t, Options{Sockets: []string{path}})
	for i := range 200 {
		r.Lookup(pod(t, fmt.Sprintf("%064x", i)))
	}
	time.Sleep(100 * time.Millisecond)
	if n := count.Load(); n > 3 {
		t.Errorf("%d connections to a dead socket at once", n)
	}
}

// A container that the runtime did not know yet is asked for again, one that
// is gone keeps its name, one that is renamed gets the new one.
func TestRefresh(t *testing.T) {
	f := &fakeCRI{}
	r := NewResolver(Options{Sockets: []string{serveCRI(t, f)}})
	ref := pod(t, idA)
	elapse := func() {
		r.mu.Lock()
		r.get(idA).due = time.Time{}
		r.mu.Unlock()
	}
	resolve := func(want string) {
		t.Helper()
		if c, ok := r.Resolve(t.Context(), ref); ok != (want != "") || c.Pod != want {
			t.Fatalf("got %+v, %v; want pod %q", c, ok, want)
		}
	}
	resolve("")
	f.put(kubeletContainer(idA, "web-0"))
	resolve("") // too soon
	if n := len(f.askedFor()); n != 1 {
		t.Fatalf("asked %d times for a container that does not exist", n)
	}
	elapse()
	resolve("web-0")
	f.put(kubeletContainer(idA, "web-1"))
	resolve("web-0")
	if n := len(f.askedFor()); n != 2 {
		t.Fatalf("asked %d times for a container whose name is known", n)
	}
	elapse()
	resolve("web-1")
	f.mu.Lock()
	clear(f.containers)
	f.mu.Unlock()
	elapse()
	resolve("web-1")
}

func TestCacheIsBounded(t *testing.T) {
	f := &fakeCRI{}
	f.put(kubeletContainer(idA, "web-0"))
	r := NewResolver(Options{Sockets: []string{serveCRI(t, f)}})
	if _, ok := r.Resolve(t.Context(), pod(t, idA)); !ok {
		t.Fatal("no name")
	}
	for i := range 3 * maxCached {
		r.Lookup(pod(t, fmt.Sprintf("%064x", i)))
		if _, ok := r.Lookup(pod(t, idA)); !ok {
			t.Fatalf("the container that is used all the time was forgotten after %d others", i)
		}
	}
	if len(r.cache) != maxCached || r.used.Len() != maxCached || len(r.queue) != maxQueued {
		t.Errorf("%d containers, %d in order of use, %d queued", len(r.cache), r.used.Len(), len(r.queue))
	}
}

func TestFound(t *testing.T) {
	good := serveCRI(t, &fakeCRI{})
	docker := serveJSON(t, "docker.sock", map[string]any{"GET /version": map[string]any{"Version": "20.10.24"}})
	hang, _ := serveConns(t, func(c net.Conn) { drain(c) })
	none := filepath.Join(t.TempDir(), "none.sock")
	l, nocri := listen(t, "cri.sock")
	g := grpc.NewServer()
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })

	r := NewResolver(Options{Sockets: []string{good, docker, hang, none, nocri}})
	began := time.Now()
	got := r.Found(t.Context())
	if d := time.Since(began); d > 2*callTimeout {
		t.Errorf("it took %v", d)
	}
	if len(got) != 5 {
		t.Fatalf("got %+v", got)
	}
	if want := (RuntimeStatus{Socket: good, API: APICRI, Runtime: "containerd", Version: "v1.2.3"}); got[0] != want {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
	if want := (RuntimeStatus{Socket: docker, API: APIDocker, Runtime: "docker", Version: "20.10.24"}); got[1] != want {
		t.Errorf("got %+v, want %+v", got[1], want)
	}
	if !errors.Is(got[2].Err, context.DeadlineExceeded) {
		t.Errorf("one that never answers: %v", got[2].Err)
	}
	if !errors.Is(got[3].Err, fs.ErrNotExist) {
		t.Errorf("one that does not exist: %v", got[3].Err)
	}
	if err := got[4].Err; err == nil || !strings.Contains(err.Error(), "not to CRI") {
		t.Errorf("a gRPC server without CRI: %v", err)
	}

	// At the usual places only what exists is worth a word.
	r = NewResolver(Options{})
	r.sockets = []*socket{newSocket(none), newSocket(good)}
	if got := r.Found(t.Context()); len(got) != 1 || got[0].Socket != good {
		t.Errorf("at the usual places: %+v", got)
	}
}

// A runtime that gives no names is a problem before the first container wants one.
func TestMuteRuntimeIsAProblem(t *testing.T) {
	mute := filepath.Join(t.TempDir(), "containerd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: mute})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	f := &fakeCRI{}
	r := start(t, Options{Sockets: []string{mute, serveCRI(t, f)}})
	deadline := time.Now().Add(patience)
	for len(r.Problems()) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("no problem")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if p := r.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], mute+": cannot get container names: ") || !strings.Contains(p[0], "refused") {
		t.Errorf("%q", p)
	}
}
