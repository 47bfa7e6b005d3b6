//go:build amd64

package reapinside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// The helper has CAP_SYS_PTRACE and nothing else, in all of its threads, is under a
// filter, holds no files, and makes no thread when it works.
func TestConfined(t *testing.T) {
	h := helper(t)
	s := launch(t, false, 200, 0, "sleep", "1000")
	began := threadsOf(t, h.PID())
	if r, err := s.reap(h, s.settled(200), nil); err != nil || r.Reaped != 200 {
		t.Fatalf("%+v, %v", r, err)
	}
	if now := threadsOf(t, h.PID()); !slices.Equal(began, now) {
		t.Errorf("it had the threads %v and has %v", began, now)
	}
	ptrace := fmt.Sprintf("%016x", 1<<unix.CAP_SYS_PTRACE)
	for _, tid := range began {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", h.PID(), tid))
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{
			"CapInh": "0000000000000000", "CapPrm": ptrace, "CapEff": ptrace, "CapBnd": ptrace, "CapAmb": "0000000000000000",
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			if !strings.Contains(string(b), "\n"+key+":\t"+want+"\n") {
				t.Errorf("thread %s: %s is not %s:\n%s", tid, key, want, b)
			}
		}
	}
	open := map[string]int{}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", h.PID()))
	for _, l := range links {
		to, _ := os.Readlink(l)
		kind, _, _ := strings.Cut(to, ":")
		open[kind]++
	}
	want := map[string]int{"/dev/null": 3, "socket": 1, "/proc": 1, "anon_inode": 2} // of the runtime's: epoll, eventfd
	for kind, n := range open {
		if n > want[kind] {
			t.Errorf("it holds %d of %s", n, kind)
		}
	}
	if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", h.PID())); !strings.Contains(string(b), "Max core file size        0                    0") {
		t.Errorf("core files: %s", b)
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.PID()))
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") || strings.HasPrefix(line, "Threads") || strings.HasPrefix(line, "Name") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

func threadsOf(t *testing.T, pid int) (tids []string) {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		tids = append(tids, e.Name())
	}
	return tids
}

