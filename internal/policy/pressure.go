package policy

import "time"

// Pressure says whose pids run out.
type Pressure string

// The kinds of pressure.
const (
	NoPressure       Pressure = ""
	WorkloadPressure Pressure = "workload" // a pids cgroup that the parent is in
	NodePressure     Pressure = "node"
)

// PressureGrace is how long a zombie must have been dead when pids run out.
const PressureGrace = time.Second

// Pressed says whether a limit on tasks is so nearly reached that zombies are the
// reason: tasks at or over fraction of limit, and zombies, over all parents, at least
// a tenth of limit. A fraction or limit of 0 is no pressure.
func Pressed(fraction float64, tasks, limit, zombies int) bool {
	return Near(fraction, tasks, limit) && zombies > 0 && zombies*10 >= limit
}

// Near says whether tasks are at or over fraction of limit, whoever they are.
func Near(fraction float64, tasks, limit int) bool {
	return fraction > 0 && limit > 0 && float64(tasks) >= fraction*float64(limit)
}
