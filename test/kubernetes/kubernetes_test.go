// Package kubernetes rolls kzr out in a real Kubernetes, from the manifests and the
// chart that are shipped, and lets a tenant leak.
package kubernetes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"
)

const (
	tree   = "../.."
	deploy = tree + "/deploy/kubernetes"
	chart  = deploy + "/chart/kzr"
)

// command runs one and gives what it said.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, said.Bytes())
	}
	return string(out)
}

func try(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func eventually(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

var binaries = struct{ kubernetes, helm string }{}

func TestMain(m *testing.M) {
	for name, path := range map[string]*string{"binary": &binaries.kubernetes, "helm": &binaries.helm} {
		cmd := exec.Command("./cluster.sh", name)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
		*path = strings.TrimSpace(string(out))
	}
	os.Exit(m.Run())
}

// objects are those of a stream of YAML, by kind and name, as the JSON that kubectl
// makes of them without asking a server.
func objects(t *testing.T, kubectl, yaml string) map[string]any {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/all.yaml", []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/kustomization.yaml", []byte("resources: [all.yaml]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := make(map[string]any)
	for _, doc := range strings.Split(command(t, kubectl, "kustomize", dir), "\n---\n") {
		cmd := exec.Command("python3", "-c", "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))")
		cmd.Stdin = strings.NewReader(doc)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v in %s", err, doc)
		}
		var o struct {
			Kind     string
			Metadata struct{ Name string }
		}
		var whole any
		if err := json.Unmarshal(out, &o); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &whole); err != nil {
			t.Fatal(err)
		}
		all[o.Kind+"/"+o.Metadata.Name] = whole
	}
	return all
}

// TestChartIsTheBase: what Helm renders is what kustomize does, but for the namespace,
// which a chart does not own.
func TestChartIsTheBase(t *testing.T) {
	kubectl := kubectlAlone(t)
	for _, c := range []struct {
		name       string
		components []string
		set        []string
	}{
		{"base", nil, nil},
		{"events", []string{"events"}, []string{"events=true"}},
		{"monitoring", []string{"monitoring"}, []string{"podMonitor.enabled=true", "prometheusRule.enabled=true"}},
		{"openshift", []string{"openshift"}, []string{"openshift=true", "seLinuxOptions.type=spc_t"}},
		{"all", []string{"events", "monitoring", "openshift"},
			[]string{"events=true", "podMonitor.enabled=true", "prometheusRule.enabled=true", "openshift=true", "seLinuxOptions.type=spc_t"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := objects(t, kubectl, command(t, kubectl, "kustomize", overlay(t, "", c.components, nil)))
			delete(base, "Namespace/kzr")
			args := []string{"template", "kzr", chart, "--namespace", "kzr"}
			for _, s := range c.set {
				args = append(args, "--set", s)
			}
			helm := objects(t, kubectl, command(t, binaries.helm, args...))
			if names(base) != names(helm) {
				t.Errorf("kustomize has %s\nhelm has      %s", names(base), names(helm))
			}
			for name := range base {
				if !reflect.DeepEqual(base[name], helm[name]) {
					a, _ := json.MarshalIndent(base[name], "", " ")
					b, _ := json.MarshalIndent(helm[name], "", " ")
					t.Errorf("%s differs:\n%s\n%s", name, a, b)
				}
			}
		})
	}
}

func names(m map[string]any) string {
	var all []string
	for n := range m {
		all = append(all, n)
	}
	sort.Strings(all)
	return strings.Join(all, " ")
}

// kubectlAlone is one without a cluster.
func kubectlAlone(t *testing.T) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "kubectl")
	if err := os.Symlink(binaries.kubernetes, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// overlay is a kustomization over the shipped base: an image's tag, components, and
// files of its own.
func overlay(t *testing.T, tag string, components []string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	relative := func(p string) string {
		abs, err := filepath.Abs(deploy + "/" + p)
		if err != nil {
			t.Fatal(err)
		}
		r, err := filepath.Rel(dir, abs)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	k := "resources:\n- " + relative("base") + "\n"
	for name, text := range files {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		k += "- " + name + "\n"
	}
	if components != nil {
		k += "components:\n"
	}
	for _, c := range components {
		k += "- " + relative("components/"+c) + "\n"
	}
	if tag != "" {
		k += "images: [{name: localhost/kzr, newTag: " + tag + "}]\n"
	}
	if err := os.WriteFile(dir+"/kustomization.yaml", []byte(k), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cluster is a node with all that makes it one.
type cluster struct{ dir string }

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, "./cluster.sh", append([]string{"kubectl", c.dir}, args...)...)
}

func (c *cluster) try(args ...string) (string, error) {
	return try("./cluster.sh", append([]string{"kubectl", c.dir}, args...)...)
}

// apply takes YAML.
func (c *cluster) apply(t *testing.T, yaml string) {
	t.Helper()
	file := t.TempDir() + "/o.yaml"
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "-f", file)
}

func (c *cluster) helm(t *testing.T, args ...string) string {
	t.Helper()
	for i, a := range args {
		if a == chart { // the node's mount namespace has another working directory
			args[i], _ = filepath.Abs(chart)
		}
	}
	return command(t, "./cluster.sh", append([]string{"inside", c.dir, binaries.helm, "--kubeconfig", c.dir + "/pki/admin.conf", "--namespace", "kzr"}, args...)...)
}

func (c *cluster) log(t *testing.T) string {
	t.Helper()
	out, _ := c.try("logs", "-n", "kzr", "daemonset/kzr")
	return out
}

func start(t *testing.T) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kzr-k8s")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.try("get", "pods,events", "-A", "-o", "wide")
			t.Log(out)
			t.Log(c.log(t))
			for _, f := range []string{"node", "kubelet", "containerd", "apiserver"} {
				text, _ := os.ReadFile(dir + "/" + f + ".log")
				t.Logf("%s: %s", f, text[max(0, len(text)-3000):])
			}
		}
		if out, err := try("./cluster.sh", "stop", dir); err != nil {
			t.Errorf("stopping: %v: %s", err, out)
		}
	})
	began := time.Now()
	command(t, "./cluster.sh", "start", dir)
	t.Logf("the node is there after %v", time.Since(began).Round(time.Second))
	return c
}

