package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// Parents to which nothing must happen.

func TestScenario01Burst(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--scope=all", "--threshold=50", "--grace=2s")
		z := zoo.Start(t, "exec=%s chld=count term=count burst=300,every=800,hold=200,sig=0 serve", s.exe)
		// Bursts far above the threshold, for several times the grace, each of them
		// gone long before half of that is over: not even a suspicion.
		zoo.Within(t, patience, "eight bursts", func() bool { return z.Count().Reaped >= 8*300 })
		k.silentAbout(0, z.PID)
		alive(t, z.Proc)
		if c := z.Count(); c.CHLD != 0 || c.TERM != 0 { // its children send it none
			t.Errorf("signals came: %+v", c)
		}
	})
}

// A parent that never leaks but always has some fresh zombies.
func TestScenario02SlowReaper(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=20", "--grace=3s")
		z := zoo.Start(t, "exec=%s fresh=60,age=300 serve", s.exe)
		crowded := 0
		for end := time.Now().Add(7 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if z.Zombies() >= 20 {
				crowded++
			}
		}
		// More than twice the grace with enough zombies nearly all the time.
		if crowded < 20 {
			t.Fatalf("the parent had enough zombies only %d times", crowded)
		}
		k.silentAbout(0, z.PID)
	})
}

func TestScenario21NoZombiesWanted(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=1", "--grace=1s")
		var pids []int
		var all []*zoo.Zoo
		for _, how := range []string{"ignore", "nocldwait"} {
			z := zoo.Start(t, "exec=%s chld=%s storm=3000,rate=1000 serve", s.exe, how)
			pids, all = append(pids, z.PID), append(all, z)
		}
		for _, z := range all {
			zoo.Within(t, patience, "3000 children", func() bool { return z.Count().Made == 3000 })
		}
		// A grace and a sweep more.
		k.silentAbout(2500*time.Millisecond, pids...)
		for _, z := range all {
			s.wantCount(mode, z.PID, 0, 0)
		}
	})
}

// Short-lived parents, a thousand a second, each with zombies enough for the
// rule: it lives too short to be one for the grace, and its zombies fall to one
// that reaps.
func TestScenario34ShortLivedParents(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=3", "--grace=1s", s.socket())
		z := zoo.Start(t, "exec=%s flash=1000,kids=4 serve", s.exe)
		zoo.Within(t, patience, "4000 parents", func() bool { return z.Count().Made >= 4000 })
		z.Do("quiet")
		k.never(2*time.Second, "an event about such a parent", func(e event) bool { return e.Exe == s.exe })
		var doc document
		s.wantAnswer("/v1/parents", &doc)
		for _, p := range doc.Parents {
			if p.Exe == s.exe {
				t.Errorf("a stale entry: %+v", p)
			}
		}
		// What else is on the machine counts as well, so this is no tight bound; the
		// race detector has a memory of its own.
		if kib := resident(t, k.pid); kib > 64<<10 && !raceBuild {
			t.Errorf("kzr holds %d KiB", kib)
		}
	})
}

// resident is VmRSS in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nVmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
