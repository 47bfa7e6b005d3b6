package runtimes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// engine is dockerd, or podman's service, which speaks the same language.
type engine struct {
	w      *world
	api    string // the socket
	client *http.Client
}

func startDocker(t *testing.T) *engine {
	need(t, "containerd", "containerd-shim-runc-v2", "runc", "dockerd")
	w := newWorld(t)
	c := startContainerd(w, false)
	e := newEngine(w, w.path("docker.sock"))
	s := w.serve("dockerd", "dockerd", "--config-file="+w.write("daemon.json", "{}"), "--host=unix://"+e.api,
		"--containerd="+c.address, "--containerd-namespace="+prefix+"docker", "--containerd-plugins-namespace="+prefix+"plugins",
		"--data-root="+w.path("data"), "--exec-root="+w.path("exec"), "--pidfile="+w.path("docker.pid"),
		"--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs",
		"--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false")
	e.ready(s)
	return e
}

func startPodman(t *testing.T) *engine {
	need(t, "podman", "conmon", "runc")
	w := newWorld(t)
	e := newEngine(w, w.path("podman.sock"))
	// The locks in a file: in shared memory they are those of the machine's own podman.
	conf := w.write("containers.conf", `
[containers]
cgroups = "enabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "`+w.path("tmp")+`"
[network]
network_config_dir = "`+w.path("net")+`"
`)
	storage := w.write("storage.conf", fmt.Sprintf("[storage]\ndriver = \"vfs\"\nrunroot = %q\ngraphroot = %q\n", w.path("run"), w.path("root")))
	s := w.serve("podman", "env", "CONTAINERS_CONF="+conf, "CONTAINERS_STORAGE_CONF="+storage,
		"podman", "system", "service", "--time=0", "unix://"+e.api)
	e.ready(s)
	return e
}

func newEngine(w *world, api string) *engine {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", api)
		},
		DisableKeepAlives: true,
	}
	return &engine{w: w, api: api, client: &http.Client{Transport: tr, Timeout: patience}}
}

// ready waits until it answers, and loads the images.
func (e *engine) ready(s *service) {
	e.w.t.Helper()
	s.await("an answer from the engine", func() bool {
		resp, err := e.client.Get("http://localhost/_ping")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	e.call(http.MethodPost, "/images/load", "application/x-tar", images(e.w.t, e.w), nil)
}

// call makes a request that has to succeed, and decodes the answer into v if it
// is not nil.
func (e *engine) call(method, path, contentType string, body []byte, v any) {
	e.w.t.Helper()
	req, err := http.NewRequest(method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		e.w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := e.client.Do(req)
	if err != nil {
		e.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	if err == nil && v != nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		e.w.t.Fatalf("%s %s: %v: %s", method, path, err, text)
	}
}

func (e *engine) post(path string, body, v any) {
	e.w.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		e.w.t.Fatal(err)
	}
	e.call(http.MethodPost, path, "application/json", text, v)
}

func (e *engine) world() *world  { return e.w }
func (e *engine) socket() string { return e.api }

// match is the part of a rule that is about a container of this name.
func (e *engine) match(_, name string) string { return fmt.Sprintf("container: %q", name) }

func (e *engine) run(_, name string, script ...string) box {
	e.w.t.Helper()
	return e.create(name, map[string]any{
		"Image": imageZoo,
		"Cmd":   script,
		"HostConfig": map[string]any{
			"NetworkMode":  "none",
			"CgroupParent": e.w.cgroup() + "/docker",
		},
	})
}

// create creates a container and starts it.
func (e *engine) create(name string, spec map[string]any) *engineBox {
	e.w.t.Helper()
	b := &engineBox{e: e, name: name}
	var created struct{ ID string }
	e.post("/containers/create?name="+name, spec, &created)
	b.id = created.ID
	e.w.t.Cleanup(func() { e.call(http.MethodDelete, "/containers/"+b.id+"?force=1", "", nil, nil) })
	b.again()
	return b
}

type engineBox struct {
	e        *engine
	id, name string
}

type engineState struct {
	State struct {
		Status   string
		Pid      int
		ExitCode int
	}
}

func (b *engineBox) state() engineState {
	var s engineState
	b.e.call(http.MethodGet, "/containers/"+b.id+"/json", "", nil, &s)
	return s
}

func (b *engineBox) identity() identity { return identity{id: b.id, name: b.name, image: imageZoo} }
func (b *engineBox) pid() int           { return b.state().State.Pid }

func (b *engineBox) exitCode() (int, bool) {
	s := b.state().State
	return s.ExitCode, s.Status == "exited"
}

func (b *engineBox) again() {
	b.e.w.t.Helper()
	b.e.post("/containers/"+b.id+"/start", nil, nil)
}

func (b *engineBox) exec(args ...string) {
	b.e.w.t.Helper()
	var created struct{ ID string }
	b.e.post("/containers/"+b.id+"/exec", map[string]any{"Cmd": args, "AttachStdout": true}, &created)
	b.e.post("/exec/"+created.ID+"/start", map[string]any{"Detach": false}, nil)
	for end := time.Now().Add(patience); ; {
		var s struct {
			Running  bool
			ExitCode int
		}
		b.e.call(http.MethodGet, "/exec/"+created.ID+"/json", "", nil, &s)
		if !s.Running {
			if s.ExitCode != 0 {
				b.e.w.t.Fatalf("exec %q ended with %d", args, s.ExitCode)
			}
			return
		}
		if time.Now().After(end) {
			b.e.w.t.Fatalf("exec %q does not end", args)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
