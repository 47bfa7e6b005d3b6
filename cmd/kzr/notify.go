package main

import (
	"fmt"
	"net"
	"os"
	"sync"
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
	addr  *net.UnixAddr // nil without one
	every time.Duration

	ready bool

	mu   sync.Mutex
	conn *net.UnixConn // made at the start: later there may be no descriptor for it
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
	if name := os.Getenv("NOTIFY_SOCKET"); name != "" {
		m.addr = &net.UnixAddr{Name: name, Net: "unixgram"}
		_ = m.dial() // what does not listen yet is tried again, and told of, at each message
	}
	return m, nil
}

// dial makes the connection, in place of one that does not work.
func (m *manager) dial() error {
	conn, err := net.DialUnix(m.addr.Net, nil, m.addr)
	if err != nil {
		return err
	}
	if m.conn != nil {
		m.conn.Close()
	}
	m.conn = conn
	return nil
}

// beat feeds the watchdog. The loop that does the work calls it, the first time
// when it has seen the whole node: kzr is ready then.
func (m *manager) beat(st report.Status) error {
	text := fmt.Sprintf("STATUS=%s\nWATCHDOG=1", statusLine(st))
	if !m.ready {
		text = "READY=1\n" + text
	}
	err := m.notify(text)
	m.ready = m.ready || err == nil
	return err
}

// busy feeds it in the middle of something long.
func (m *manager) busy() error {
	return m.notify(sd.SdNotifyWatchdog)
}

// reloading and reloaded frame a reload, as Type=notify-reload has it.
func (m *manager) reloading() error {
	return m.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
}

func (m *manager) reloaded() error {
	return m.notify(sd.SdNotifyReady)
}

func (m *manager) stopping() error {
	return m.notify(sd.SdNotifyStopping)
}

// notifyTimeout is how long the loop may wait for a manager that does not read.
const notifyTimeout = 100 * time.Millisecond

// notify is sd.SdNotify, which would wait for ever for a manager that hangs: on a
// node in trouble that must not keep kzr from its work.
func (m *manager) notify(state string) error {
	if m.addr == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.write(state) == nil {
		return nil
	}
	if err := m.dial(); err != nil { // another manager may listen there now
		return err
	}
	return m.write(state)
}

func (m *manager) write(state string) error {
	if err := m.conn.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return err
	}
	_, err := m.conn.Write([]byte(state))
	return err
}

// statusLine is what `systemctl status` shows: how kzr sees, what it sees, what it
// did, and what stands in its way.
func statusLine(st report.Status) string {
	how := "through eBPF"
	if st.Source == task.SourceProc {
		how = "through /proc"
	}
	if st.DryRun {
		how += ", dry run"
	}
	line := fmt.Sprintf("watching %s: %s, %s, %s terminated", how,
		counted(st.Zombies, "zombie"), counted(st.Targets, "target"), counted(st.Kills, "parent"))
	if n := len(st.Problems); n > 0 {
		line += "; " + oneLine(st.Problems[0])
		if n > 1 {
			line += fmt.Sprintf(" (and %d more)", n-1)
		}
	}
	return line
}

func counted[N int | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
