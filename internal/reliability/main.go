// Command reliability turns the output of `go test -json`, on its standard input,
// into the table of docs/RELIABILITY.md: what was tried, how often, and what
// happened. The logs of `make vmtest`, named as arguments, become a second table.
// Nothing in them is written by hand. It fails if a test did.
//
// Tests say what came of them with [testing.TB.Attr]: `times`, how often they
// tried, and `result`, one sentence. On top stand the machine, the commit, which
// KZR_COMMIT names, and the settings that the tests read: all other variables
// that begin with KZR_.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// The situations that kzr must get right. The tests bear their numbers.
var situations = map[int]string{
	1:  "hundreds of children die at once and are reaped within a second",
	2:  "slow reaper: always some zombies, never an old one",
	3:  "one parent reaps most children and leaks some",
	4:  "parent that never waits",
	5:  "parent that reaps on SIGCHLD",
	6:  "parent that exits on SIGTERM, or ignores it",
	7:  "dead thread group leader, live threads",
	8:  "zombie held by a tracer",
	9:  "parent traced, stopped, frozen or in uninterruptible sleep",
	10: "parent already dying, blocked in its pid namespace",
	11: "pid reused between detection and any signal",
	12: "parent dies by itself while acted on",
	13: "the killed parent's zombies land on another that does not reap",
	14: "container init leaks",
	15: "protected host process leaks",
	16: "process named like a protected one inside a container",
	17: "process named to look like a rule's target",
	18: "hostile comm and command line",
	19: "empty command line, deleted executable, chroot, other mount namespace",
	20: "children with another exit signal",
	21: "parent that wants no zombies",
	22: "16,000 zombies a second, held",
	23: "ring buffer overrun, tables full",
	24: "nested pid and user namespaces",
	25: "kzr in a pid namespace that is not the host's",
	26: "hidepid, no CAP_SYS_PTRACE, no /proc",
	27: "no BTF, no CAP_BPF, bpf denied",
	28: "process table full, nothing can fork",
	29: "container at its own pids.max",
	30: "daemon killed in the middle of a ladder and restarted",
	31: "clock set back or forward; suspend",
	32: "reload while a target waits; a broken file",
	33: "slow, dead, hostile readers of the socket",
	34: "short-lived parents, thousands a second",
	35: "exec by a thread that is not the leader",
	36: "50 targets at once with 6 kills a minute",
	37: "kzr's own children",
	38: "parent stopped, in vfork or traced by its own child for ever",
	39: "zombies held by a sibling that traces and never waits",
	40: "many parents just under the threshold, or under a tenth of a limit",
	41: "workload that has used up its kills and fills the node",
	42: "container that restarts and fills its own pids.max again and again",
	43: "eight leaking workers side by side in one container",
	44: "zombie handed from subreaper to subreaper before grace ends",
	45: "reaps one zombie per SIGCHLD",
	46: "parent blocked in wait for one living child",
	47: "zombies put on a more privileged parent",
	48: "65,536 groups in every process",
	49: "dead leader, threads that come and go",
	50: "a look that never comes back",
	51: "epoll watches used up",
	52: "a decision that flips every second",
	53: "many cgroups or units of one owner",
	54: "100,000 zombies of a spared workload on the node",
	55: "kzr restarted, and crash-looping, while a workload leaks",
	56: "adopted zombies under programs that are pid 1",
	57: "own and adopted zombies mixed",
	58: "refusals of reaping inside; deaths, signals, exec meanwhile",
	59: "shim that does not reap; container init that waits for the dead",
	60: "pause process that does not reap",
}

// A line of `go test -json`.
type line struct {
	Action, Test, Output, Key, Value string
}

// A try is one test or subtest, over all times that it ran.
type try struct {
	name                     string
	passed, failed, skipped  int
	times                    int
	result, reason, lastText string
	parent                   bool // of subtests
}

var (
	numbered = regexp.MustCompile(`^TestScenario(\d+)`)
	version  = regexp.MustCompile(`^\d+\.\d+`)
	location = regexp.MustCompile(`^\s*\w+\.go:\d+: `)
	// Cases of the soak are counted by the soak.
	ofCourse = regexp.MustCompile(`^TestSoak/\w+/`)
)

