package e2e

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// A slow reaper is stopped for longer than the grace. Its zombies are old when it
// goes on, but it had no time to reap: it gets that.
func TestStoppedSlowReaper(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--grace=4s")
		z := zoo.Start(t, "in=pidns,proc exec=%s fork { name=kid chld=count term=count leak=20 serve } serve", s.exe)
		kid := z.Named("kid")
		kid.Signal(syscall.SIGSTOP)
		k.saw(kid.PID, "spared stopped")
		time.Sleep(2 * time.Second)
		kid.Signal(syscall.SIGCONT)
		// Far longer than kzr takes to look and to climb its ladder.
		time.Sleep(1500 * time.Millisecond)
		kid.Do("reap=all")
		k.never(2*time.Second, "a signal to one that reaped", func(e event) bool { return e.PID == kid.PID && isSignal(e) })
		if c := kid.Count(); c.TERM != 0 {
			t.Errorf("signalled: %+v", c)
		}
		alive(t, kid)
	})
}

// A configuration that is refused is an error in the log and stays a problem until
// a good one is read. A file that is there no more is refused as well: with the
// defaults in its place dryRun and the rules would be gone.
func TestRefusedReload(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	k := s.start("--mode=proc", "--scope=all", s.socket())
	good := readFile(t, s.config)
	problem := func() string {
		var st struct {
			Problems []string `json:"problems"`
		}
		s.wantAnswer("/v1/status", &st)
		for _, p := range st.Problems {
			if strings.HasPrefix(p, "the configuration on disk is invalid and not in force: ") {
				return p
			}
		}
		return ""
	}
	if p := problem(); p != "" {
		t.Fatal(p)
	}
	reloads := 0
	reload := func() event {
		t.Helper()
		reloads++
		k.send(syscall.SIGHUP)
		return k.awaitN(reloads, "an answer to SIGHUP", func(e event) bool { return e.Event == "reloaded" })[reloads-1]
	}
	for _, bad := range []func(){
		func() { s.configure("threshold: none") },
		func() {
			if err := os.Remove(s.config); err != nil {
				t.Fatal(err)
			}
		},
	} {
		bad()
		if e := reload(); e.Level != "ERROR" || e.Error == "" {
			t.Errorf("%s", e.line)
		}
		zoo.Within(t, patience, "it is among the problems", func() bool { return problem() != "" })
		if text := s.wantText("/metrics"); !strings.Contains(text, "\nkzr_config_last_reload_successful 0\n") {
			t.Error("not in the metrics")
		}
	}
	if r := run(t, "", "check", "--config=/dev/null", "--socket="+filepath.Join(s.dir, "kzr.sock")); !strings.Contains(r.stdout, "the configuration on disk is invalid and not in force: ") {
		t.Errorf("kzr check says nothing of it:\n%s", r.stdout)
	}
	if err := os.WriteFile(s.config, []byte(good), 0o644); err != nil {
		t.Fatal(err)
	}
	if e := reload(); e.Level != "INFO" {
		t.Errorf("%s", e.line)
	}
	zoo.Within(t, patience, "it is a problem no more", func() bool { return problem() == "" })
	if text := s.wantText("/metrics"); !strings.Contains(text, "\nkzr_config_last_reload_successful 1\n") {
		t.Error("not in the metrics")
	}
}

// Whoever reads the stream is told that kzr stops.
func TestStreamTellsOfTheEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	k := s.start("--mode=proc", "--scope=all", s.socket())
	stream, err := s.open("/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	k.stop()
	text, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, `"event":"stopping"`) {
		t.Errorf("the last line is %s", last)
	}
}

// A document stays one that a reader can take, whatever processes are called. Not
// beside other tests, whose kzr would look at all these parents too.
func TestFaultHugeDocument(t *testing.T) {
	s := newSite(t)
	s.start("--mode=proc", "--scope=all", s.socket())
	const parents = 1300
	arg := zoo.Quote(strings.Repeat(`\`, 3900))
	z := zoo.Start(t, "in=pidns,proc chld=reap serve")
	for range parents {
		z.Do("fork { exec=%s,%s leak=1 serve }", s.exe, arg)
	}
	var doc document
	zoo.Within(t, patience, "all are counted", func() bool {
		if s.ask("/v1/parents", &doc) != nil {
			return false
		}
		return len(doc.Parents)+doc.Omitted >= parents
	})
	size := 0
	for _, p := range doc.Parents {
		for _, a := range p.Cmdline {
			size += len(a)
		}
	}
	if size < 3<<20 || size > 5<<20 || doc.Omitted < 100 {
		t.Errorf("%d parents with %d bytes of arguments, %d omitted", len(doc.Parents), size, doc.Omitted)
	}
}
