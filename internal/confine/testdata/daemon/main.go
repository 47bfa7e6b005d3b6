// Command daemon is what the tests of confine look at: a daemon that confines itself,
// the intruder that has taken it over, and the victim.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"kzr/internal/confine"
	"kzr/internal/probe"
	"kzr/internal/procscan"
)

func main() {
	var err error
	switch os.Args[1] {
	case "victim":
		err = victim()
	case "intruder":
		err = intruder(os.Args[2:])
	case "live":
		err = live(os.Args[2] == "ebpf")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// secret is what nobody else is to write.
var secret = []byte("untouched")

func victim() error {
	fmt.Printf("%x\n", uintptr(unsafe.Pointer(&secret[0])))
	_, err := io.Copy(io.Discard, os.Stdin)
	fmt.Printf("%s\n", secret)
	return err
}

// intruder tries what is refused, and writes what came of it: PID ADDRESS [confined|commands].
func intruder(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	addr, err := strconv.ParseUint(args[1], 16, 64)
	if err != nil {
		return err
	}
	before := foreignGetpid()
	if len(args) > 2 {
		if err := confine.Daemon(confine.Options{Commands: args[2] == "commands"}); err != nil {
			return err
		}
	}
	said := make(map[string]string)
	try := func(what string, err error) {
		said[what] = "done"
		if errno := syscall.Errno(0); errors.As(err, &errno) {
			said[what] = unix.ErrnoName(errno)
		} else if err != nil {
			said[what] = err.Error()
		}
	}
	word := []byte("PWNED")
	local := []unix.Iovec{{Base: &word[0], Len: uint64(len(word))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(word)}}
	_, err = unix.ProcessVMWritev(pid, local, remote, 0)
	try("process_vm_writev", err)
	_, err = unix.ProcessVMReadv(pid, local, remote, 0)
	try("process_vm_readv", err)
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(word, int64(addr))
		f.Close()
	}
	try("mem", err)
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		_, err = unix.PidfdGetfd(fd, 1, 0)
	}
	try("pidfd_getfd", err)
	try("exec", exec.Command("/bin/true").Run())
	_, _, errno := unix.RawSyscall6(unix.SYS_BPF, unix.BPF_PROG_LOAD, 0, 0, 0, 0, 0)
	try("bpf", errno)
	_, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	try("exe", err)
	try("signal", unix.PidfdSendSignal(fd, 0, nil, 0))
	if before == os.Getpid() {
		if after := foreignGetpid(); after < 0 {
			try("foreign", syscall.Errno(-after))
		}
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}

// live confines itself and then does what a daemon does.
func live(ebpf bool) error {
	// One that sits in the kernel all the while.
	block := make([]int, 2)
	if err := unix.Pipe2(block, unix.O_CLOEXEC); err != nil {
		return err
	}
	go func() { _, _ = unix.Read(block[0], make([]byte, 1)) }()
	time.Sleep(10 * time.Millisecond)
	dir, err := os.MkdirTemp("", "kzr-confine-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	proc, err := procscan.New("/proc")
	if err != nil {
		return err
	}
	o := confine.Options{}
	use := func() error { _, err := proc.Snapshot(context.Background()); return err }
	if ebpf {
		offsets, err := proc.Offsets()
		if err != nil {
			return err
		}
		p, err := probe.Open(probe.Options{Offsets: offsets, Level: 50})
		if err != nil {
			return err
		}
		defer p.Close()
		use = func() error {
			_, err := p.Snapshot(context.Background())
			_, err2 := p.Counters()
			return errors.Join(err, err2, p.Attached(), p.SetLevel(60))
		}
		o.WithoutLoading = use
	}
	if err := confine.Daemon(o); err != nil {
		return err
	}
	if err := errors.Join(use(), threads(), sockets(dir), files(dir), signals()); err != nil {
		return err
	}
	s, err := confine.Of(os.Getpid())
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// threads has Go make more of them, preempt them, collect and give back.
func threads() error {
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for range 20 {
		wg.Go(func() {
			runtime.LockOSThread()
			<-gate
			for began := time.Now(); time.Since(began) < 20*time.Millisecond; {
				_ = make([]byte, 1<<16)
			}
		})
	}
	time.AfterFunc(10*time.Millisecond, func() { close(gate) })
	wg.Wait()
	runtime.GC()
	debug.FreeOSMemory()
	return nil
}

func sockets(dir string) error {
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	if _, err := s.Read(make([]byte, 1)); err != nil {
		return err
	}
	if tcp, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		tcp.Close()
		return errors.New("it made a TCP socket")
	}
	return nil
}

// files replaces one, as the state beside the socket is.
func files(dir string) error {
	for range 2 {
		f, err := os.CreateTemp(dir, "state")
		if err != nil {
			return err
		}
		_, err = f.WriteString("state")
		if err := errors.Join(err, f.Sync(), f.Close(), os.Rename(f.Name(), filepath.Join(dir, "state"))); err != nil {
			return err
		}
	}
	if _, err := os.ReadFile(filepath.Join(dir, "state")); err != nil {
		return err
	}
	if f, err := os.OpenFile(filepath.Join(dir, "state"), os.O_RDWR, 0); err == nil {
		f.Close()
		return errors.New("it opened a file for writing")
	}
	return nil
}

func signals() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return errors.Join(err, unix.PidfdSendSignal(fd, unix.SIGCHLD, nil, 0))
}
