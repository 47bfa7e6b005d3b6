package container

import (
	"strings"
	"testing"

	"kzr/internal/task"
)

var (
	idA  = strings.Repeat("a1", 32)
	idB  = strings.Repeat("b2", 32)
	idC  = strings.Repeat("c3", 32)
	idD  = strings.Repeat("d4", 32)
	uidA = "8f14e45f-ceea-467f-a0e6-0d1f1c2b3a4d"
)

const (
	systemdPod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8f14e45f_ceea_467f_a0e6_0d1f1c2b3a4d.slice"
	userUnit   = "/user.slice/user-1000.slice/user@1000.service"
)

// The single containers. Where a vector was seen by somebody else its source is
// named; the others are built from what the runtime's own source does.
func TestParse(t *testing.T) {
	tests := []struct {
		name, path       string
		runtime, id, pod string
	}{
		// Kubernetes, systemd driver.
		{"systemd containerd", systemdPod + "/cri-containerd-" + idA + ".scope", "containerd", idA, uidA},
		{"systemd CRI-O", systemdPod + "/crio-" + idA + ".scope", "cri-o", idA, uidA},
		{"systemd docker", systemdPod + "/docker-" + idA + ".scope", "docker", idA, uidA},
		{"systemd guaranteed", "/kubepods.slice/kubepods-pod8f14e45f_ceea_467f_a0e6_0d1f1c2b3a4d.slice/cri-containerd-" + idA + ".scope", "containerd", idA, uidA},
		{"systemd, systemd inside", systemdPod + "/cri-containerd-" + idA + ".scope/system.slice/ssh.service", "containerd", idA, uidA},
		{"systemd, a pod uid that is none", "/kubepods.slice/kubepods-podweb.slice/cri-containerd-" + idA + ".scope", "containerd", idA, ""},
		{
			"coroot-node-agent fixtures/proc/400, docker under kubepods.slice",
			"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8712f785_1a3e_41ec_a00b_e2dcc77431cb.slice/docker-73051af271105c07e1f493b34856a77e665e3b0b4fc72f76c807dfbffeb881bd.scope",
			"docker", "73051af271105c07e1f493b34856a77e665e3b0b4fc72f76c807dfbffeb881bd", "8712f785-1a3e-41ec-a00b-e2dcc77431cb",
		},
		{
			"coroot-node-agent cgroup_test.go, crun's /container",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podea19ff5d_943a_4466_a07e_a71e9e50cc62.slice/crio-21572039dd8398ff8272b031fa5422a40165145ab37f2f8794e1e7f844fe8118.scope/container",
			"cri-o", "21572039dd8398ff8272b031fa5422a40165145ab37f2f8794e1e7f844fe8118", "ea19ff5d-943a-4466-a07e-a71e9e50cc62",
		},
		{
			"coroot-node-agent cgroup_test.go, static pod, no .scope",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3e61c214bc3ed9ff81e21474dd6cba17.slice/cri-containerd-c74b0f5062f0bc726cae1e9369ad4a95deed6b298d247f0407475adb23fa3190",
			"containerd", "c74b0f5062f0bc726cae1e9369ad4a95deed6b298d247f0407475adb23fa3190", "3e61c214bc3ed9ff81e21474dd6cba17",
		},
		{
			"opentelemetry-ebpf-profiler process_test.go, mixed separators in the uid",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podf6f2d169_f2ae_4afa-95ed_06ff2ed6b288.slice/cri-containerd-b4d6d161c62525d726fa394b27df30e14f8ea5646313ada576b390de70cfc8cc.scope",
			"containerd", "b4d6d161c62525d726fa394b27df30e14f8ea5646313ada576b390de70cfc8cc", "f6f2d169-f2ae-4afa-95ed-06ff2ed6b288",
		},

		// Kubernetes, cgroupfs driver.
		{"cgroupfs k3s", "/kubepods/burstable/pod" + uidA + "/" + idA, "", idA, uidA},
		{
			"opentelemetry-ebpf-profiler process_test.go, cgroupfs",
			"/kubepods/besteffort/pod05e102bf-8744-4942-a241-9b6f07983a53/f52a212505a606972cf8614c3cb856539e71b77ecae33436c5ac442232fbacf8",
			"", "f52a212505a606972cf8614c3cb856539e71b77ecae33436c5ac442232fbacf8", "05e102bf-8744-4942-a241-9b6f07983a53",
		},
		{
			"opentelemetry-ebpf-profiler process_test.go, cgroupfs CRI-O",
			"/kubepods/besteffort/pod897277d4-5e6f-4999-a976-b8340e8d075e/crio-a4d6b686848a610472a2eed3ae20d4d64b6b4819feb9fdfc7fd7854deaf59ef3",
			"cri-o", "a4d6b686848a610472a2eed3ae20d4d64b6b4819feb9fdfc7fd7854deaf59ef3", "897277d4-5e6f-4999-a976-b8340e8d075e",
		},
		{
			"coroot-node-agent cgroup_test.go, mirror pod",
			"/kubepods/burstable/pod9729a196c4723b60ab401eaff722982d/d166c6190614efc91956b78e96d74c3fbc96ca8e91948c36de3bc5b0e7b27d48",
			"", "d166c6190614efc91956b78e96d74c3fbc96ca8e91948c36de3bc5b0e7b27d48", "9729a196c4723b60ab401eaff722982d",
		},
		{
			"coroot-node-agent cgroup_test.go, guaranteed",
			"/kubepods/poda38c12e8-255a-11e9-8cd9-0007cb0b2cc8/32c562ed81a2622b37b80cb216859820ba51bd694f60ee4cf10d07a4011266f8",
			"", "32c562ed81a2622b37b80cb216859820ba51bd694f60ee4cf10d07a4011266f8", "a38c12e8-255a-11e9-8cd9-0007cb0b2cc8",
		},
		{
			"coroot-node-agent cgroup_test.go, a cgroup made inside",
			"/kubepods/besteffort/pod0d08203e-255a-11e9-8cd9-0007cb0b2cc8/671a50f5d60566556912f61511d0ec9e4d5c78d53fbc4676727180438bbbbc55/kube-proxy",
			"", "671a50f5d60566556912f61511d0ec9e4d5c78d53fbc4676727180438bbbbc55", "0d08203e-255a-11e9-8cd9-0007cb0b2cc8",
		},

		// One driver's names in the other's hands.
		{
			"coroot-node-agent cgroup_test.go, v1 mismatch",
			"/system.slice/containerd.service/kubepods-burstable-pod4ed02c0b_0df8_4d14_a30e_fd589ee4143a.slice:cri-containerd:d4a9f9195eaf7e4a729f24151101e1de61f1398677e7b82acfb936dff0b4ce55",
			"containerd", "d4a9f9195eaf7e4a729f24151101e1de61f1398677e7b82acfb936dff0b4ce55", "4ed02c0b-0df8-4d14-a30e-fd589ee4143a",
		},
		{"mismatch, docker", "/system.slice:docker:" + idA, "docker", idA, ""},

		// Docker and nerdctl.
		{
			"coroot-node-agent fixtures/proc/200, docker cgroupfs",
			"/docker/b43d92bf1e5c6f78bb9b7bc6f40721280299855ba692092716e3a1b6c0b86f3f",
			"docker", "b43d92bf1e5c6f78bb9b7bc6f40721280299855ba692092716e3a1b6c0b86f3f", "",
		},
		{
			"opentelemetry-ebpf-profiler process_test.go, docker with an init",
			"/system.slice/docker-b1eba9dfaeba29d8b80532a574a03ea3cac29384327f339c26da13649e2120df.scope/init",
			"docker", "b1eba9dfaeba29d8b80532a574a03ea3cac29384327f339c26da13649e2120df", "",
		},
		{"docker below another parent", "/tenants.slice/docker-" + idA + ".scope", "docker", idA, ""},
		{"nerdctl", "/system.slice/nerdctl-" + idA + ".scope", "containerd", idA, ""},

		// Podman.
		{"podman, runc", "/machine.slice/libpod-" + idA + ".scope", "podman", idA, ""},
		{"podman, crun", "/machine.slice/libpod-" + idA + ".scope/container", "podman", idA, ""},
		{"podman in a podman pod", "/machine.slice/machine-libpod_pod_" + idB + ".slice/libpod-" + idA + ".scope", "podman", idA, ""},
		{"podman cgroupfs", "/libpod_parent/libpod-" + idA, "podman", idA, ""},
		{"podman cgroupfs, in a pod", "/libpod_parent/" + idB + "/libpod-" + idA, "podman", idA, ""},
		{"podman quadlet", "/system.slice/web.service/libpod-payload-" + idA, "podman", idA, ""},

		// LXC, Incus, Proxmox, nspawn.
		{"coroot-node-agent cgroup_test.go, LXC 2", "/lxc/mysql-primary-db", "lxc", "mysql-primary-db", ""},
		{"LXC 3", "/lxc.payload/web", "lxc", "web", ""},
		{"LXC 4, Incus", "/lxc.payload.web/system.slice/ssh.service", "lxc", "web", ""},
		{"Proxmox", "/lxc/101/ns/system.slice/cron.service", "lxc", "101", ""},
		{"nspawn", `/machine.slice/machine-my\x2dbox.scope/payload/system.slice/cron.service`, "nspawn", "my-box", ""},
		{"nspawn unit", "/machine.slice/systemd-nspawn@box.service/payload", "nspawn", "box", ""},

		// A reader in a cgroup namespace of its own.
		{"private namespace, kubepods", "/../kubepods/burstable/pod" + uidA + "/" + idA, "", idA, uidA},
		{
			"coroot-node-agent fixtures/proc/500, private namespace, docker",
			"/../../../../system.slice/docker-ba7b10d15d16e10e3de7a2dcd408a3d971169ae303f46cfad4c5453c6326fee2.scope",
			"docker", "ba7b10d15d16e10e3de7a2dcd408a3d971169ae303f46cfad4c5453c6326fee2", "",
		},
		{"private namespace, a sibling", "/../" + idA, "", idA, ""},
		{"private namespace, another pod", "/../../pod" + uidA + "/" + idA, "", idA, uidA},
		{"private namespace, systemd driver", "/../../kubepods-pod8f14e45f_ceea_467f_a0e6_0d1f1c2b3a4d.slice/crio-" + idA + ".scope", "cri-o", idA, uidA},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ref, ok := Parse(tt.path)
			if !ok {
				t.Fatalf("Parse(%q) found no container", tt.path)
			}
			got, want := ref.Container(), task.Container{Runtime: tt.runtime, ID: tt.id, PodUID: tt.pod}
			if got != want {
				t.Errorf("Parse(%q)\n got %+v\nwant %+v", tt.path, got, want)
			}
			if ref.Outer != ref.Inner {
				t.Errorf("Parse(%q) sees two containers: %+v and %+v", tt.path, ref.Outer, ref.Inner)
			}
			if ref.Delegated {
				t.Errorf("Parse(%q) takes it for a user's", tt.path)
			}
		})
	}
}