func read(in io.Reader) (map[string]*try, error) {
	tries := map[string]*try{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("this is no output of go test -json: %w: %s", err, lines.Text())
		}
		if l.Test == "" || ofCourse.MatchString(l.Test) {
			continue
		}
		t := tries[l.Test]
		if t == nil {
			t = &try{name: l.Test}
			tries[l.Test] = t
			for i, c := range l.Test {
				if p := tries[l.Test[:i]]; c == '/' && p != nil {
					p.parent = true
				}
			}
		}
		switch l.Action {
		case "output":
			if text := location.ReplaceAllString(l.Output, ""); text != l.Output {
				t.lastText = strings.TrimSpace(text)
			}
		case "attr":
			switch l.Key {
			case "times":
				n, err := strconv.Atoi(l.Value)
				if err != nil {
					return nil, fmt.Errorf("%s: times: %w", l.Test, err)
				}
				t.times += n
			case "result":
				t.result = l.Value
			}
		case "pass":
			t.passed++
		case "fail":
			t.failed++
			t.reason = t.lastText
		case "skip":
			t.skipped++
			t.reason = t.lastText
		}
	}
	return tries, lines.Err()
}

func (t *try) number() int {
	if m := numbered.FindStringSubmatch(t.name); m != nil {
		n, _ := strconv.Atoi(m[1])
		return n
	}
	return 0
}

// situation is what was tried, in words.
func (t *try) situation() string {
	if s := situations[t.number()]; s != "" {
		return s
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(t.name, "Test"), "/")
	var words strings.Builder
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) {
			words.WriteByte(' ')
			r = unicode.ToLower(r)
		}
		words.WriteRune(r)
	}
	return words.String()
}

func (t *try) outcome() string {
	switch {
	case t.failed > 0:
		return fmt.Sprintf("**failed %d of %d**: %s", t.failed, t.failed+t.passed, t.reason)
	case t.passed == 0 && t.skipped > 0:
		return "not run here: " + t.reason
	case t.result != "":
		return t.result
	}
	return "as it must be"
}

// label is its number, if it has one.
func (t *try) label() string {
	if n := t.number(); n > 0 {
		return strconv.Itoa(n)
	}
	return ""
}

// rows are the tries that have something to tell: subtests rather than the test
// that holds them.
func rows(tries map[string]*try) (rows []*try) {
	for _, t := range tries {
		if !t.parent || t.result != "" || t.failed > 0 && !failedBelow(tries, t) {
			rows = append(rows, t)
		}
	}
	slices.SortFunc(rows, func(a, b *try) int {
		// Those without a number come last.
		order := func(t *try) int { return cmp.Or(t.number(), len(situations)+1) }
		return cmp.Or(order(a)-order(b), strings.Compare(a.name, b.name))
	})
	return rows
}

func write(out io.Writer, tries map[string]*try, machine string) (failed bool) {
	for _, t := range tries {
		failed = failed || t.failed > 0
	}
	rows := rows(tries)
	fmt.Fprintf(out, `# What was tried, how often, and what happened

Made by `+"`make reliability`"+` from the output of the tests in internal/e2e, internal/reapinside and internal/runtimes, which
start the built program or its helper beside real processes; not edited by hand. %s.

| # | situation | test | times | result |
|--:|---|---|--:|---|
`, machine)
	for _, t := range rows {
		fmt.Fprintf(out, "| %s | %s | `%s` | %d | %s |\n", t.label(), cell(t.situation()), t.name, max(t.times, t.passed), cell(t.outcome()))
	}
	var missing []string
	for _, n := range slices.Sorted(maps.Keys(situations)) {
		if !slices.ContainsFunc(rows, func(t *try) bool { return t.number() == n }) {
			missing = append(missing, fmt.Sprintf("%d (%s)", n, situations[n]))
		}
	}
	if len(missing) > 0 {
		fmt.Fprintf(out, "\nNo test here: %s.\n", strings.Join(missing, "; "))
	}
	return failed
}

// A guest is a virtual machine that ran tests.
type guest struct {
	kernel   string
	packages map[string]map[string]*try // what each package's tests came to
}

// name is its kernel's, short.
func (g *guest) name() string {
	name := version.FindString(g.kernel)
	if strings.HasSuffix(g.kernel, "-arm64") {
		name += " on arm64"
	}
	return name
}

