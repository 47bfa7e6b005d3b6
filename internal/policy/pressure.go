package policy

// Pressure says which limit on pids is nearly reached because of zombies.
type Pressure string

// How near a limit is. The node's comes before a workload's own.
const (
	NoPressure       Pressure = ""
	WorkloadPressure Pressure = "workload" // of a pids cgroup on the workload's path
	NodePressure     Pressure = "node"     // of the whole node
)
