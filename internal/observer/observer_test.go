package observer

import (
	"testing"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/procscan"
)

// newObserver sees through /proc, and has a rule for five zombies.
func newObserver(t *testing.T) *Observer {
	t.Helper()
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
	})
	c := config.Default()
	c.Threshold, c.Pressure = 5, 0
	p, err := policy.New(c, policy.Host{})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Source: proc, Proc: proc}, c, p)
}
