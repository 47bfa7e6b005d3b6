package procscan_test

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"kzr/internal/procscan"
	"kzr/internal/zoo"
)

// script is the pipeline of the cron job that kzr replaces.
const script = `ps -eo pid,ppid,stat,cmd | awk '$3 == "Z" { print $2 }' | sort -u`

// BenchmarkSnapshot sets a snapshot beside the script, in one run at each size:
// "script-ms" is the script's pass, "snapshot-ms" the snapshot's, and
// "times-faster" the ratio. "first-ms" and
// "first-times-faster" are those of a Scanner's first snapshot, which has to
// look for a tracer of every zombie: what `kzr scan` pays.
func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			makeRoom(b, n)
			z := zoo.Start(b, "leak=%d,async serve", n)
			zoo.Within(b, time.Minute, "all dead", func() bool { return of(snapshot(b, open(b)), z.PID).Total() == n })

			// The best of five of each, in turns: others use the machine too.
			var first, ours, theirs time.Duration
			s := open(b)
			for range 5 {
				best(&theirs, func() {
					out, err := exec.CommandContext(b.Context(), "sh", "-c", script).Output()
					if err != nil || len(out) == 0 {
						b.Fatalf("the script finds %d bytes, %v", len(out), err)
					}
				})
				best(&first, func() {
					s, err := procscan.New("/proc")
					if err != nil {
						b.Fatal(err)
					}
					snapshot(b, s)
					s.Close()
				})
				snapshot(b, s)
				best(&ours, func() { snapshot(b, s) })
			}
			b.ReportAllocs()
			for b.Loop() {
				if got := of(snapshot(b, s), z.PID).Total(); got != n {
					b.Fatalf("%d zombies, want %d", got, n)
				}
			}
			ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
			b.ReportMetric(ms(theirs), "script-ms")
			b.ReportMetric(ms(ours), "snapshot-ms")
			b.ReportMetric(ms(first), "first-ms")
			b.ReportMetric(float64(theirs)/float64(ours), "times-faster")
			b.ReportMetric(float64(theirs)/float64(first), "first-times-faster")
		})
	}
}

func best(d *time.Duration, f func()) {
	begin := time.Now()
	f()
	if took := time.Since(begin); *d == 0 || took < *d {
		*d = took
	}
}

// makeRoom raises pid_max for n more processes, until the benchmark ends.
func makeRoom(b *testing.B, n int) {
	b.Helper()
	const file = "/proc/sys/kernel/pid_max"
	old, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	limit, err := strconv.Atoi(string(bytes.TrimSpace(old)))
	if err != nil {
		b.Fatal(err)
	}
	if limit >= n+20_000 {
		return
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(n+20_000)), 0o644); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.WriteFile(file, old, 0o644); err != nil {
			b.Error(err)
		}
	})
}
