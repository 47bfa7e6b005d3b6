package report

import (
	"bytes"
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"kzr/internal/policy"
	"kzr/internal/task"
)

// Metrics counts what kzr does. Its labels take only values that kzr chose, but for
// the names of the worst workloads, and so their number is bounded; what belongs to
// one process is in the log.
type Metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	signals  *prometheus.CounterVec
	reaped   *prometheus.CounterVec
	spared   *prometheus.CounterVec
	notices  *prometheus.CounterVec
	override prometheus.Counter
	sweep    prometheus.Histogram
	delay    prometheus.Histogram
}

// NewMetrics makes the metrics. Gauges and the counters that the daemon keeps
// anyway are read from status when somebody scrapes.
func NewMetrics(status func() Status) *Metrics {
	m := &Metrics{
		registry: prometheus.NewPedanticRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kzr_events_total", Help: "Decisions by name, as in the log.",
		}, []string{"event"}),
		signals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kzr_signals_total", Help: "Signals sent to parents, or held back by dryRun.",
		}, []string{"signal", "dry_run"}),
		spared: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kzr_spared_total", Help: "Parents that met the rule and were not acted on, by reason.",
		}, []string{"reason"}),
		reaped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kzr_reaped_total", Help: "Parents whose zombies were reaped without ending them, by who reaped.",
		}, []string{"by"}),
		override: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kzr_limits_overridden_total", Help: "Signals that the limits on kills forbade and that the node's pid limit asked for.",
		}),
		notices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kzr_notices_total", Help: "Outcomes handed on as Kubernetes Events or to the onAction command, by result.",
		}, []string{"to", "result"}),
		sweep: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kzr_sweep_duration_seconds", Help: "Time for one sweep of the task list.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10},
		}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kzr_rule_to_signal_seconds", Help: "Time from the moment a parent met the rule to the first signal.",
			Buckets: []float64{.001, .003, .01, .03, .05, .1, .3, 1, 3, 10, 60},
		}),
	}
	// Every series exists from the start, so that a rate sees the first event.
	for _, e := range eventNames {
		m.events.WithLabelValues(e)
	}
	for _, s := range signalNames {
		m.signals.WithLabelValues(s, "false")
		m.signals.WithLabelValues(s, "true")
	}
	for _, r := range reasons {
		m.spared.WithLabelValues(string(r))
	}
	for _, by := range []string{ByParent, ByKzr} {
		m.reaped.WithLabelValues(by)
	}
	m.registry.MustRegister(m.events, m.signals, m.spared, m.reaped, m.notices, m.override, m.sweep, m.delay, &statusCollector{status},
		// kzr's own memory and descriptors. The Go collector is left out: for what
		// it costs in series it tells little of a daemon of this size.
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: "kzr"}))
	return m
}

var (
	eventNames = []string{
		EventStarted, EventSuspect, EventSignal, EventReaped, EventTerminated,
		EventSpared, EventGaveUp, EventLostEvents, EventReloaded, EventStopping,
	}
	signalNames = []string{"SIGCHLD", "SIGTERM", "SIGKILL"}
	reasons     = []policy.Reason{
		policy.Protected, policy.OutOfScope, policy.ByRule, policy.Traced, policy.Stopped, policy.Frozen,
		policy.Dying, policy.Uninterruptible, policy.Waiting, policy.Foreign, policy.IdentityChanged, policy.Recovered, policy.RateLimited, policy.Backoff,
	}
)

// Observe counts a decision.
func (m *Metrics) Observe(e Event) {
	if e.Name == EventZombie {
		return
	}
	if e.Name != EventGaveUp || !e.DryRun { // a dry run ends so, and gives nothing up
		m.events.WithLabelValues(e.Name).Inc()
	}
	switch e.Name {
	case EventSignal:
		m.signals.WithLabelValues(e.Signal, fmt.Sprint(e.DryRun)).Inc()
		if e.LimitsOverridden && !e.DryRun {
			m.override.Inc()
		}
	case EventReaped:
		m.reaped.WithLabelValues(cmp.Or(e.By, ByParent)).Inc()
	case EventSpared:
		m.spared.WithLabelValues(e.Reason).Inc()
	}
}

// ObserveNotice counts what became of an outcome that was handed on: to is kubernetes
// or command.
func (m *Metrics) ObserveNotice(to, result string) { m.notices.WithLabelValues(to, result).Inc() }

// ExpectNotices makes the series of a receiver that is configured, at 0.
func (m *Metrics) ExpectNotices(to string, results []string) {
	for _, r := range results {
		m.notices.WithLabelValues(to, r)
	}
}

// ObserveSweep counts a sweep that took d.
func (m *Metrics) ObserveSweep(d time.Duration) { m.sweep.Observe(d.Seconds()) }

// ObserveDelay counts a ladder whose first signal came d after its parent met
// the rule.
func (m *Metrics) ObserveDelay(d time.Duration) { m.delay.Observe(d.Seconds()) }