func TestParseHostSide(t *testing.T) {
	for name, path := range map[string]string{
		"empty":                    "",
		"not a path":               "docker/" + idA,
		"root":                     "/",
		"only a prefix":            "/../..",
		"init":                     "/init.scope",
		"service":                  "/system.slice/docker.service",
		"session":                  "/user.slice/user-1000.slice/session-3.scope",
		"desktop application":      userUnit + "/app.slice/app-org.gnome.Terminal.slice/vte-spawn-868f9513-eee8-457d-8e36-1b37ae8ae622.scope", // opentelemetry-ebpf-profiler
		"kubelet":                  "/kubelet.slice/kubelet.service",
		"Talos (coroot)":           "/podruntime/kubelet",
		"CRI-O monitor":            "/system.slice/crio-conmon-" + idA + ".scope",
		"CRI-O monitor, cgroupfs":  "/kubepods/burstable/pod" + uidA + "/crio-conmon-" + idA,
		"CRI-O monitor in the pod": systemdPod + "/crio-conmon-" + idA + ".scope",
		"podman monitor":           "/machine.slice/libpod-conmon-" + idA + ".scope",
		"podman monitor, rootless": userUnit + "/user.slice/libpod-conmon-" + idA + ".scope",
		"podman's own scope":       userUnit + "/user.slice/podman-1234.scope",
		"podman pod, not in it":    "/libpod_parent/" + idA,
		"monitor's children":       "/system.slice/crio-conmon-" + idA + ".scope/docker-" + idB + ".scope",
		"LXC monitor":              "/lxc.monitor.web",
		"LXC 3 monitor":            "/lxc.monitor/web",
		"LXC without a name":       "/lxc.payload.",
		"the lxc directory":        "/lxc",
		"nspawn's supervisor":      "/machine.slice/machine-box.scope/supervisor",
		"a virtual machine":        `/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator`,
		"a pod, no container":      "/kubepods/burstable/pod" + uidA,
		"kata's hypervisor":        "/kata_overhead/" + idA,
		"ctr":                      "/default/" + "redis",
		"hex in no known place":    "/foo/" + idA,
		"hex in no known place, 2": "/../foo/" + idA,
		"id too short":             "/docker/" + idA[1:],
		"id too long":              "/docker/" + idA + "0",
		"id in capitals":           "/docker/" + strings.ToUpper(idA),
		"id not hex":               "/docker/" + strings.Repeat("g", 64),
		"unknown prefix":           "/system.slice/mydocker-" + idA + ".scope",
		"prefix in capitals":       "/system.slice/Docker-" + idA + ".scope",
		"mount unit":               "/system.slice/docker-" + idA + ".mount",
		"uid of a wrong shape":     "/kubepods/pod8f14e45fcee-a-467f-a0e6-0d1f1c2b3a4d/" + idA,
	} {
		if ref, ok := Parse(path); ok {
			t.Errorf("%s: Parse(%q) = %+v, want the host side", name, path, ref)
		}
	}
}

