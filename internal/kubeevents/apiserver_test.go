//go:build kubernetes

package kubeevents

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/report"
	"kzr/internal/trail"
)

// The API server is the real one, as test/kubernetes makes it: a stand-in takes what
// it refuses.
const cluster = "../../test/kubernetes/cluster.sh"

// server is an API server with its etcd.
type server struct {
	dir string
	url string
}

func startServer(t *testing.T) *server {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kzr-api")
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	t.Cleanup(func() {
		if out, err := exec.Command(cluster, "stop", dir).CombinedOutput(); err != nil {
			t.Errorf("stopping: %v: %s", err, out)
		}
	})
	if out, err := exec.Command(cluster, "start-api", dir, strconv.Itoa(port)).CombinedOutput(); err != nil {
		t.Fatalf("starting: %v: %s", err, out)
	}
	s := &server{dir: dir, url: fmt.Sprintf("https://127.0.0.1:%d", port)}
	s.kubectl(t, "create", "namespace", "shop")
	s.kubectl(t, "create", "namespace", "kzr")
	s.kubectl(t, "apply", "-f", "../../deploy/kubernetes/base/serviceaccount.yaml")
	return s
}

// freePort finds three ports in a row: the API server's and etcd's two.
func freePort(t *testing.T) int {
	t.Helper()
	for port := 26000; port < 27000; port += 3 {
		free := true
		for i := range 3 {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return port
		}
	}
	t.Fatal("no ports are free")
	return 0
}

func (s *server) try(args ...string) ([]byte, error) {
	return exec.Command(cluster, append([]string{"kubectl", s.dir}, args...)...).CombinedOutput()
}

func (s *server) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try(args...)
	if err != nil {
		t.Fatalf("kubectl %v: %v: %s", args, err, out)
	}
	return string(out)
}

func (s *server) signal(t *testing.T, sig unix.Signal) {
	t.Helper()
	data, err := os.ReadFile(s.dir + "/apiserver.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// sender is one with the token of the shipped service account.
func (s *server) sender(t *testing.T) (*Sender, func() map[string]int, *syncBuffer) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(s.kubectl(t, "create", "token", "kzr", "-n", "kzr")), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	counts := make(map[string]int)
	log := new(syncBuffer)
	sender, err := New(Options{
		URL: s.url, CA: s.dir + "/pki/ca.crt", Token: token, Node: "node7", Log: slog.New(slog.NewTextHandler(log, nil)),
		Count: func(r string) { mu.Lock(); counts[r]++; mu.Unlock() },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { sender.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return sender, func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(counts)
	}, log
}

type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 90s: %s", what)
		}
	}
}

// killed is the outcome of a pod of that uid, now.
func killed(t *testing.T, uid string) trail.Outcome {
	t.Helper()
	p := parent()
	p.Container.PodUID = uid
	o := *ended(t, report.Event{Name: report.EventSignal, Signal: "SIGKILL", Process: p}, report.Event{Name: report.EventTerminated, Process: p})
	o.Time = time.Now()
	return o
}

