package report

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"kzr/internal/task"
)

func scrape(t testing.TB, m *Metrics) string {
	t.Helper()
	b, err := m.render()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMetrics(t *testing.T) {
	workloads := []Workload{
		{Name: "ssh.service", Zombies: 3, Pids: new(9)}, {Name: "prod/api-7f/app", Zombies: 60, Pids: new(90), PidsLimit: new(100)}, {Name: "root", Zombies: 2},
	}
	for i := range topWorkloads {
		workloads = append(workloads, Workload{Name: fmt.Sprint("job-", i), Zombies: 1, Pids: new(2), PidsLimit: new(10)})
	}
	m := NewMetrics(func() Status {
		return Status{Version: "1.2", Mode: "auto", Source: task.SourceBPF, Since: noon, LastSweep: noon,
			Tasks: 300, TasksLimit: 32768, Zombies: 60, Parents: 2, Suspects: 1, Targets: 1, Exits: 12345, Kills: 3, Lost: 7, Sweeps: 9,
			Workloads: workloads}
	})
	e := signalEvent()
	m.Observe(e)
	m.Observe(e)
	e.DryRun = true
	m.Observe(e)
	m.Observe(Event{Name: EventGaveUp, DryRun: true})
	m.Observe(Event{Name: EventGaveUp})
	m.Observe(Event{Name: EventSpared, Reason: "traced"})
	m.Observe(Event{Name: EventReaped, By: ByKzr})
	m.Observe(Event{Name: EventZombie})
	m.ObserveSweep(2 * time.Millisecond)
	m.ObserveDelay(40 * time.Millisecond)
	got := scrape(t, m)
	for _, want := range []string{
		`kzr_events_total{event="signal"} 3`,
		`kzr_events_total{event="gave_up"} 1`,
		`kzr_signals_total{dry_run="false",signal="SIGTERM"} 2`,
		`kzr_signals_total{dry_run="true",signal="SIGTERM"} 1`,
		`kzr_spared_total{reason="traced"} 1`,
		`kzr_spared_total{reason="rate_limited"} 0`,
		`kzr_sweep_duration_seconds_bucket{le="0.003"} 1`,
		`kzr_rule_to_signal_seconds_bucket{le="0.05"} 1`,
		`kzr_reaped_total{by="kzr"} 1`, `kzr_reaped_total{by="parent"} 0`,
		`kzr_mode_info{dry_run="false",mode="auto",source="bpf"} 1`,
		`kzr_workload_zombies{workload="prod/api-7f/app"} 60`, `kzr_workload_pids{workload="prod/api-7f/app"} 90`,
		`kzr_workload_pids_limit{workload="prod/api-7f/app"} 100`, `kzr_workload_zombies{workload="root"} 2`,
		`kzr_workload_zombies{workload="other"} 3`, `kzr_workload_pids{workload="other"} 6`,
		`kzr_tasks 300`, `kzr_tasks_limit 32768`, `kzr_zombies 60`, `kzr_parents 2`, `kzr_suspects 1`, `kzr_targets 1`,
		`kzr_exits_total 12345`, `kzr_kills_total 3`, `kzr_lost_events_total 7`, `kzr_sweeps_total 9`,
		`kzr_last_sweep_timestamp_seconds 1.772625600007e+09`,
		`kzr_process_resident_memory_bytes `,
	} {
		if !strings.Contains("\n"+got, "\n"+want) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	if n := strings.Count(got, "\nkzr_workload_zombies{"); n != topWorkloads+1 {
		t.Errorf("%d workloads", n)
	}
	// Neither is kzr's own, nor may a gauge pass for a setting.
	for _, bad := range []string{"_network_", "\nkzr_pressure ", "\nkzr_dry_run ", `workload_pids{workload="root"}`, `workload_pids_limit{workload="other"}`} {
		if strings.Contains(got, bad) {
			t.Errorf("there is %s", bad)
		}
	}
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, "# ") && !strings.HasPrefix(line, "kzr_") {
			t.Errorf("a name without kzr_: %s", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// What /proc cannot see is absent, not zero.
func TestMetricsOfProcSource(t *testing.T) {
	got := scrape(t, NewMetrics(func() Status { return Status{Source: task.SourceProc} }))
	for _, name := range []string{"kzr_exits_total", "kzr_tasks_limit"} {
		if strings.Contains(got, name) {
			t.Errorf("%s is there", name)
		}
	}
}

// However many processes there are, the number of series stays.
func TestMetricsDoNotGrow(t *testing.T) {
	m := NewMetrics(func() Status { return Status{} })
	series := func() int { return strings.Count(scrape(t, m), "\n") }
	before := series()
	for i := range 1000 {
		e := signalEvent()
		e.Process.PID, e.Process.Comm, e.Rule = i, fmt.Sprint("\x1b", i), fmt.Sprint(i)
		e.Process.Container.Pod = fmt.Sprint(i)
		for _, name := range eventNames {
			e.Name = name
			e.Reason = ""
			if name == EventSpared {
				e.Reason = "backoff"
			}
			m.Observe(e)
		}
	}
	if after := series(); after != before {
		t.Errorf("%d lines became %d", before, after)
	}
}