// SIGTERM and the like, which a whole service gets, do not end it; the end of kzr's
// end of the socket does, even while it is stopped.
func TestHelperEnds(t *testing.T) {
	h := helper(t)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE} {
		_ = unix.Kill(h.PID(), sig)
	}
	s := launch(t, false, 1, 0, "sleep", "1000")
	if r, err := s.reap(h, s.settled(1), nil); err != nil || r.Reaped != 1 {
		t.Fatalf("after signals: %+v, %v", r, err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(h.PID(), 0); err == nil {
		t.Error("it is still there")
	}
	_, err := s.reap(h, []task.Zombie{task.NewZombie(s.id.PID, s.id.Start, 0, 0)}, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Refusal != HelperGone {
		t.Errorf("without a helper: %v", err)
	}

	c := startClient(t, s)
	_ = unix.Kill(c.helper, unix.SIGSTOP)
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	s.until(func() bool {
		st, ok := statOf(c.helper)
		return !ok || st.state == 'Z'
	})

	h = helper(t)
	_ = unix.Kill(h.PID(), unix.SIGKILL)
	select {
	case <-h.Over():
	case <-time.After(patienceOfTest):
		t.Error("nobody learns of its end")
	}
}

// What makes no sense is answered with an error and changes nothing.
func TestMalformed(t *testing.T) {
	pid, conn, err := start()
	if err != nil {
		t.Fatal(err)
	}
	h := &Helper{pid: pid, conn: conn}
	defer func() { conn.Close(); h.wait(patienceOfTest) }()
	if err := h.greet(context.Background()); err != nil {
		t.Fatal(err)
	}
	s := launch(t, false, 2, 0, "sleep", "1000")
	other := launch(t, false, 1, 0, "sleep", "1000")
	orphans, foreign := s.settled(2), other.settled(1)
	good := prepareMsg{head: head{magic, kindPrepare, 1}, PID: int64(s.id.PID), Start: s.id.Start, N: 2}
	for i, z := range orphans {
		good.Zombies[i] = wireZombie{int64(z.PID()), z.Start()}
	}
	commit := commitMsg{head{magic, kindCommit, 2}, newStance(task.Stance{CS: 0x33})}
	one, both := unix.UnixRights(s.pidfd), unix.UnixRights(s.pidfd, s.pidfd)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	with := func(change func(*prepareMsg)) []byte {
		m := good
		change(&m)
		return encode(&m)
	}
	cases := []struct {
		name   string
		b      []byte
		rights []byte
		want   Refusal
	}{
		{"one byte", []byte{1}, nil, Malformed},
		{"no pidfd", encode(&good), nil, Malformed},
		{"two pidfds", encode(&good), both, Malformed},
		{"a file", encode(&good), unix.UnixRights(int(file.Fd())), Malformed},
		{"a byte short", encode(&good)[1:], one, Malformed},
		{"a byte more", append(encode(&good), 0), one, Malformed},
		{"huge", make([]byte, 9000), one, Malformed},
		{"another magic", with(func(m *prepareMsg) { m.Magic++ }), one, Malformed},
		{"another kind", with(func(m *prepareMsg) { m.Kind = 9 }), one, Malformed},
		{"no zombies", with(func(m *prepareMsg) { m.N = 0 }), one, Malformed},
		{"too many", with(func(m *prepareMsg) { m.N = maxBatch + 1 }), one, Malformed},
		{"far too many", with(func(m *prepareMsg) { m.N = 1 << 63 }), one, Malformed},
		{"a negative pid", with(func(m *prepareMsg) { m.Zombies[1].PID = -1 }), one, Malformed},
		{"pid 1", with(func(m *prepareMsg) { m.PID = 1 }), one, Malformed},
		{"commit without prepare", encode(&commit), nil, Moved},
		{"another process's pidfd", encode(&good), unix.UnixRights(other.pidfd), Gone},
		{"another start time", with(func(m *prepareMsg) { m.Start++ }), one, Gone},
		{"zombies of another start time", with(func(m *prepareMsg) { m.Zombies[0].Start++; m.Zombies[1].Start++ }), one, NoZombies},
		{"zombies of another", with(func(m *prepareMsg) {
			m.N, m.Zombies[0] = 1, wireZombie{int64(foreign[0].PID()), foreign[0].Start()}
		}), one, NoZombies},
		{"a child that lives", with(func(m *prepareMsg) { m.N, m.Zombies[0] = 1, wireZombie{int64(other.id.PID), other.id.Start} }), one, NoZombies},
	}
	for _, c := range cases {
		if _, _, err := conn.WriteMsgUnix(c.b, c.rights, nil); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		b := make([]byte, maxMessage)
		_ = conn.SetReadDeadline(time.Now().Add(patienceOfTest))
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var m answerMsg
		if err := decode(b[:n], kindAnswer, &m); err != nil || m.Refusal != c.want || m.Stopped != 0 {
			t.Errorf("%s: %v, %v (%v)", c.name, m.Refusal, err, m.Detail)
		}
	}
	s.until(func() bool { return s.stateNow() == "S" }) // which it may take a moment to reach
	if len(s.orphans()) != 2 || len(other.orphans()) != 1 {
		t.Error("it changed something")
	}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if len(links) > 7 {
		t.Errorf("it holds %d descriptors", len(links))
	}
}

func TestParseStat(t *testing.T) {
	for text, want := range map[string]stat{
		"7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 99 0": {'S', 1, 4194304, 99},
		"7 (a S 1 7": {},
		"7 (a) S 1":  {},
		"7 (a) S x 7 7 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 99 0": {},
		"": {},
	} {
		if got, ok := parseStat([]byte(text)); ok != (want != stat{}) || ok && got != want {
			t.Errorf("%q: %+v %v", text, got, ok)
		}
	}
}

func TestParseMapping(t *testing.T) {
	for text, want := range map[string]mapping{
		"7f00-7f10 r-xp 00000000 fe:00 12   /usr/lib/x86_64-linux-gnu/libc.so.6": {0x7f00, 0x7f10, true, false, true},
		"7ffe-7fff rw-p 00000000 00:00 0                          [stack]":       {0x7ffe, 0x7fff, false, true, false},
		"ff600000-ff601000 --xp 00000000 00:00 0                  [vsyscall]":    {0xff600000, 0xff601000, false, false, false},
		"ff600000-ff601000 r-xp 00000000 00:00 0                  [vsyscall]":    {0xff600000, 0xff601000, false, false, false},
		"55-66 --xp 00000000 00:00 0":                                            {0x55, 0x66, false, false, false},
		"55-66 r-xp 00000000 fe:00 1  /tmp/not [stack]":                          {0x55, 0x66, true, true, false},
	} {
		if got, ok := parseMapping([]byte(text)); !ok || got != want {
			t.Errorf("%q: %+v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "x", "55 r-xp", "55-xx r-xp 0", "5-6"} {
		if got, ok := parseMapping([]byte(text)); ok {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// An XSAVE image is cut to what the kernel takes back, on processors with AMX.
func TestUserState(t *testing.T) {
	image := make([]byte, 11008)
	put := func(features, inUse uint64) {
		binary.LittleEndian.PutUint64(image[swReserved:], features)
		binary.LittleEndian.PutUint64(image[xsaveHeader:], inUse)
	}
	put(0xe7, 0x7)
	if n, f := userState(image); n != len(image) || f != 0xe7 {
		t.Errorf("without AMX: %d, %#x", n, f)
	}
	put(0x600e7, 0x7)
	if n, f := userState(image); n >= len(image) || n < 832 || f != 0x200e7 {
		t.Errorf("with AMX, not used: %d, %#x", n, f)
	}
	put(0x600e7, 0x60007)
	if n, f := userState(image); n != len(image) || f != 0x600e7 {
		t.Errorf("with AMX in use: %d, %#x", n, f)
	}
}
