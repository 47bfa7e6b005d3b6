package runtimes

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// An event is one line of kzr's log.
type event struct {
	Event       string
	Msg         string
	PID         int
	Container   string
	ContainerID string `json:"container_id"`
	Pod         string
	Namespace   string
	Rule        string
	Signal      string
	Reason      string
	Source      string
	By          string
}

// settings are those of every kzr here: quick, and confined by the rules to the
// containers of the world.
func (w *world) settings(socket, rules string) string {
	return `
threshold: 20
grace: 1s
nudge: 200ms
termTimeout: 1s
sweepInterval: 1s
pressure: 0
limits: {killsPerMinute: 100}
cri: ["` + socket + `"]
socket: ""
logFormat: json
rules:
` + strings.TrimLeft(rules, "\n") + `
- {name: rest, action: observe}
`
}

// A watcher reads the log of a kzr.
type watcher struct {
	*service
	log  string
	skip int // words before the JSON of each line
}

// run starts kzr on the host.
func (w *world) run(name, config string) *watcher {
	w.t.Helper()
	k := &watcher{service: w.serve(name, w.program(), "run", "--config", config), log: w.path(name + ".log")}
	k.started()
	return k
}

func (k *watcher) started() {
	k.t.Helper()
	if e := k.awaitEvent("started", func(e event) bool { return e.Event == "started" }); e.Source != "bpf" && e.Source != "proc" {
		k.t.Errorf("kzr sees through %q", e.Source)
	}
}

func (k *watcher) events(fits func(event) bool) []event {
	text, err := os.ReadFile(k.log)
	if err != nil && !os.IsNotExist(err) {
		k.t.Fatal(err)
	}
	var all []event
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(line, " ", k.skip+1)
		var e event
		if json.Unmarshal([]byte(parts[len(parts)-1]), &e) == nil && fits(e) {
			all = append(all, e)
		}
	}
	return all
}

// awaitEvent returns the first event that fits.
func (k *watcher) awaitEvent(what string, fits func(event) bool) event {
	k.t.Helper()
	var found []event
	k.await(what, func() bool {
		found = k.events(fits)
		return len(found) > 0
	})
	return found[0]
}

// never looks for a while, and wants no event that fits, from the start on.
func (k *watcher) never(window time.Duration, what string, fits func(event) bool) {
	k.t.Helper()
	time.Sleep(window)
	for _, e := range k.events(fits) {
		k.t.Errorf("%s: %+v", what, e)
	}
}

func about(pid int, name, detail string) func(event) bool {
	return func(e event) bool { return e.PID == pid && e.Event == name && e.Signal+e.Reason == detail }
}

// explained runs kzr explain, and wants these words in what it says.
func (w *world) explained(pid int, config string, words ...string) {
	w.t.Helper()
	out := w.command(w.program(), "explain", fmt.Sprint(pid), "--config", config)
	text := strings.Join(strings.Fields(out), " ")
	for _, want := range words {
		if !strings.Contains(text, want) {
			w.t.Errorf("what it says of process %d lacks %q:\n%s", pid, want, out)
		}
	}
}
