package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

var scratch string // for what all tests share

func TestMain(m *testing.M) {
	if steps := os.Getenv("KZR_TEST_CAGE"); steps != "" {
		cage(strings.Fields(steps)) // never returns
	}
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root")
		os.Exit(1)
	}
	// They mostly wait: on a small machine more of them fit than it has CPUs.
	if !isSet("test.parallel") {
		_ = flag.Set("test.parallel", "8")
	}
	var err error
	if scratch, err = publicDir(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(scratch)
		os.Exit(code)
	}))
}

func isSet(name string) (found bool) {
	flag.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

// publicDir makes a directory that every user may look into, so that what is in
// it can be run by any.
func publicDir() (string, error) {
	dir, err := os.MkdirTemp("", "kzr-e2e-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("KZR_BIN"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(scratch, "kzr")
	args, cgo := []string{"build", "-buildvcs=false", "-o", path}, "CGO_ENABLED=0"
	if raceBuild {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(context.Background(), "go", append(args, "kzr/cmd/kzr")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building kzr: %w\n%s", err, bytes.TrimSpace(out))
	}
	return path, nil
})

// program is the built kzr.
func program(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