func TestAPIServer(t *testing.T) {
	s := startServer(t)

	t.Run("forbidden", func(t *testing.T) {
		sender, counts, log := s.sender(t)
		sender.Offer(killed(t, "uid-forbidden"))
		eventually(t, "it is refused", func() bool { return counts()[Refused] == 1 })
		if text := log.String(); !strings.Contains(text, "403") || !strings.Contains(text, "cannot create resource") {
			t.Errorf("the log is %s", text)
		}
	})

	s.kubectl(t, "apply", "-f", "../../deploy/kubernetes/components/events/rbac.yaml")

	t.Run("sent", func(t *testing.T) {
		sender, counts, _ := s.sender(t)
		began := time.Now()
		sender.Offer(killed(t, "uid-sent"))
		eventually(t, "it is sent", func() bool { return counts()[Sent] == 1 })
		t.Logf("sent after %v", time.Since(began).Round(time.Millisecond))
		var list struct {
			Items []struct {
				Reason, Type, Action, Note, ReportingController string
				Regarding                                       struct{ Name, UID, FieldPath string }
			}
		}
		out := s.kubectl(t, "get", "events.events.k8s.io", "-n", "shop", "-o", "json")
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != 1 {
			t.Fatalf("%d Events: %s", len(list.Items), out)
		}
		e := list.Items[0]
		if e.Reason != ReasonTerminated || e.Type != "Warning" || e.Regarding.Name != "web-1" || e.Regarding.UID != "uid-sent" || !strings.Contains(e.Note, "137") {
			t.Errorf("%+v", e)
		}
	})

	t.Run("every kind is taken", func(t *testing.T) {
		sender, counts, log := s.sender(t)
		p := parent()
		p.Container.Pod = strings.Repeat("a", 251) + ".b"
		p.Comm = strings.Repeat("\x01", 16)
		all := []trail.Outcome{
			*ended(t, report.Event{Name: report.EventReaped, By: report.ByKzr}),
			*ended(t, report.Event{Name: report.EventGaveUp, Message: strings.Repeat("ü\n", 5000), Process: p}),
			*ended(t, report.Event{Name: report.EventSpared, Reason: "backoff", Until: noon}),
		}
		for i, o := range all {
			o.Time = time.Now().Add(time.Duration(i) * time.Millisecond)
			sender.Offer(o)
		}
		eventually(t, "all are sent", func() bool { c := counts(); return c[Sent]+c[Refused] == len(all) })
		if c := counts(); c[Refused] > 0 {
			t.Errorf("%v: %s", c, log)
		}
	})

	t.Run("twice is once", func(t *testing.T) {
		sender, _, _ := s.sender(t)
		o := killed(t, "uid-twice")
		e := newEvent(&o, "node7", ReasonTerminated, "")
		for range 2 {
			if err := sender.post(context.Background(), &e); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("no such namespace", func(t *testing.T) {
		sender, counts, log := s.sender(t)
		o := killed(t, "uid-namespace")
		o.Process.Container.Namespace = "gone"
		sender.Offer(o)
		eventually(t, "it is refused", func() bool { return counts()[Refused] == 1 })
		if !strings.Contains(log.String(), "gone") {
			t.Errorf("the log is %s", log)
		}
	})

	t.Run("bad token", func(t *testing.T) {
		sender, counts, _ := s.sender(t)
		good, _ := os.ReadFile(sender.opts.Token)
		if err := os.WriteFile(sender.opts.Token, []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
		sender.Offer(killed(t, "uid-token"))
		time.Sleep(1500 * time.Millisecond)
		if c := counts(); len(c) > 0 {
			t.Errorf("with a bad token: %v", c)
		}
		if err := os.WriteFile(sender.opts.Token, good, 0o600); err != nil { // the kubelet renews it
			t.Fatal(err)
		}
		eventually(t, "it is sent with the new token", func() bool { return counts()[Sent] == 1 })
	})

	// The API server stands still: nobody waits, and what is too much is dropped.
	t.Run("slow", func(t *testing.T) {
		sender, counts, log := s.sender(t)
		s.signal(t, unix.SIGSTOP)
		began := time.Now()
		for i := range 3 * queued {
			sender.Offer(killed(t, fmt.Sprintf("uid-slow-%d", i)))
		}
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("offering took %v", took)
		}
		if c := counts(); c[Dropped] < queued {
			t.Errorf("%v", c)
		}
		eventually(t, "the log says so", func() bool { return strings.Contains(log.String(), "does not take Events") })
		s.signal(t, unix.SIGCONT)
		eventually(t, "what was queued is sent", func() bool { return counts()[Sent] >= queued })
		if c := counts(); c[Sent]+c[Dropped] != 3*queued {
			t.Errorf("%v", c)
		}
	})

	// It is gone for good; the sender ends all the same.
	t.Run("gone", func(t *testing.T) {
		sender, counts, _ := s.sender(t)
		s.signal(t, unix.SIGKILL)
		sender.Offer(killed(t, "uid-gone"))
		time.Sleep(500 * time.Millisecond)
		if c := counts(); c[Sent]+c[Failed] > 0 {
			t.Errorf("%v", c)
		}
	})
}

// TestInCluster needs no server.
func TestInCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(); err == nil {
		t.Error("this is a pod")
	}
}
