package report

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kzr-listen-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// take listens on a path, and says what was logged and how long it took.
func take(t *testing.T, path string) (net.Listener, string, time.Duration, error) {
	t.Helper()
	var log strings.Builder
	began := time.Now()
	l, err := Listen(path, -1, slog.New(slog.NewTextHandler(&log, nil)))
	if err == nil {
		t.Cleanup(func() { l.Close() })
	}
	return l, log.String(), time.Since(began), err
}

// reaches fails unless who connects to path is accepted by l.
func reaches(t *testing.T, l net.Listener, path string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the socket is gone: %v", err)
	}
	defer c.Close()
	_ = l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(soon))
	s, err := l.Accept()
	if err != nil {
		t.Fatalf("another socket is there: %v", err)
	}
	s.Close()
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the socket: %v, %v", entries, err)
	}
}

func TestTakeoverRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, &view{})
	s.answers(t)
	l, _, took, err := take(t, s.path)
	if err == nil {
		l.Close()
		t.Fatal("took over a socket that answers")
	}
	if want := fmt.Sprintf("socket already in use by kzr (pid %d)", os.Getpid()); !strings.Contains(err.Error(), want) || took > 2*time.Second {
		t.Errorf("after %v: %v, want %s", took, err, want)
	}
	s.answers(t)
}

// A daemon that refuses whoever asks is alive, and so is one of another kind.
func TestTakeoverOfOthers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		talk func(net.Conn)
		want string
	}{
		"kzr that is busy": {func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 32\r\n\r\n{\"error\":\"too many connections\"}\n")
		}, "in use by kzr (pid "},
		"http":     {func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") }, "in use by another program (pid "},
		"banner":   {func(c net.Conn) { fmt.Fprint(c, "220 mail"); _, _ = c.Read(make([]byte, 1)); time.Sleep(time.Second) }, "in use by another program (pid "},
		"hangs up": {func(net.Conn) {}, "in use by a program that hangs up (pid "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(shortDir(t), "s")
			other, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			var served sync.WaitGroup
			served.Go(func() {
				for {
					c, err := other.Accept()
					if err != nil {
						return
					}
					served.Go(func() {
						_ = c.SetDeadline(time.Now().Add(soon))
						if name != "hangs up" {
							_, _ = http.ReadRequest(bufio.NewReader(c))
						}
						tt.talk(c)
						c.Close()
					})
				}
			})
			defer served.Wait()
			defer other.Close()
			if _, _, _, err := take(t, path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want %s", err, tt.want)
			}
		})
	}
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		backlog, waiting int
		dead             bool
		want             string
	}{
		"never accepts": {backlog: 100, want: "did not answer within 3s"},
		"backlog full":  {backlog: 1, waiting: 2, want: "accepts no connection"},
		"dead":          {backlog: 1, dead: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(shortDir(t), "s")
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			closed := sync.OnceFunc(func() { unix.Close(fd) })
			t.Cleanup(closed)
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			if err := unix.Listen(fd, tt.backlog); err != nil {
				t.Fatal(err)
			}
			for range tt.waiting {
				c, err := net.Dial("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
			}
			if tt.dead {
				closed()
			}
			l, log, took, err := take(t, path)
			if err != nil {
				t.Fatal(err)
			}
			reaches(t, l, path)
			if !strings.Contains(log, tt.want) || tt.dead != (log == "") {
				t.Errorf("the log is %q, want %q", log, tt.want)
			}
			if tt.dead != (took < time.Second) || took > 2*answerPatience {
				t.Errorf("it took %v", took)
			}
		})
	}
}

const serveEnv = "KZR_TEST_SERVE"

