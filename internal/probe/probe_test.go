package probe

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"kzr/internal/task"
)

func TestQuick(t *testing.T) {
	p, err := Open(Options{Level: 50})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	go p.Hints(func(h task.Hint) { fmt.Println("hint", h, task.Now()) })
	cmd := exec.Command("python3", "-c", `
import os,time
for i in range(60):
    if os.fork()==0: os._exit(0)
time.sleep(2)`)
	cmd.Start()
	time.Sleep(time.Second)
	t0 := time.Now()
	s, err := p.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(time.Since(t0), s.Tasks, s.Zombies())
	for id, c := range s.Parents {
		fmt.Println(id, len(c.Reapable), c.Traced, c.Leaders, s.Ended-c.Reapable[0].Since)
	}
	fmt.Println(p.Counters())
	cmd.Wait()
}
