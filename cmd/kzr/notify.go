package main

import (
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"kzr/internal/report"
	"kzr/internal/task"
)

// statusEvery is how often systemd is told what to show, where it has no
// watchdog that wants to hear more often.
const statusEvery = 10 * time.Second

// manager is systemd, if it started kzr and asked to be notified; otherwise its
// methods do nothing.
type manager struct {
	ready bool
	every time.Duration
}

func newManager() (*manager, error) {
	watchdog, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("reading systemd's watchdog setting: %w", err)
	}
	m := &manager{every: statusEvery}
	if watchdog > 0 {
		m.every = min(m.every, watchdog/3)
	}
	return m, nil
}

// beat feeds the watchdog. The loop that does the work calls it, the first time
// when it has seen the whole node: kzr is ready then.
func (m *manager) beat(st report.Status) error {
	text := fmt.Sprintf("STATUS=%s\nWATCHDOG=1", statusLine(st))
	if !m.ready {
		m.ready = true
		text = "READY=1\n" + text
	}
	_, err := sd.SdNotify(false, text)
	return err
}

// reloading and reloaded frame a reload, as Type=notify-reload has it.
func (m *manager) reloading() error {
	_, err := sd.SdNotify(false, sd.SdNotifyReloading+"\n"+sd.SdNotifyMonotonicUsec())
	return err
}

func (m *manager) reloaded() error {
	_, err := sd.SdNotify(false, sd.SdNotifyReady)
	return err
}

func (m *manager) stopping() error {
	_, err := sd.SdNotify(false, sd.SdNotifyStopping)
	return err
}

// statusLine is what `systemctl status` shows.
func statusLine(st report.Status) string {
	how := "through eBPF"
	if st.Source == task.SourceProc {
		how = "through /proc"
		if st.Mode == "auto" {
			how += " (eBPF does not work here)"
		}
	}
	dry := ""
	if st.DryRun {
		dry = ", dry run"
	}
	return fmt.Sprintf("watching %s%s: %d zombies, %d targets, %d killed", how, dry, st.Zombies, st.Targets, st.Kills)
}
