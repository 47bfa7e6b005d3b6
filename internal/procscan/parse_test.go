package procscan

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/container"
	"kzr/internal/task"
)

// tail is a stat line from its fourth field to its last, with four of them to
// fill in: ppid, flags, threads, start.
const tail = " %d 7 7 0 -1 %d 1 0 0 0 0 0 0 0 20 -5 %d 0 %d 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"

func line(pid int, comm string, state byte, ppid, flags, threads int, start uint64) []byte {
	return fmt.Appendf(nil, "%d (%s) %s"+tail, pid, comm, []byte{state}, ppid, flags, threads, start)
}

var hostileComms = []string{
	"", "sh", "a b", ")", "(", ") Z 1 (", "x) Z 1 1 1", "\n", "a\nb", "\x1b[31mred", "\xff\xfe", "((sd-pam))",
	") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", "kworker/R-a_name_of_up_to_sixty_four_bytes_as_kernel_threads_have",
}

func TestParseStat(t *testing.T) {
	for _, comm := range hostileComms {
		got, err := parseStat(line(4194303, comm, 'Z', 17, pfKthread|pfExiting, 3, 1<<40))
		want := stat{
			comm: []byte(comm), state: 'Z', pid: 4194303, ppid: 17,
			flags: pfKthread | pfExiting, threads: 3, start: 1 << 40,
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("comm %q: %+v, %v; want %+v", comm, got, err, want)
		}
	}
}

// Each of the counters of reaped children tells of a wait.
func TestParseStatWaited(t *testing.T) {
	fields := strings.Fields(string(line(7, "sh", 'S', 1, 0, 1, 1)))
	for field := 10; field <= 19; field++ {
		f := slices.Clone(fields)
		for i := 10; i <= 19; i++ {
			f[i-1] = "0"
		}
		f[field-1] = "3"
		st, err := parseStat([]byte(strings.Join(f, " ") + "\n"))
		want := field == 11 || field == 13 || field == 16 || field == 17 // man 5 proc_pid_stat
		if err != nil || st.waited != want {
			t.Errorf("field %d: %v, %v", field, st.waited, err)
		}
	}
}

func TestParseStatRefuses(t *testing.T) {
	good := string(line(12, "sh", 'S', 1, 0, 1, 99))
	for _, bad := range []string{
		"", "\n", "12", "12 (sh", "12 sh) S 1", "(sh) S 1 2", "12 (sh) S", "12 (sh) S ", ")(",
		strings.Replace(good, "12 (", "0 (", 1),
		strings.Replace(good, "12 (", "x (", 1),
		strings.Replace(good, "12 (", "4194305 (", 1),
		strings.Replace(good, "12 (", "99999999999999999999 (", 1),
		strings.Replace(good, ") S 1 ", ") S 99999999 ", 1),
		strings.Replace(good, ") S 1 ", ") S one ", 1),
		strings.Replace(good, ") S 1 ", ") 7 1 ", 1),
		strings.Replace(good, ") S 1 ", ") \x8e 1 ", 1),
		strings.Replace(good, ") S 1 ", ") S ", 1)[:40],
		good[:strings.Index(good, " 99 ")+2], // cut inside the start time
	} {
		if st, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, st)
		}
	}
}

// Signal sets are decimal, of the signals below 32.
func TestParseStatSignals(t *testing.T) {
	fields := strings.Fields(string(line(7, "sh", 'S', 1, 0, 1, 1)))
	fields[31], fields[32], fields[33] = "65536", "16384", "2147483647" // fields 32 to 34 in man 5 proc_pid_stat
	st, err := parseStat([]byte(strings.Join(fields, " ") + "\n"))
	if err != nil || st.blocked != 1<<(unix.SIGCHLD-1) || st.ignored != 1<<(unix.SIGTERM-1) || st.caught != 1<<31-1 {
		t.Errorf("%+v, %v", st, err)
	}
}

