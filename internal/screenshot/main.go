// Command screenshot makes the pictures of `kzr top` in the documentation: it
// runs the real daemon and the real screen, in tmux, over processes that really
// leak, and draws what the terminal shows. What is staged is the tenants: real
// processes in pid namespaces and cgroups of their own, with a container runtime
// that does nothing but know their names. It needs root, cc and tmux, and leaves
// nothing behind. `make screenshot` runs it.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	kzr := flag.String("kzr", "bin/kzr", "the program")
	out := flag.String("out", "docs", "directory of the pictures")
	flag.Parse()
	if err := run(*kzr, *out); err != nil {
		fmt.Fprintln(os.Stderr, "screenshot:", err)
		os.Exit(1)
	}
}

//go:embed testdata/tenant.c
var tenantSource string

// The daemon may act on the stage alone, whatever else runs here.
const settings = `threshold: 50
grace: 20s
nudge: 2s
termTimeout: 3s
socket: %[1]s/kzr.sock
cri: [%[1]s/cri.sock]
rules:
- name: keep
  match: {exe: %[1]s/bin/*, namespace: legacy}
  action: observe
- name: stage
  match: {exe: %[1]s/bin/*}
  action: kill
- name: others
  action: observe
`

func run(kzr, out string) (err error) {
	if kzr, err = filepath.Abs(kzr); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kzr-")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &stage{ctx: ctx, dir: dir}
	defer func() {
		cancel() // whoever is on the stage ends with it
		err = errors.Join(err, s.clear())
	}()
	if err := s.build(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "kzr.yaml"), fmt.Appendf(nil, settings, dir), 0o600); err != nil {
		return err
	}
	const node = "KZR_NODE_NAME=node-17"
	daemon := exec.CommandContext(ctx, kzr, "run", "--config", filepath.Join(dir, "kzr.yaml"))
	daemon.Env = append(os.Environ(), node)
	if err := s.start(daemon); err != nil {
		return err
	}
	if err := s.await(func() bool { _, err := os.Stat(filepath.Join(dir, "kzr.sock")); return err == nil }); err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	if err := s.tmux("-u", "-f", "/dev/null", "new-session", "-d", "-x", "128", "-y", "34",
		"env LC_ALL=C.UTF-8 COLORTERM=truecolor "+kzr+" top --config "+dir+"/kzr.yaml"); err != nil {
		return err
	}

	// Whose time is up while one looks on, who is next, and who is left alone.
	early := []tenant{
		{argv: "python3 /app/worker.py --queue etl", namespace: "data", pod: "etl-0", name: "worker", leak: 312, kid: "sh", adopt: true},
		{argv: "sleep infinity", namespace: "ci", pod: "runner-5d8f", name: "job", leak: 96, kid: "git"},
		{argv: "/usr/sbin/cron -f", unit: "cron.service", leak: 57, kid: "sh"},
		{argv: "java -jar /srv/billing.jar", namespace: "legacy", pod: "billing-0", name: "app", leak: 140, rate: 2, most: 400, kid: "ping"},
	}
	late := []tenant{
		{argv: "node server.js", namespace: "shop", pod: "web-7f9c4d6b9-x2x9k", name: "app", leak: 900, rate: 18, most: 4000, kid: "curl"},
		{argv: "bash /entrypoint.sh", namespace: "media", pod: "transcode-6c5d", name: "ffmpeg", leak: 64, kid: "ffprobe", block: true},
		{argv: "nginx: master process nginx", namespace: "shop", pod: "edge-0", name: "nginx", leak: 7, kid: "nginx"},
		{argv: "/usr/bin/agent --watch", user: 1000, leak: 12, kid: "df"},
	}
	for _, t := range early {
		if err := s.enter(t); err != nil {
			return err
		}
	}
	time.Sleep(13 * time.Second)
	for _, t := range late {
		if err := s.enter(t); err != nil {
			return err
		}
	}
	// The first have been acted on by now: one was reaped inside, one is gone.
	if err := s.await(func() bool {
		screen := s.screen()
		return strings.Contains(screen, "reaped") && strings.Contains(screen, "terminated")
	}); err != nil {
		return fmt.Errorf("waiting for the daemon to act: %w\n%s", err, s.screen())
	}
	time.Sleep(2 * time.Second)
	if err := s.shoot(filepath.Join(out, "top.svg"), "kzr top"); err != nil {
		return err
	}
	if err := s.tmux("send-keys", "Enter"); err != nil {
		return err
	}
	if err := s.await(func() bool { return strings.Contains(s.screen(), "What kzr does") }); err != nil {
		return fmt.Errorf("opening the details: %w", err)
	}
	return s.shoot(filepath.Join(out, "top-details.svg"), "kzr top: details")
}
