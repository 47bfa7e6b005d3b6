package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	const output = `
{"Action":"run","Test":"TestScenario11PidReuse"}
{"Action":"run","Test":"TestScenario11PidReuse/ebpf"}
{"Action":"attr","Test":"TestScenario11PidReuse/ebpf","Key":"times","Value":"300"}
{"Action":"attr","Test":"TestScenario11PidReuse/ebpf","Key":"result","Value":"no signal | to a new owner"}
{"Action":"pass","Test":"TestScenario11PidReuse/ebpf"}
{"Action":"pass","Test":"TestScenario11PidReuse"}
{"Action":"run","Test":"TestScenario02SlowReaper"}
{"Action":"pass","Test":"TestScenario02SlowReaper"}
{"Action":"run","Test":"TestScenario02SlowReaper"}
{"Action":"pass","Test":"TestScenario02SlowReaper"}
{"Action":"run","Test":"TestFaultLogDiskFull"}
{"Action":"output","Test":"TestFaultLogDiskFull","Output":"    fault_test.go:99: the log stays\n"}
{"Action":"fail","Test":"TestFaultLogDiskFull"}
{"Action":"run","Test":"TestScenario31Clock"}
{"Action":"output","Test":"TestScenario31Clock","Output":"    life_test.go:9: it needs a machine of its own\n"}
{"Action":"skip","Test":"TestScenario31Clock"}
{"Action":"run","Test":"TestSoak"}
{"Action":"run","Test":"TestSoak/proc"}
{"Action":"run","Test":"TestSoak/proc/case1"}
{"Action":"pass","Test":"TestSoak/proc/case1"}
{"Action":"attr","Test":"TestSoak/proc","Key":"times","Value":"66"}
{"Action":"pass","Test":"TestSoak/proc"}
{"Action":"pass","Test":"TestSoak"}
{"Action":"fail"}`
	tries, err := read(strings.NewReader(strings.TrimSpace(output)))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if !write(&b, tries, "somewhere") {
		t.Error("the failure is not told")
	}
	_, rows, _ := strings.Cut(b.String(), "|--:|---|---|--:|---|\n")
	rows, missing, _ := strings.Cut(rows, "\n\n")
	want := []string{
		"| 2 | slow reaper: always some zombies, never an old one | `TestScenario02SlowReaper` | 2 | as it must be |",
		"| 11 | pid reused between detection and any signal | `TestScenario11PidReuse/ebpf` | 300 | no signal \\| to a new owner |",
		"| 31 | clock set back or forward; suspend | `TestScenario31Clock` | 0 | not run here: it needs a machine of its own |",
		"|  | Fault log disk full | `TestFaultLogDiskFull` | 0 | **failed 1 of 1**: the log stays |",
		"|  | Soak | `TestSoak/proc` | 66 | as it must be |",
	}
	if rows != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", rows, strings.Join(want, "\n"))
	}
	for _, say := range []string{"No test here: 1 (", "; 37 ("} {
		if !strings.Contains(missing, say) {
			t.Errorf("%q is not in %q", say, missing)
		}
	}
}

func TestConditions(t *testing.T) {
	if got := conditions([]string{"HOME=/root"}); got != "" {
		t.Errorf("of nothing it says %q", got)
	}
	got := conditions([]string{"KZR_SOAK=2m", "HOME=/root", "KZR_COMMIT=0123abc", "KZR_REUSE=2000"})
	if want := ", commit `0123abc`, with `KZR_REUSE=2000 KZR_SOAK=2m`"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestGuests(t *testing.T) {
	log := func(kernel, took string) string {
		return strings.ReplaceAll("Linux "+kernel+`
==== probe
=== RUN   TestHint
--- PASS: TestHint (0.01s)
PASS
==== e2e
=== RUN   TestScenario28MachineFull
=== RUN   TestScenario28MachineFull/ebpf
=== ATTR  TestScenario28MachineFull/ebpf result freed in `+took+`
--- PASS: TestScenario28MachineFull (1.00s)
    --- PASS: TestScenario28MachineFull/ebpf (1.00s)
=== RUN   TestScenario31Clock
--- PASS: TestScenario31Clock (1.00s)
PASS
verdict: passed
`, "\n", "\r\n")
	}
	var guests []*guest
	for _, text := range []string{log("5.10.0-46-cloud", "1s"), log("6.1.0-50-cloud-arm64", "2s")} {
		g, err := readGuest(text)
		if err != nil {
			t.Fatal(err)
		}
		guests = append(guests, g)
	}
	var b strings.Builder
	if writeGuests(&b, guests) {
		t.Error("a failure is told")
	}
	_, got, _ := strings.Cut(b.String(), "|--:|---|---|---|\n")
	want := strings.Join([]string{
		"| 28 | process table full, nothing can fork | `TestScenario28MachineFull/ebpf` | 5.10: freed in 1s; 6.1 on arm64: freed in 2s |",
		"| 31 | clock set back or forward; suspend | `TestScenario31Clock` | as it must be |",
		"|  | all of internal/probe that an emulated machine can time | | 1 passed |",
		"",
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	failing := strings.Replace(log("6.12.1", "3s"), "--- PASS: TestHint", "--- FAIL: TestHint", 1)
	g, err := readGuest(failing)
	if err != nil {
		t.Fatal(err)
	}
	b.Reset()
	if !writeGuests(&b, []*guest{g}) || !strings.Contains(b.String(), "**1 failed**") {
		t.Errorf("the failure is not told: %s", b.String())
	}
	cut, _, _ := strings.Cut(failing, "verdict")
	for _, bad := range []string{"", "no kernel\nverdict: passed\n", cut} {
		if _, err := readGuest(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestNotJSON(t *testing.T) {
	if _, err := read(strings.NewReader("ok kzr 1.2s\n")); err == nil {
		t.Error("plain output was taken")
	}
}