func FuzzStat(f *testing.F) {
	for _, comm := range hostileComms {
		f.Add(line(1, comm, 'Z', 1, 0, 1, 1))
	}
	f.Add([]byte("1 (a) Z 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// As a name it changes nothing else.
		want := stat{comm: []byte(string(b)), state: 'S', pid: 7, ppid: 1, flags: 2, threads: 3, start: 4}
		st, err := parseStat(line(7, string(b), 'S', 1, 2, 3, 4))
		if err != nil || !reflect.DeepEqual(st, want) {
			t.Fatalf("comm %q: %+v, %v", b, st, err)
		}
		st, err = parseStat(b)
		if err != nil {
			return
		}
		if st.pid == 0 || st.pid > maxPID || st.ppid > maxPID {
			t.Fatalf("pid %d, ppid %d", st.pid, st.ppid)
		}
		// What was understood can be written and understood again, but for
		// what no kernel prints, and the counters of waits and the signal sets, which line leaves out.
		again, err := parseStat(line(int(st.pid), string(st.comm), st.state, int(st.ppid), int(st.flags), int(st.threads), st.start))
		again.waited, again.blocked, again.ignored, again.caught = st.waited, st.blocked, st.ignored, st.caught
		if err != nil || !reflect.DeepEqual(again, st) {
			t.Fatalf("%q\n%+v\n%+v, %v", b, st, again, err)
		}
	})
}

const statusText = `Name:	a\nTracerPid:\t7
Umask:	0022
State:	Z (zombie)
Tgid:	4242
Ngid:	0
Pid:	4242
PPid:	1
TracerPid:	77
Uid:	1000	0	0	0
Gid:	1000	0	0	0
FDSize:	0
Groups:	4 24 27
NStgid:	4242	1
NSpid:	4242	17	1
Threads:	3
SigBlk:	0000000000010000
SigIgn:	0000000000001000
SigCgt:	00000001804a4a03
CapEff:	0000000000080000
`

func TestParseStatus(t *testing.T) {
	want := status{
		ppid: 1, tracer: 77, uid: 1000, nspid: []int{4242, 17, 1}, groups: []int{4, 24, 27}, capEff: 1 << 19,
	}
	if got := parseStatus([]byte(statusText)); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestField(t *testing.T) {
	if got, ok := field([]byte(statusText), "\nTracerPid:\t"); got != 77 || !ok {
		t.Errorf("%d, %v", got, ok)
	}
	for _, bad := range []string{"", "\nTracerPid:\t7", "\nTracerPid:\t\n", "\nTracerPid:\t-7\n", "TracerPid:\t7\n"} {
		if got, ok := field([]byte(bad), "\nTracerPid:\t"); ok {
			t.Errorf("%q gives %d", bad, got)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte(statusText))
	f.Add([]byte("NSpid:\t1 2 3"))
	f.Add([]byte("Uid:\t99999999999\nTgid:\nNSpid:\tx\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		st := parseStatus(b)
		if st.tracer < 0 || slices.ContainsFunc(st.nspid, func(n int) bool { return n < 0 }) {
			t.Fatalf("%q: %+v", b, st)
		}
		// The quick look and the whole parse agree where a line is there once.
		v, ok := field(b, "\nTracerPid:\t")
		if ok && bytes.Count(b, []byte("TracerPid:")) == 1 && v != st.tracer {
			t.Fatalf("%q: %d and %d", b, v, st.tracer)
		}
	})
}

func TestSplitCmdline(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"\x00", nil},
		{"a\x00", []string{"a"}},
		{"a\x00\x00b\x00", []string{"a", "", "b"}},
		{"a title without an end", []string{"a title without an end"}},
		{"cut\x00of", []string{"cut", "of"}},
		{"\xff\n\x00", []string{"\xff\n"}},
	} {
		if got := splitCmdline([]byte(tc.in)); !slices.Equal(got, tc.want) || (got == nil) != (tc.want == nil) {
			t.Errorf("%q gives %q", tc.in, got)
		}
	}
}

