package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerd is one, with pods through CRI as kubelet makes them.
type containerd struct {
	w       *world
	address string
	cri     cri.RuntimeServiceClient
	pods    map[string]*pod
}

// startContainerd starts it; without CRI it is for dockerd.
func startContainerd(w *world, withCRI bool) *containerd {
	w.t.Helper()
	c := &containerd{w: w, address: w.path("containerd.sock"), pods: make(map[string]*pod)}
	disabled := ""
	if !withCRI {
		disabled = `"io.containerd.grpc.v1.cri"`
	}
	config := w.write("containerd.toml", fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = [%s]
[grpc]
address = %q
[plugins."io.containerd.internal.v1.opt"]
path = %q
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = %q
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = %q
bin_dir = %q
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = %q
`, w.path("root"), w.path("state"), disabled, c.address, w.path("opt"), imagePause, w.path("cni"), w.path("cni"), w.path("runc")))
	s := w.serve("containerd", "containerd", "--config", config)
	s.await("the socket of containerd", func() bool {
		_, err := os.Stat(c.address)
		return err == nil
	})
	if !withCRI {
		return c
	}

	conn, err := grpc.NewClient("unix://"+c.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	c.cri = cri.NewRuntimeServiceClient(conn)
	s.await("CRI", func() bool {
		_, err := c.cri.Version(w.t.Context(), &cri.VersionRequest{})
		return err == nil
	})
	archive := w.write("images.tar", string(images(w.t, w)))
	w.command("ctr", "--address", c.address, "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", archive)
	known := cri.NewImageServiceClient(conn)
	for _, name := range []string{imageZoo, imageKzr, imagePause} {
		s.await("CRI to know the image "+name, func() bool {
			st, err := known.ImageStatus(w.t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
			return err == nil && st.Image != nil
		})
	}
	return c
}

func startCRI(t *testing.T) *containerd {
	need(t, "containerd", "containerd-shim-runc-v2", "runc", "ctr")
	return startContainerd(newWorld(t), true)
}

func (c *containerd) world() *world  { return c.w }
func (c *containerd) socket() string { return c.address }

func (c *containerd) match(namespace, _ string) string {
	return fmt.Sprintf("namespace: %q", namespace)
}

// A pod is one per namespace.
type pod struct {
	id     string
	uid    string
	config *cri.PodSandboxConfig
}

func (c *containerd) pod(namespace string, pid cri.NamespaceMode) *pod {
	t := c.w.t
	t.Helper()
	if p := c.pods[namespace]; p != nil {
		return p
	}
	p := &pod{uid: fmt.Sprintf("00000000-0000-4000-8000-%012x", len(c.pods)+1)}
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web-0", Namespace: namespace, Uid: p.uid},
		LogDirectory: c.w.path("logs-" + namespace),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: c.w.cgroup() + "/kubepods/besteffort/pod" + p.uid,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: namespaces(pid),
				Privileged:       pid == cri.NamespaceMode_NODE,
			},
		},
	}
	made, err := c.cri.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatal("making a pod:", err)
	}
	p.id = made.PodSandboxId
	c.pods[namespace] = p
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := c.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
		if err == nil {
			_, err = c.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
		}
		if err != nil {
			t.Error("removing a pod:", err)
		}
	})
	return p
}

func namespaces(pid cri.NamespaceMode) *cri.NamespaceOption {
	return &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: pid}
}

func (c *containerd) run(namespace, name string, script ...string) box {
	c.w.t.Helper()
	return c.runIn(cri.NamespaceMode_CONTAINER, namespace, name, script...)
}

// runIn starts a container with its own pid namespace, or that of its pod.
func (c *containerd) runIn(mode cri.NamespaceMode, namespace, name string, script ...string) *criBox {
	c.w.t.Helper()
	b := &criBox{c: c, pod: c.pod(namespace, mode), config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: imageZoo},
		Args:     script,
		LogPath:  name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: namespaces(mode),
		}},
	}}
	b.again()
	return b
}

// sandbox is the pid of the pod's pause process.
func (c *containerd) sandbox(p *pod) int {
	t := c.w.t
	t.Helper()
	st, err := c.cri.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(st.Info["info"]), &info); err != nil {
		t.Fatal("the pid of a sandbox: ", err)
	}
	return info.Pid
}

// criBox is a container of a pod through all its restarts.
type criBox struct {
	c      *containerd
	pod    *pod
	config *cri.ContainerConfig
	id     string
}

// again starts it, or starts the next one in its place as kubelet does: with
// another id and the next number.
func (b *criBox) again() {
	t := b.c.w.t
	t.Helper()
	if b.id != "" {
		if _, err := b.c.cri.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: b.id}); err != nil {
			t.Fatal("removing a container:", err)
		}
		b.config.Metadata.Attempt++
	}
	m := b.config.Metadata
	b.config.Labels = map[string]string{
		"io.kubernetes.pod.name":       b.pod.config.Metadata.Name,
		"io.kubernetes.pod.namespace":  b.pod.config.Metadata.Namespace,
		"io.kubernetes.pod.uid":        b.pod.uid,
		"io.kubernetes.container.name": m.Name,
	}
	made, err := b.c.cri.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: b.pod.id, Config: b.config, SandboxConfig: b.pod.config,
	})
	if err == nil {
		b.id = made.ContainerId
		_, err = b.c.cri.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: b.id})
	}
	if err != nil {
		t.Fatalf("starting container %s: %v", m.Name, err)
	}
}

func (b *criBox) status() *cri.ContainerStatusResponse {
	b.c.w.t.Helper()
	st, err := b.c.cri.ContainerStatus(b.c.w.t.Context(), &cri.ContainerStatusRequest{ContainerId: b.id, Verbose: true})
	if err != nil {
		b.c.w.t.Fatal(err)
	}
	return st
}

func (b *criBox) identity() identity {
	m := b.pod.config.Metadata
	return identity{id: b.id, name: b.config.Metadata.Name, image: imageZoo, pod: m.Name, namespace: m.Namespace, uid: m.Uid}
}

func (b *criBox) pid() int {
	b.c.w.t.Helper()
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(b.status().Info["info"]), &info); err != nil {
		b.c.w.t.Fatal("the pid of a container: ", err)
	}
	return info.Pid
}

func (b *criBox) exitCode() (int, bool) {
	st := b.status().Status
	return int(st.ExitCode), st.State == cri.ContainerState_CONTAINER_EXITED
}

func (b *criBox) exec(args ...string) {
	t := b.c.w.t
	t.Helper()
	got, err := b.c.cri.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: b.id, Cmd: args, Timeout: 30})
	if err != nil {
		t.Fatalf("exec %q: %v", args, err)
	}
	if got.ExitCode != 0 {
		t.Fatalf("exec %q ended with %d: %s%s", args, got.ExitCode, got.Stdout, got.Stderr)
	}
}

// runKzr starts kzr as a DaemonSet would: privileged, in the host's pid
// namespace, with the runtime's socket.
func (c *containerd) runKzr(config string) *watcher {
	t := c.w.t
	t.Helper()
	p := c.pod("kzr-system", cri.NamespaceMode_NODE)
	b := &criBox{c: c, pod: p, config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "kzr"},
		Image:    &cri.ImageSpec{Image: imageKzr},
		Args:     []string{"run", "--config", config},
		LogPath:  "kzr.log",
		Mounts:   []*cri.Mount{{HostPath: c.w.dir, ContainerPath: c.w.dir, Readonly: true}},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			Privileged: true, NamespaceOptions: namespaces(cri.NamespaceMode_NODE),
		}},
	}}
	b.again()
	exited := make(chan struct{})
	k := &watcher{service: &service{t: t, once: true, exited: exited}, log: p.config.LogDirectory + "/kzr.log", skip: 3}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(k.log)
			t.Logf("the log of kzr in its pod:\n%s", strings.TrimSpace(string(text)))
		}
	})
	k.started()
	return k
}