func TestParseNested(t *testing.T) {
	docker := "/system.slice/docker-" + idA + ".scope"
	tests := []struct {
		name, path   string
		outer, inner Match
		delegated    bool
	}{
		{
			name:  "kind, cgroupfs",
			path:  docker + "/kubelet/kubepods/besteffort/pod" + uidA + "/" + idB,
			outer: Match{Runtime: "docker", ID: idA, Cgroup: docker},
			inner: Match{ID: idB, PodUID: uidA, Cgroup: docker + "/kubelet/kubepods/besteffort/pod" + uidA + "/" + idB},
		},
		{
			name:  "kind, systemd",
			path:  docker + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod8f14e45f_ceea_467f_a0e6_0d1f1c2b3a4d.slice/cri-containerd-" + idB + ".scope",
			outer: Match{Runtime: "docker", ID: idA, Cgroup: docker},
			inner: Match{Runtime: "containerd", ID: idB, PodUID: uidA, Cgroup: docker + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod8f14e45f_ceea_467f_a0e6_0d1f1c2b3a4d.slice/cri-containerd-" + idB + ".scope"},
		},
		{
			name:  "docker in a pod",
			path:  systemdPod + "/cri-containerd-" + idA + ".scope/docker/" + idB + "/child",
			outer: Match{Runtime: "containerd", ID: idA, PodUID: uidA, Cgroup: systemdPod + "/cri-containerd-" + idA + ".scope"},
			inner: Match{Runtime: "docker", ID: idB, Cgroup: systemdPod + "/cri-containerd-" + idA + ".scope/docker/" + idB},
		},
		{
			name:  "three deep",
			path:  "/lxc.payload.box" + docker + "/docker/" + idB + "/docker/" + idC,
			outer: Match{Runtime: "lxc", ID: "box", Cgroup: "/lxc.payload.box"},
			inner: Match{Runtime: "docker", ID: idC, Cgroup: "/lxc.payload.box" + docker + "/docker/" + idB + "/docker/" + idC},
		},
		{
			// A tenant pretends to be another's container.
			name:  "fake below a real one",
			path:  docker + "/docker-" + idB + ".scope",
			outer: Match{Runtime: "docker", ID: idA, Cgroup: docker},
			inner: Match{Runtime: "docker", ID: idB, Cgroup: docker + "/docker-" + idB + ".scope"},
		},
		{
			// A tenant pretends to be the runtime's monitor.
			name:  "fake monitor below a real one",
			path:  docker + "/crio-conmon-" + idB + ".scope/lxc.monitor.x",
			outer: Match{Runtime: "docker", ID: idA, Cgroup: docker},
			inner: Match{Runtime: "docker", ID: idA, Cgroup: docker},
		},
		{
			name:      "podman rootless",
			path:      userUnit + "/user.slice/libpod-" + idA + ".scope/container",
			outer:     Match{Runtime: "podman", ID: idA, Cgroup: userUnit + "/user.slice/libpod-" + idA + ".scope"},
			inner:     Match{Runtime: "podman", ID: idA, Cgroup: userUnit + "/user.slice/libpod-" + idA + ".scope"},
			delegated: true,
		},
		{
			// A host user pretends to be a pod's container.
			name:      "fake in a user's subtree",
			path:      userUnit + "/app.slice/cri-containerd-" + idA + ".scope",
			outer:     Match{Runtime: "containerd", ID: idA, Cgroup: userUnit + "/app.slice/cri-containerd-" + idA + ".scope"},
			inner:     Match{Runtime: "containerd", ID: idA, Cgroup: userUnit + "/app.slice/cri-containerd-" + idA + ".scope"},
			delegated: true,
		},
		{
			name:      "fake seen from a private namespace",
			path:      "/../.." + userUnit + "/docker/" + idA,
			outer:     Match{Runtime: "docker", ID: idA, Cgroup: "/../.." + userUnit + "/docker/" + idA},
			inner:     Match{Runtime: "docker", ID: idA, Cgroup: "/../.." + userUnit + "/docker/" + idA},
			delegated: true,
		},
		{
			name:  "a user's session inside a container is the container's",
			path:  "/lxc.payload.box" + userUnit + "/user.slice/libpod-" + idA + ".scope",
			outer: Match{Runtime: "lxc", ID: "box", Cgroup: "/lxc.payload.box"},
			inner: Match{Runtime: "podman", ID: idA, Cgroup: "/lxc.payload.box" + userUnit + "/user.slice/libpod-" + idA + ".scope"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := Ref{Outer: tt.outer, Inner: tt.inner, Delegated: tt.delegated}
			if got, ok := Parse(tt.path); !ok || got != want {
				t.Errorf("Parse(%q), %v\n got %+v\nwant %+v", tt.path, ok, got, want)
			}
		})
	}

	// kzr goes by the pod, and shows the docker inside it for what it is.
	ref, _ := Parse(tests[2].path)
	if got := ref.Container(); got.PodUID != uidA || got.ID != ref.Outer.ID {
		t.Errorf("docker in a pod is %+v, want the outer id and pod", got)
	}
	if got := ref.Nested(); got == nil || got.PodUID != "" || got.ID != idB {
		t.Errorf("inside is %+v, want the inner id and no pod", got)
	}
	if pod, _ := Parse(ref.Outer.Cgroup); pod.Nested() != nil {
		t.Errorf("a pod that holds nothing: inside is %+v", pod.Nested())
	}
}

func TestUnit(t *testing.T) {
	for path, want := range map[string]string{
		"":                               "",
		"/":                              "",
		"relative.service":               "",
		"/init.scope":                    "init.scope",
		"/system.slice/ssh.service":      "ssh.service",
		"/system.slice/ssh.service/sub":  "ssh.service",
		"/runtime.slice/kubelet.service": "kubelet.service", // coroot-node-agent
		"/system.slice/system-postgresql.slice/postgresql@9.4-main.service": "postgresql@9.4-main.service", // coroot-node-agent
		`/system.slice/system-serial\x2dgetty.slice`:                        "",                            // coroot-node-agent
		`/system.slice/dev-disk-by\x2duuid-1.swap`:                          `dev-disk-by\x2duuid-1.swap`,
		"/system.slice/_cpu.service":                                        "cpu.service",
		"/../../system.slice/cron.service":                                  "cron.service",
		"/../../user.slice/user-501.slice/session-3.scope":                  "session-3.scope", // opentelemetry-ebpf-profiler
		userUnit + "/init.scope":                                            "user@1000.service/init.scope",
		userUnit + "/app.slice/app-x.slice/vte-spawn-1.scope":               "user@1000.service/vte-spawn-1.scope",
		userUnit + "/app.slice/ssh.service":                                 "user@1000.service/ssh.service",
		userUnit:                                                            "user@1000.service",
		userUnit + "/app.slice":                                             "user@1000.service",
		userUnit + "/made-by-hand/ssh.service":                              "user@1000.service",
		"/made-by-hand/ssh.service":                                         "",
		"/.service":                                                         "",
		"/lxc.payload.x/system.slice/ssh.service":                           "",
	} {
		if got := Unit(path); got != want {
			t.Errorf("Unit(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestPick(t *testing.T) {
	tests := []struct {
		name, file string
		path, pids string
	}{
		{"empty", "", "", ""},
		{"garbage", "x\n:\n::\n0::\n1:2\nfoo:bar:baz\n", "", ""},
		{"cgroup v2", "0::/system.slice/ssh.service\n", "/system.slice/ssh.service", "/system.slice/ssh.service"},
		{"cgroup v2 without the newline", "0::/docker/" + idA, "/docker/" + idA, "/docker/" + idA},
		{"a colon in the path", "0::/system.slice:docker:" + idA + "\n", "/system.slice:docker:" + idA, "/system.slice:docker:" + idA},
		{
			"removed under a zombie", "0::" + systemdPod + "/crio-" + idA + ".scope (deleted)\n",
			systemdPod + "/crio-" + idA + ".scope", systemdPod + "/crio-" + idA + ".scope",
		},
		{
			"coroot-node-agent fixtures/proc/550, hybrid host service",
			"12:perf_event:/\n11:devices:/system.slice/ssh.service\n10:freezer:/\n6:memory:/system.slice/ssh.service\n" +
				"5:pids:/system.slice/ssh.service/p\n4:cpu,cpuacct:/\n1:name=systemd:/system.slice/ssh.service\n0::/system.slice/ssh.service\n",
			"/system.slice/ssh.service", "/system.slice/ssh.service/p",
		},
		{
			"hybrid, a cgroupfs driver leaves the unified hierarchy with the daemon",
			"9:memory:/docker/" + idA + "\n8:pids:/docker/" + idA + "\n1:name=systemd:/system.slice/containerd.service\n0::/system.slice/containerd.service\n",
			"/docker/" + idA, "/docker/" + idA,
		},
		{
			"hybrid, only one controller is used",
			"9:name=systemd:/\n8:pids:/\n4:memory:/jobs/7932791c\n0::/\n",
			"/jobs/7932791c", "/",
		},
		{
			"a zombie on v1",
			"9:memory:/\n8:pids:/\n1:name=systemd:/\n0::/system.slice/docker-" + idA + ".scope\n",
			"/system.slice/docker-" + idA + ".scope", "/",
		},
		{
			"systemd inside a container on v1",
			"9:memory:/docker/" + idA + "\n8:pids:/docker/" + idA + "/init.scope\n1:name=systemd:/docker/" + idA + "/system.slice/ssh.service\n0::/\n",
			"/docker/" + idA + "/system.slice/ssh.service", "/docker/" + idA + "/init.scope",
		},
		{"pids among others", "3:cpu,pids:/a\n0::/b\n", "/b", "/a"},
		{"v1 without pids or a unified hierarchy", "3:cpu:/a\n", "/a", ""},
		{"all at the root", "3:pids:/\n0::/\n", "/", "/"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, pids := Pick([]byte(tt.file))
			if path != tt.path || pids != tt.pids {
				t.Errorf("Pick = %q, %q; want %q, %q", path, pids, tt.path, tt.pids)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, path := range []string{
		"/", "/../..", "/lxc.payload.x", "/lxc/x", "/lxc.monitor.x",
		systemdPod + "/cri-containerd-" + idA + ".scope/container",
		"/kubepods/pod" + uidA + "/" + idA,
		"/system.slice/docker-" + idA + ".scope/kubelet/kubepods/pod" + uidA + "/" + idB,
		"/kubepods-pod8f14e45f_ceea_467f_a0e6_0d1f1c2b3a4d.slice:cri-containerd:" + idA,
		userUnit + "/libpod-" + idA + ".scope",
		`/machine.slice/machine-a\x2db.scope/payload`,
		"/crio-conmon-" + idA + ".scope/docker-" + idB + ".scope",
		"/../" + idA,
	} {
		f.Add(path, "sub")
		f.Add(path, "docker-"+idC+".scope")
		f.Add(path, "lxc.monitor.x")
	}
	f.Fuzz(func(t *testing.T, path, sub string) {
		Unit(path)
		ref, ok := Parse(path)
		if !ok {
			if ref != (Ref{}) {
				t.Fatalf("Parse(%q) says no and gives %+v", path, ref)
			}
			return
		}
		for _, m := range []Match{ref.Outer, ref.Inner} {
			if !strings.HasPrefix(path, m.Cgroup) || m.Cgroup == "" {
				t.Fatalf("Parse(%q): %q is no part of it", path, m.Cgroup)
			}
			from := m.Cgroup
			if m.Runtime == "nspawn" {
				from = unescape(from)
			}
			if m.ID == "" || !strings.Contains(from, m.ID) {
				t.Fatalf("Parse(%q): id %q does not occur in %q", path, m.ID, m.Cgroup)
			}
			if m.Runtime != "lxc" && m.Runtime != "nspawn" && !isID(m.ID) {
				t.Fatalf("Parse(%q): %q is no id", path, m.ID)
			}
			if m.PodUID != "" && !isUID(m.PodUID) {
				t.Fatalf("Parse(%q): %q is no pod uid", path, m.PodUID)
			}
		}
		if !strings.HasPrefix(ref.Inner.Cgroup, ref.Outer.Cgroup) {
			t.Fatalf("Parse(%q): %q is not inside %q", path, ref.Inner.Cgroup, ref.Outer.Cgroup)
		}
		again, ok := Parse(ref.Outer.Cgroup)
		if !ok || again.Outer != ref.Outer || again.Inner != ref.Outer || again.Delegated != ref.Delegated {
			t.Fatalf("Parse(%q): the outer cgroup alone gives %+v, not %+v", path, again, ref)
		}
		// Whatever is made below a container, it stays that container's.
		below, ok := Parse(path + "/" + sub)
		if !ok || below.Outer != ref.Outer || below.Delegated != ref.Delegated {
			t.Fatalf("below %q, %q: %+v, not %+v", path, sub, below, ref)
		}
		if name, _ := Pick([]byte("0::" + path + "\n")); !strings.Contains(path, "\n") && !strings.HasSuffix(path, " (deleted)") && name != path {
			t.Fatalf("Pick gives %q for %q", name, path)
		}
	})
}