// TestServeUntilReplaced is no test by itself: others run it as a daemon.
func TestServeUntilReplaced(t *testing.T) {
	path := os.Getenv(serveEnv)
	if path == "" {
		return
	}
	l, err := Listen(path, -1, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("refused:", err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan error)
	go func() {
		done <- (&Server{View: &view{}, Hub: new(Hub), Log: slog.New(slog.DiscardHandler)}).Run(ctx, l, nil)
	}()
	fmt.Println("serving")
	for ctx.Err() == nil && !Replaced(l) {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
	fmt.Println("replaced")
}

// daemon starts a process that serves path, and returns its lines.
func daemon(t *testing.T, path string) (*os.Process, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestServeUntilReplaced$")
	cmd.Env = []string{serveEnv + "=" + path}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	lines.Scan()
	return cmd.Process, lines
}

// A process that cannot run, as one whose thread is stuck in the kernel, keeps its
// listening socket. When it runs again it finds that it is replaced, and leaves the
// new one's socket alone.
func TestTakeoverOfStopped(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	old, lines := daemon(t, path)
	if lines.Text() != "serving" {
		t.Fatalf("the first daemon: %s", lines.Text())
	}
	if _, _, _, err := take(t, path); err == nil || !strings.Contains(err.Error(), "in use by kzr (pid "+strconv.Itoa(old.Pid)+")") {
		t.Fatalf("beside one that answers: %v", err)
	}
	if err := old.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l, log, took, err := take(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("pid %d did not answer within 3s", old.Pid); !strings.Contains(log, want) || took > 2*answerPatience {
		t.Errorf("after %v the log is %q, want %s", took, log, want)
	}
	reaches(t, l, path)
	if Replaced(l) {
		t.Error("the new one seems to be replaced")
	}
	if err := old.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if lines.Scan(); lines.Text() != "replaced" {
		t.Errorf("the old daemon: %s", lines.Text())
	}
	_, _ = old.Wait()
	reaches(t, l, path)
}

// Many that start at once, beside a dead socket or one that hangs: one of them
// gets it, and the others hear from it.
func TestTakeoverRace(t *testing.T) {
	t.Parallel()
	for name, rounds := range map[string]int{"dead": 5, "hung": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range rounds {
				path := filepath.Join(shortDir(t), "s")
				stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
				if err != nil {
					t.Fatal(err)
				}
				stale.SetUnlinkOnClose(false)
				if name == "dead" {
					stale.Close()
				}
				const n = 4
				said := make(map[string]int)
				var mu sync.Mutex
				var wg sync.WaitGroup
				for range n {
					wg.Go(func() {
						_, lines := daemon(t, path)
						word, _, _ := strings.Cut(lines.Text(), ":")
						if strings.Contains(lines.Text(), "already in use by kzr (pid ") {
							word = "in use"
						}
						mu.Lock()
						defer mu.Unlock()
						said[word]++
					})
				}
				wg.Wait()
				if said["serving"] != 1 || said["in use"] != n-1 {
					t.Errorf("they said %v", said)
				}
				stale.Close()
			}
		})
	}
}

// Without the lock, held for ever by a process that hangs, what was asked is
// still all that is removed.
func TestTakeoverWithoutLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	f, err := os.Create(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l, log, took, err := take(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, "without the lock") || took < lockPatience || took > lockPatience+2*time.Second {
		t.Errorf("after %v the log is %q", took, log)
	}
	// A daemon that takes the path while its dead socket is asked: it is not removed.
	l.Close()
	hung, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	hung.SetUnlinkOnClose(false)
	var removing sync.WaitGroup
	removing.Go(func() {
		if err := removeDead(path, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("removing the one that hangs: %v", err)
		}
	})
	time.Sleep(answerPatience / 2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	fresh, err := bind(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	removing.Wait()
	f.Close()
	os.Remove(path + ".lock")
	reaches(t, fresh, path)
}

// Somebody who may write to the directory cannot make kzr write or remove a file
// elsewhere, nor keep it from starting.
func TestTakeoverHostileDirectory(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(lock, precious string) error{
		"symlink":  func(lock, precious string) error { return os.Symlink(precious, lock) },
		"dangling": func(lock, precious string) error { return os.Symlink(precious+".new", lock) },
		"fifo":     func(lock, _ string) error { return unix.Mkfifo(lock, 0o666) },
		"dir":      func(lock, _ string) error { return os.Mkdir(lock, 0o777) },
		"foreign": func(lock, _ string) error {
			if err := os.WriteFile(lock, nil, 0o666); err != nil {
				return err
			}
			return os.Chown(lock, 65534, 65534)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "foreign" && os.Geteuid() != 0 {
				t.Skip("needs root to make a file of somebody else's")
			}
			t.Parallel()
			dir := shortDir(t)
			precious := filepath.Join(shortDir(t), "precious")
			if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "s")
			if err := make(path+".lock", precious); err != nil {
				t.Fatal(err)
			}
			l, log, took, err := take(t, path)
			if err != nil {
				t.Fatal(err)
			}
			if took > time.Second || !strings.Contains(log, "without the lock") {
				t.Errorf("after %v the log is %q", took, log)
			}
			l.Close()
			if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
				t.Errorf("the file elsewhere: %q, %v", b, err)
			}
			if _, err := os.Lstat(precious + ".new"); err == nil {
				t.Error("made a file elsewhere")
			}
			if _, err := os.Lstat(path + ".lock"); err != nil {
				t.Errorf("removed what is not its own: %v", err)
			}
		})
	}
}