// render gives the text format, which every scraper of the last ten years reads.
func (m *Metrics) render() ([]byte, error) {
	families, err := m.registry.Gather()
	if err != nil && len(families) == 0 {
		return nil, fmt.Errorf("gathering metrics: %w", err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if strings.Contains(f.GetName(), "_network_") { // of the namespace that kzr is in: not kzr's own
			continue
		}
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, fmt.Errorf("rendering metrics: %w", err)
		}
	}
	return b.Bytes(), nil
}

// statusCollector turns a Status into metrics.
type statusCollector struct{ status func() Status }

var (
	descBuild    = desc("build_info", "Always 1, with kzr's version.", "version", "goversion")
	descMode     = desc("mode_info", "Always 1, with how kzr sees zombies and whether it sends signals.", "mode", "source", "dry_run")
	descTasks    = desc("tasks", "Threads and zombies on the node.")
	descLimit    = desc("tasks_limit", "How many tasks the node can have.")
	descZombies  = desc("zombies", "Tasks in state Z.")
	descParents  = desc("parents", "Processes with at least one zombie child.")
	descSuspects = desc("suspects", "Parents with enough zombies whose grace is not over.")
	descTargets  = desc("targets", "Parents that meet the rule or are being acted on.")
	descPressure = desc("under_pressure", "1 while the node's task count is over the configured fraction of its limit.")
	descExits    = desc("exits_total", "Processes that ended.")
	descKills    = desc("kills_total", "Parents that ended after a signal of kzr's.")
	descLost     = desc("lost_events_total", "Kernel events that were dropped.")
	descLogDrop  = desc("log_lines_dropped_total", "Log lines that could not be written.")
	descSweeps   = desc("sweeps_total", "Sweeps of the task list.")
	descReload   = desc("config_last_reload_successful", "0 if the configuration on disk was read again and refused.")
	descLast     = desc("last_sweep_timestamp_seconds", "When the last sweep ended, in seconds since 1970.")

	descWorkloadZombies = desc("workload_zombies", "Tasks in state Z by workload; those beyond the first 20 are summed up as other.", "workload")
	descWorkloadPids    = desc("workload_pids", "Tasks in the workload's cgroup, where its pids controller tells.", "workload")
	descWorkloadLimit   = desc("workload_pids_limit", "How many tasks the workload can have, where there is a limit.", "workload")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kzr_"+name, help, labels, nil)
}

// Describe is part of prometheus.Collector.
func (c *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descMode, descTasks, descLimit, descZombies, descParents, descSuspects,
		descTargets, descPressure, descExits, descKills, descLost, descLogDrop, descSweeps, descLast, descReload,
		descWorkloadZombies, descWorkloadPids, descWorkloadLimit,
	} {
		ch <- d
	}
}

// Collect is part of prometheus.Collector.
func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(descBuild, 1, Sanitize(st.Version), runtime.Version())
	gauge(descMode, 1, Sanitize(st.Mode), Sanitize(string(st.Source)), fmt.Sprint(st.DryRun))
	gauge(descTasks, float64(st.Tasks))
	if st.TasksLimit > 0 {
		gauge(descLimit, float64(st.TasksLimit))
	}
	gauge(descZombies, float64(st.Zombies))
	gauge(descParents, float64(st.Parents))
	gauge(descSuspects, float64(st.Suspects))
	gauge(descTargets, float64(st.Targets))
	gauge(descPressure, one(st.UnderPressure))
	if st.Source == task.SourceBPF { // /proc shows no exits, which is not the same as none
		counter(descExits, st.Exits)
	}
	counter(descKills, st.Kills)
	counter(descLost, st.Lost)
	counter(descLogDrop, st.LogDropped)
	counter(descSweeps, st.Sweeps)
	gauge(descLast, unixSeconds(st.LastSweep))
	gauge(descReload, one(!st.ReloadFailed))
	collectWorkloads(st.Workloads, gauge)
}

// topWorkloads is how many workloads have series of their own, and otherWorkloads
// the label of the sum of the rest.
const (
	topWorkloads   = 20
	otherWorkloads = "other"
)

// collectWorkloads gives the workloads with most zombies. The sum of the others has
// no limit: limits that hold apart tell nothing together.
func collectWorkloads(all []Workload, gauge func(*prometheus.Desc, float64, ...string)) {
	all = slices.SortedFunc(slices.Values(all), compareWorkloads)
	var zombies, pids int
	shown := make(map[string]bool)
	for _, w := range all {
		name := SanitizeTo(w.Name, 256)
		if len(shown) == topWorkloads || shown[name] || name == otherWorkloads {
			zombies += w.Zombies
			if w.Pids != nil {
				pids += *w.Pids
			}
			continue
		}
		shown[name] = true
		gauge(descWorkloadZombies, float64(w.Zombies), name)
		if w.Pids != nil {
			gauge(descWorkloadPids, float64(*w.Pids), name)
		}
		if w.PidsLimit != nil {
			gauge(descWorkloadLimit, float64(*w.PidsLimit), name)
		}
	}
	if len(all) > len(shown) {
		gauge(descWorkloadZombies, float64(zombies), otherWorkloads)
		gauge(descWorkloadPids, float64(pids), otherWorkloads)
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// unixSeconds is 0 for the zero time.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