// readGuest takes the log of a virtual machine: "Linux RELEASE", and for each
// package "==== PACKAGE" and what its tests print when they are run with -v.
func readGuest(log string) (*guest, error) {
	kernel, log, _ := strings.Cut(strings.ReplaceAll(log, "\r", ""), "\n")
	g := &guest{packages: map[string]map[string]*try{}}
	var ok bool
	if g.kernel, ok = strings.CutPrefix(kernel, "Linux "); !ok {
		return nil, fmt.Errorf("it begins with %q and not with the kernel's name", kernel)
	}
	log, verdict, _ := strings.Cut(log, "\nverdict: ")
	if verdict == "" {
		return nil, errors.New("it came to no end")
	}
	for section := range strings.SplitSeq("\n"+log, "\n==== ") {
		name, text, _ := strings.Cut(section, "\n")
		if name == "" {
			continue
		}
		convert := exec.Command("go", "tool", "test2json")
		convert.Stdin = strings.NewReader(text + "\n") // the split took it
		out, err := convert.Output()
		if err != nil {
			return nil, fmt.Errorf("go tool test2json: %w", err)
		}
		if g.packages[name], err = read(bytes.NewReader(out)); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// writeGuests writes the second table: a row for each test of the whole program,
// and one for each other package.
func writeGuests(out io.Writer, guests []*guest) (failed bool) {
	fmt.Fprint(out, `
## On other kernels

Made by `+"`make vmtest`"+`: the same tests, with the machine to themselves, in virtual machines with emulated processors,
and the tests of what speaks with the kernel.

| # | situation | test | result |
|--:|---|---|---|
`)
	e2e := map[string]*try{}
	others := map[string]bool{}
	for _, g := range guests {
		for name, tries := range g.packages {
			for _, t := range tries {
				failed = failed || t.failed > 0
			}
			if name == "e2e" {
				maps.Copy(e2e, tries)
			} else {
				others[name] = true
			}
		}
	}
	for _, t := range rows(e2e) {
		tell := func(g *guest) string {
			if t := g.packages["e2e"][t.name]; t != nil {
				return t.outcome()
			}
			return "not run"
		}
		fmt.Fprintf(out, "| %s | %s | `%s` | %s |\n", t.label(), cell(t.situation()), t.name, cell(onEach(guests, tell)))
	}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		tell := func(g *guest) string {
			passed, failed := 0, 0
			for _, t := range g.packages[name] {
				passed, failed = passed+t.passed, failed+t.failed
			}
			if failed > 0 {
				return fmt.Sprintf("%d passed, **%d failed**", passed, failed)
			}
			return fmt.Sprintf("%d passed", passed)
		}
		fmt.Fprintf(out, "|  | all of internal/%s that an emulated machine can time | | %s |\n", name, onEach(guests, tell))
	}
	return failed
}

// onEach says what came of something on each kernel, or once what did on all.
func onEach(guests []*guest, tell func(*guest) string) string {
	var all []string
	same := true
	for _, g := range guests {
		same = same && tell(g) == tell(guests[0])
		all = append(all, fmt.Sprintf("%s: %s", g.name(), tell(g)))
	}
	if same {
		return tell(guests[0])
	}
	return strings.Join(all, "; ")
}

func failedBelow(tries map[string]*try, t *try) bool {
	for name, sub := range tries {
		if strings.HasPrefix(name, t.name+"/") && sub.failed > 0 {
			return true
		}
	}
	return false
}

// cell makes a text fit into one cell of a table.
func cell(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "|", `\|`)), " ")
}

func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail with a valid pointer
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return fmt.Sprintf("%s, Linux %s, %d CPUs, %s",
		time.Now().UTC().Format(time.DateOnly), release, runtime.NumCPU(), runtime.Version())
}

// conditions says of what commit and with what settings this was, as far as the
// environment tells.
func conditions(environ []string) string {
	commit, settings := "", []string{}
	for _, v := range environ {
		if c, ok := strings.CutPrefix(v, "KZR_COMMIT="); ok {
			commit = c
		} else if strings.HasPrefix(v, "KZR_") {
			settings = append(settings, v)
		}
	}
	text := ""
	if commit != "" {
		text += fmt.Sprintf(", commit `%s`", commit)
	}
	if slices.Sort(settings); len(settings) > 0 {
		text += fmt.Sprintf(", with `%s`", strings.Join(settings, " "))
	}
	return text
}

func main() {
	failed, err := run(os.Stdin, os.Stdout, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "reliability:", err)
		os.Exit(1)
	}
	if failed {
		fmt.Fprintln(os.Stderr, "reliability: a test failed")
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, logs []string) (failed bool, err error) {
	tries, err := read(in)
	if err != nil {
		return false, err
	}
	var guests []*guest
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		g, err := readGuest(string(text))
		if err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		guests = append(guests, g)
	}
	failed = write(out, tries, machine()+conditions(os.Environ()))
	if len(guests) > 0 {
		failed = writeGuests(out, guests) || failed
	}
	return failed, nil
}
