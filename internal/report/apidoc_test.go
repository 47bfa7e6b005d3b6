package report

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// docs/API.md names every field and every metric, and its event is one as it is
// printed.
func TestAPIDocumentation(t *testing.T) {
	b, err := os.ReadFile("../../docs/API.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	for _, v := range []any{Document{}, Parent{}, Status{}, Detail{}, Signals{}, PidsLimit{}, Relative{}, ZombieChild{}, StreamEvent{},
		Workload{}, Blocker{}, Origin{}, LimitUsed{}, ReapInside{}, KillTakes{}, Step{}} {
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" && !strings.Contains(doc, "`"+name+"`") && !strings.Contains(doc, `"`+name+`":`) &&
				!strings.Contains(doc, name+",") && !strings.Contains(doc, name+"}") {
				t.Errorf("%T: no %s", v, name)
			}
		}
	}
	if line := logged(t, "json", signalEvent()); !strings.Contains(doc, "\n"+line) {
		t.Errorf("the event is not what is printed: %s", line)
	}
	st := Status{Source: "bpf", TasksLimit: 1, Workloads: []Workload{{Name: "x", Pids: new(1), PidsLimit: new(1)}}}
	for line := range strings.Lines(scrape(t, NewMetrics(func() Status { return st }))) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ = strings.Cut(name, " ")
			if !strings.HasPrefix(name, "kzr_process_") && !strings.Contains(doc, "`"+name+"`") && !strings.Contains(doc, "`"+name+"{") {
				t.Errorf("no %s", name)
			}
		}
	}
}