func FuzzCmdline(f *testing.F) {
	f.Add([]byte("sh\x00-c\x00\x00x\x00"))
	f.Add([]byte("a title without an end"))
	f.Add([]byte("\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		args := splitCmdline(b)
		whole := strings.TrimSuffix(string(b), "\x00")
		if strings.Join(args, "\x00") != whole || (args == nil) != (whole == "") {
			t.Fatalf("%q gives %q", b, args)
		}
	})
}

func TestParseLoadavg(t *testing.T) {
	if n, err := parseLoadavg("0.20 0.18 0.12 1/80123 11206\n"); n != 80123 || err != nil {
		t.Error(n, err)
	}
	for _, bad := range []string{"", "0 0 0", "0 0 0 7 1", "0 0 0 1/x 1", "0 0 0 1/-5 1"} {
		if n, err := parseLoadavg(bad); err == nil {
			t.Errorf("%q gives %d", bad, n)
		}
	}
}

func TestParseOffsets(t *testing.T) {
	for in, want := range map[string]task.Offsets{
		"monotonic           0         0\nboottime            0         0\n": {},
		"monotonic    5 0\nboottime  -86400  250000000\n": {
			Monotonic: 5 * time.Second, Boottime: -86400*time.Second + 250*time.Millisecond,
		},
	} {
		if got, err := parseOffsets([]byte(in)); got != want || err != nil {
			t.Errorf("%q gives %v, %v", in, got, err)
		}
	}
	for _, bad := range []string{
		"", "monotonic 0 0\n", "boottime 0 0\n", "monotonic 0 0\nboottime x 0\n", "monotonic 0 0\nboottime 1\n",
		"monotonic 0 0\nboottime 9223372036854775807 0\n", "monotonic 0 -1\nboottime 0 0\n",
	} {
		if got, err := parseOffsets([]byte(bad)); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

// What the node's files say is an error, or what anybody would read there.
func FuzzNode(f *testing.F) {
	f.Add("0.20 0.18 0.12 1/80123 11206\n", "monotonic           0         0\nboottime            0         0\n")
	f.Add("0 0 0 1/x 1", "monotonic    5 0\nboottime  -86400  250000000\n")
	f.Add("0 0 0 1/4294967296", "boottime 9223372036854775807 0\nmonotonic 1 1\n")
	f.Fuzz(func(t *testing.T, loadavg, offsets string) {
		if n, err := parseLoadavg(loadavg); err == nil {
			if _, total, _ := strings.Cut(strings.Fields(loadavg)[3], "/"); n < 0 || n > math.MaxInt32 || fmt.Sprint(n) != cmp.Or(strings.TrimLeft(total, "0"), "0") {
				t.Errorf("%q gives %d", loadavg, n)
			}
		}
		o, err := parseOffsets([]byte(offsets))
		if err != nil {
			return
		}
		for line := range strings.Lines(offsets) {
			var clock string
			var sec, nsec float64
			if n, _ := fmt.Sscan(line, &clock, &sec, &nsec); n != 3 || len(strings.Fields(line)) != 3 {
				continue
			}
			got, known := map[string]time.Duration{"monotonic": o.Monotonic, "boottime": o.Boottime}[clock]
			if !known || strings.Count(offsets, clock) > 1 {
				continue
			}
			if want := sec + nsec/1e9; math.Abs(got.Seconds()-want) > math.Abs(want)/1e9 {
				t.Errorf("%q gives %s for %s", offsets, got, clock)
			}
		}
	})
}

// dirent is an entry of a directory as the kernel gives it.
func dirent(name string) []byte {
	n := (19 + len(name) + 1 + 7) &^ 7
	b := make([]byte, n)
	b[16] = byte(n)
	copy(b[19:], name)
	return b
}

func TestNextPID(t *testing.T) {
	var got []uint32
	block := slices.Concat(dirent("."), dirent("1"), dirent("acpi"), dirent("4194304"), dirent("12x"),
		dirent("4194305"), dirent("4294967297"), dirent("77"))
	for b := block; len(b) > 0; {
		var pid uint32
		if pid, b = nextPID(b); pid != 0 {
			got = append(got, pid)
		}
	}
	if want := []uint32{1, 4194304, 77}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func FuzzNextPID(f *testing.F) {
	f.Add(slices.Concat(dirent("."), dirent("1"), dirent("acpi"), dirent("4194304"), dirent("077")))
	f.Add(slices.Concat(dirent("12x"), dirent("4294967297"))[:45])
	f.Add([]byte{16: 0, 19: '1', 24: 0})
	f.Add([]byte{16: 18, 19: '1', 24: 0})
	f.Add([]byte{16: 19, 17: 1, 19: '7'})
	f.Add([]byte{16: 24, 19: '1', 20: '2', 21: '3', 22: '4', 23: '5', 24: '6'})
	f.Fuzz(func(t *testing.T, block []byte) {
		// Digits behind the end of the block belong to nobody.
		names := append(slices.Clone(block), "999999999999999999999999"...)[:len(block)]
		for len(names) > 0 {
			var want uint64
			length := 0
			if len(names) >= 19 {
				length = int(binary.LittleEndian.Uint16(names[16:]))
			}
			if length < 19 || length > len(names) {
				length = len(names)
			} else {
				name, _, _ := bytes.Cut(names[19:length], []byte{0})
				if n, err := strconv.ParseUint(string(name), 10, 64); err == nil && n <= maxPID {
					want = n
				}
			}
			pid, rest := nextPID(names)
			if uint64(pid) != want || !bytes.Equal(rest, names[length:]) {
				t.Fatalf("%q gives %d and leaves %q, want %d and %q", names, pid, rest, want, names[length:])
			}
			names = rest
		}
	})
}

func TestChain(t *testing.T) {
	for _, tc := range []struct {
		root, cgroup string
		want         []string
	}{
		{"/", "/", []string{"."}},
		{"/", "/a/b/c", []string{"a/b/c", "a/b", "a", "."}},
		{"/a/b", "/a/b/c", []string{"c", "."}},
		{"/a/b", "/a/b", []string{"."}},
		{"/a/b", "/a/bc", nil},
		{"/a/b", "/", nil},
		{"/", "/../x", nil},
		{"/", "/a/../../etc", nil},
		{"/", "", nil},
	} {
		m := mount{root: tc.root, ok: true}
		if got := m.chain(tc.cgroup); !slices.Equal(got, tc.want) {
			t.Errorf("%s below %s: %q, want %q", tc.cgroup, tc.root, got, tc.want)
		}
	}
	deep := "/kubepods/pod/container" + strings.Repeat("/d", 1500)
	got := (&mount{root: "/", ok: true}).chain(deep)
	if n := len(got); n > chainMax+2 || got[0] != deep[1:] || !slices.Equal(got[n-4:], []string{"kubepods/pod/container", "kubepods/pod", "kubepods", "."}) {
		t.Errorf("a deep one: %q", got)
	}
	if got := (&mount{}).chain("/a"); got != nil {
		t.Errorf("without a mount: %q", got)
	}
}

func TestHidden(t *testing.T) {
	ptrace := status{capEff: 1 << 19}
	for _, tc := range []struct {
		hidepid, gid string
		st           status
		want         string
	}{
		{"", "", status{}, ""},
		{"off", "", status{}, ""},
		{"2", "4242", status{}, "invisible"},
		{"invisible", "4242", status{}, "invisible"},
		{"1", "4242", status{groups: []int{1, 4242}}, ""},
		{"noaccess", "4242", status{groups: []int{1}}, "noaccess"},
		{"ptraceable", "4242", status{groups: []int{4242}}, "ptraceable"},
		{"ptraceable", "", ptrace, ""},
		{"invisible", "4242", ptrace, ""},
	} {
		options := map[string]string{"hidepid": tc.hidepid, "gid": tc.gid}
		if got := hidden(options, &tc.st); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

// Whatever a process's cgroups are called, nothing outside the mounts is read.
func FuzzCgroup(f *testing.F) {
	for _, file := range []string{
		"0::/\n", "0::/a/b/c\n", "0::/ab/c\n", "0::/a/b (deleted)\n", "0::/../../x\n", "0::/..\n", "0::/a/../..\n", "0::\n0::relative\n0:..\n",
		"9:freezer:/a/..\n8:pids:/../a\n1:name=systemd:/a\n0::/b\n", "3:cpu,freezer,pids:/a//b/\n", "0::/a:/b\n0::/...\n0::/a/./b\n",
		"0::/" + strings.Repeat("b", 300), "0::" + strings.Repeat("/"+strings.Repeat("d", 250), 17) + "\n",
	} {
		f.Add("/", []byte(file))
		f.Add("/a", []byte(file))
	}
	// The directory above the mounts says all that makes a difference.
	above := f.TempDir()
	for name, text := range map[string]string{
		"cgroup.freeze": "1", "cgroup.events": "frozen 1", "freezer.state": "FROZEN", "pids.max": "1", "pids.current": "1",
	} {
		if err := os.WriteFile(filepath.Join(above, name), []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	inside := filepath.Join(above, "a")
	if err := os.Mkdir(inside, 0o700); err != nil {
		f.Fatal(err)
	}
	dir, err := unix.Open(inside, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Close(dir) })
	f.Fuzz(func(t *testing.T, root string, file []byte) {
		if len(file) > cgroupMax || bytes.IndexByte(file, 0) >= 0 || strings.Contains(root, "\x00") {
			return // no kernel writes that
		}
		m := mount{dir: dir, root: root, ok: true}
		name, pids := container.Pick(file)
		for _, path := range []string{name, pids} {
			if path != "" && (path[0] != '/' || !bytes.Contains(file, []byte(":"+path)) || strings.Contains(path, "\n")) {
				t.Fatalf("%q is no path of %q", path, file)
			}
			list := m.chain(path)
			for i, c := range list {
				if !filepath.IsLocal(c) || i > 0 && c != "." && !strings.HasPrefix(list[i-1], c+"/") {
					t.Fatalf("%q below %q: %q", path, root, list)
				}
			}
			if len(list) > 0 && list[len(list)-1] != "." {
				t.Fatalf("%q below %q ends in %q", path, root, list[len(list)-1])
			}
			if len(list) > 0 && root == filepath.Clean(root) && filepath.Join(root, list[0]) != filepath.Clean(path) {
				t.Fatalf("%q below %q begins with %q", path, root, list[0])
			}
		}
		s := Scanner{cgroups: hierarchies{unified: m, pids: m, freezer: m}}
		if frozen, err := s.cgroups.frozen(file); frozen || err != nil {
			t.Fatalf("%q below %q: frozen %v, %v", file, root, frozen, err)
		}
		if limits := s.PidsLimits(pids); limits != nil {
			t.Fatalf("%q below %q: %v", pids, root, limits)
		}
	})
}

// Among many that cost the usual a few that cost more do not use up what a tenant is
// allowed; those that all cost more do.
func TestAllowance(t *testing.T) {
	const usual = 40 * time.Microsecond
	a := newAllowance()
	for i := range 500_000 {
		cost := usual / 4
		if i%1000 == 0 { // 8 ms in 10: a hypervisor that takes half of the time
			cost = 8 * time.Millisecond
		}
		if a.charge(cost, usual); a.left.Load() <= 0 {
			t.Fatalf("used up after %d answers", i)
		}
	}
	slow := 0
	for ; a.left.Load() > 0; slow++ {
		a.charge(20*time.Millisecond, usual)
	}
	if slow > 6 {
		t.Errorf("%d answers of 20 ms were paid for", slow)
	}
}
