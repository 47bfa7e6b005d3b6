package runtimes

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience bounds every wait for what takes seconds at most on an idle machine.
const patience = 90 * time.Second

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root")
		os.Exit(1)
	}
	// Not every PATH has the directories of daemons.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	purgeAbandoned()
	goleak.VerifyTestMain(m)
}

// need skips a test whose programs are not there, unless they have to be.
func need(t *testing.T, programs ...string) {
	t.Helper()
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	switch {
	case missing == nil:
	case os.Getenv("KZR_REQUIRE_RUNTIMES") == "1":
		t.Fatalf("%s: not installed, and KZR_REQUIRE_RUNTIMES=1", strings.Join(missing, ", "))
	default:
		t.Skipf("%s: not installed; make test-runtimes does that", strings.Join(missing, ", "))
	}
}

// buildKzr builds the program. It is static whatever the tests are built with:
// it has to run in an image that holds nothing else.
var buildKzr = sync.OnceValues(func() ([]byte, error) {
	if path := os.Getenv("KZR_BIN"); path != "" {
		return os.ReadFile(path)
	}
	dir, err := os.MkdirTemp("", "kzr-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "kzr")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "kzr/cmd/kzr")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building kzr: %w\n%s", err, bytes.TrimSpace(out))
	}
	return os.ReadFile(path)
})