// images brings in the image that `make image` makes, and one for the tenant.
func (c *cluster) images(t *testing.T) (tag string) {
	t.Helper()
	tag = "0.0.1-test"
	dist := t.TempDir()
	cmd := exec.Command(deploy+"/image/build.sh", "amd64")
	cmd.Env = append(os.Environ(), "VERSION=0.0.1+test", "LDFLAGS=-X main.version=0.0.1+test", "SOURCE_DATE_EPOCH=1700000000", "DIST="+dist)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	command(t, "./cluster.sh", "ctr", c.dir, "image", "import", dist+"/kzr-0.0.1+test.oci.tar")
	if err := os.WriteFile(dist+"/busybox.tar", busybox(t), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "./cluster.sh", "ctr", c.dir, "image", "import", dist+"/busybox.tar")
	return tag
}

// busybox is an image of this machine's, as `docker save` writes one.
func busybox(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	pack := func(files ...any) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			content := files[i+1].([]byte)
			if err := w.WriteHeader(&tar.Header{Name: files[i].(string), Mode: 0o755, Size: int64(len(content))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	layer := pack("bin/busybox", data, "bin/sh", data, "bin/sleep", data, "bin/true", data)
	sum := sha256.Sum256(layer)
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/sleep","1000000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`, hex.EncodeToString(sum[:]))
	return pack("layer.tar", layer, "config.json", []byte(config),
		"manifest.json", []byte(`[{"Config":"config.json","RepoTags":["localhost/busybox:1"],"Layers":["layer.tar"]}]`))
}

// site is what an operator would write: act on the namespace shop, only look at others.
// The runtime's socket is reached through /proc/1/root, as in the shipped settings; where
// pid 1 is one that nobody may look at, through the runtime itself.
func (c *cluster) site(t *testing.T, grace string) string {
	t.Helper()
	root := "/proc/1/root"
	if _, err := os.Stat(root + c.dir + "/containerd.sock"); err != nil {
		t.Logf("not through /proc/1/root here: %v", err)
		pid, err := os.ReadFile(c.dir + "/containerd.pid")
		if err != nil {
			t.Fatal(err)
		}
		root = "/proc/" + strings.TrimSpace(string(pid)) + "/root"
	}
	return fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: kzr-site, namespace: kzr}
data:
  50-site.yaml: |
    dryRun: false
    grace: %s
    nudge: 0
    sweepInterval: 2s
    cri: [/no/such.sock, %s%s/containerd.sock]
    rules:
    - {name: shop, match: {namespace: shop}, action: kill}
    - {name: rest, match: {}, action: observe}
`, grace, root, c.dir)
}

// shop has a tenant whose shell starts 60 children and becomes, before one of them ends,
// a program that never waits.
const shop = `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: baseline}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: localhost/busybox:1
        command: [/bin/sh, -c, 'i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; exec sleep 100000']
`

// orphans is a container whose init gets 60 children that others started, as those of a
// probe are: each sleep loses its parent while it still runs.
const orphans = `apiVersion: v1
kind: Pod
metadata: {name: orphans, namespace: shop}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: localhost/busybox:1
    command: [/bin/sh, -c, 'i=0; while [ $i -lt 60 ]; do (sleep 5 &); i=$((i+1)); done; exec sleep 100000']
    securityContext: {seccompProfile: {type: RuntimeDefault}}
`

// TestFleet is one story, as a cluster costs a minute.
func TestFleet(t *testing.T) {
	c := start(t)
	tag := c.images(t)
	c.kubectl(t, "create", "namespace", "strict")
	c.kubectl(t, "label", "namespace", "strict", "pod-security.kubernetes.io/enforce=baseline")

	t.Run("rollout", func(t *testing.T) {
		began := time.Now()
		c.kubectl(t, "apply", "-k", overlay(t, tag, []string{"events"}, map[string]string{"site.yaml": c.site(t, "3s")}))
		out, err := c.try("rollout", "status", "-n", "kzr", "daemonset/kzr", "--timeout=120s")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("rolled out after %v", time.Since(began).Round(time.Second))
		if !strings.Contains(c.log(t), `"source":"bpf"`) {
			t.Errorf("kzr does not see through eBPF:\n%s", c.log(t))
		}
		if !strings.Contains(c.log(t), `"node":"node1"`) {
			t.Errorf("kzr does not know the node's name:\n%s", c.log(t))
		}
	})
	if t.Failed() {
		return
	}

	t.Run("kill and event", func(t *testing.T) {
		began := time.Now()
		c.apply(t, shop)
		eventually(t, 2*time.Minute, "the Event is on the pod", func() bool {
			out, _ := c.try("get", "events.events.k8s.io", "-n", "shop", "-o", "jsonpath={.items[*].reason}")
			return strings.Contains(out, "ZombieParentTerminated")
		})
		t.Logf("the Event was there %v after the Deployment", time.Since(began).Round(time.Second))
		eventually(t, time.Minute, "the container is restarted", func() bool {
			out, _ := c.try("get", "pods", "-n", "shop", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
			return out != "" && out != "0"
		})
		out := c.kubectl(t, "describe", "pod", "-n", "shop")
		for _, want := range []string{"Exit Code:    137", "ZombieParentTerminated", "60 zombies", "SIGKILL", "exit code 137", "To fix it:", "kzr"} {
			if !strings.Contains(out, want) {
				t.Errorf("kubectl describe pod does not say %q:\n%s", want, out)
			}
		}
		_, events, _ := strings.Cut(out, "Events:")
		t.Logf("kubectl describe pod:%s", events)
		if !strings.Contains(c.log(t), `"pod":"web-`) {
			t.Error("the log does not name the pod")
		}
	})

	t.Run("reaped inside and event", func(t *testing.T) {
		c.apply(t, orphans)
		eventually(t, 2*time.Minute, "the Event is on the pod", func() bool {
			out, _ := c.try("get", "events.events.k8s.io", "-n", "shop", "-o", `jsonpath={range .items[*]}{.regarding.name} {.reason} {.action}{"\n"}{end}`)
			return strings.Contains(out, "orphans ZombiesReaped Reap")
		})
		out := c.kubectl(t, "describe", "pod", "orphans", "-n", "shop")
		// Those that are younger than grace may be left: they are under the threshold then.
		for _, want := range []string{`dead children: [56][0-9] zombies`, `kzr reaped (them|5[0-9] of them) inside it`, "nothing was restarted", "Restart Count:  0"} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("kubectl describe pod does not say %q:\n%s", want, out)
			}
		}
		_, events, _ := strings.Cut(out, "Events:")
		t.Logf("kubectl describe pod:%s", events)
		reaped := false
		for line := range strings.Lines(c.log(t)) {
			reaped = reaped || strings.Contains(line, `"event":"reaped"`) && strings.Contains(line, `"by":"kzr"`) && strings.Contains(line, `"pod":"orphans"`)
		}
		if !reaped {
			t.Errorf("the log does not say that kzr reaped inside it:\n%s", c.log(t))
		}
		out = c.kubectl(t, "exec", "-n", "shop", "orphans", "--", "/bin/busybox", "ps", "-o", "stat,args")
		if left := strings.Count(out, "Z "); left > 10 {
			t.Errorf("%d zombies are left in it:\n%s", left, out)
		}
	})

	t.Run("the fleet in one line", func(t *testing.T) {
		out := command(t, "bash", "-c", fmt.Sprintf(`set -o pipefail
k() { ./cluster.sh kubectl %s "$@"; }; export -f k
k -n kzr get pod -l app.kubernetes.io/name=kzr -o name | xargs -P 16 -I{} bash -c 'k -n kzr exec {} -- kzr scan'`, c.dir))
		if !strings.Contains(out, "node1") {
			t.Errorf("it says %s", out)
		}
	})

	t.Run("what kzr may", func(t *testing.T) {
		for _, q := range []struct{ verb, what, answer string }{
			{"create", "events.events.k8s.io", "yes"}, {"list", "events.events.k8s.io", "no"}, {"delete", "events.events.k8s.io", "no"},
			{"list", "pods", "no"}, {"get", "secrets", "no"}, {"create", "pods", "no"}, {"get", "nodes", "no"},
		} {
			out, _ := c.try("auth", "can-i", q.verb, q.what, "--as=system:serviceaccount:kzr:kzr", "-n", "shop")
			if lines := strings.Fields(out); len(lines) == 0 || lines[len(lines)-1] != q.answer {
				t.Errorf("may it %s %s? %s", q.verb, q.what, out)
			}
		}
	})

	t.Run("Pod Security", func(t *testing.T) {
		pod := command(t, "./cluster.sh", "kubectl", c.dir, "get", "pod", "-n", "kzr", "-o", "json")
		var list struct{ Items []map[string]any }
		if err := json.Unmarshal([]byte(pod), &list); err != nil || len(list.Items) != 1 {
			t.Fatalf("%v: %s", err, pod)
		}
		spec := list.Items[0]["spec"].(map[string]any)
		delete(spec, "nodeName")
		for _, namespace := range []string{"strict", "kzr"} {
			p, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "again", "namespace": namespace}, "spec": spec})
			file := t.TempDir() + "/pod.json"
			if err := os.WriteFile(file, p, 0o600); err != nil {
				t.Fatal(err)
			}
			if namespace == "strict" {
				c.kubectl(t, "create", "serviceaccount", "kzr", "-n", namespace)
			}
			out, err := c.try("create", "--dry-run=server", "-f", file)
			if refused := err != nil && strings.Contains(out, "violates PodSecurity"); refused != (namespace == "strict") {
				t.Errorf("in namespace %s: %v: %s", namespace, err, out)
			}
		}
	})

	t.Run("reload", func(t *testing.T) {
		began := time.Now()
		c.apply(t, c.site(t, "4s"))
		eventually(t, 2*time.Minute, "the new configuration is in force", func() bool { return strings.Contains(c.log(t), `"event":"reloaded"`) })
		t.Logf("in force after %v", time.Since(began).Round(time.Second))
		out := c.kubectl(t, "get", "pods", "-n", "kzr", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		if out != "0" {
			t.Errorf("kzr restarted %s times", out)
		}
	})

	t.Run("chart, upgrade and node labels", func(t *testing.T) {
		c.kubectl(t, "delete", "deployment", "web", "-n", "shop")
		c.kubectl(t, "delete", "-k", overlay(t, tag, []string{"events"}, map[string]string{"site.yaml": c.site(t, "3s")}))
		c.kubectl(t, "create", "namespace", "kzr")
		c.kubectl(t, "label", "namespace", "kzr", "pod-security.kubernetes.io/enforce=privileged")
		c.helm(t, "install", "kzr", chart, "--set", "image.tag="+tag, "--set", "runtimeDir="+c.dir, "--set", "config.cri={"+c.dir+"/containerd.sock}")
		c.kubectl(t, "rollout", "status", "-n", "kzr", "daemonset/kzr", "--timeout=120s")
		if !strings.Contains(c.log(t), `"dry_run":true`) {
			t.Errorf("the chart's default is not a dry run:\n%s", c.log(t))
		}
		if out, _ := c.try("exec", "-n", "kzr", "daemonset/kzr", "--", "kzr", "check"); !regexp.MustCompile(`containerd v?[12]\.`).MatchString(out) {
			t.Errorf("kzr check does not reach the runtime in its mounted directory:\n%s", out)
		}
		ready := func() string {
			return c.kubectl(t, "get", "daemonset", "kzr", "-n", "kzr", "-o", "jsonpath={.status.desiredNumberScheduled} {.status.numberReady} {.status.updatedNumberScheduled}")
		}
		c.helm(t, "upgrade", "kzr", chart, "--reuse-values", "--set", "nodeSelector.kzr=yes", "--set", "events=true")
		eventually(t, time.Minute, "no node has the label", func() bool { return strings.HasPrefix(ready(), "0 0") })
		c.kubectl(t, "label", "node", "node1", "kzr=yes")
		eventually(t, time.Minute, "the node with the label has the new kzr", func() bool { return ready() == "1 1 1" })
		if out := c.kubectl(t, "get", "clusterrole", "kzr-events", "-o", "jsonpath={.rules[0].verbs}"); out != `["create"]` {
			t.Errorf("after the upgrade the role is %s", out)
		}
		c.helm(t, "uninstall", "kzr", "--wait")
		eventually(t, time.Minute, "nothing is left after uninstall", func() bool {
			return c.kubectl(t, "get", "all,configmap,clusterrole,clusterrolebinding", "-n", "kzr", "-l", "app.kubernetes.io/name=kzr", "-o", "name") == ""
		})
	})
}
