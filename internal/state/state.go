// Package state keeps what a kzr leaves to the next one: a file beside the socket, good
// for one boot of one machine.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// version is that of the format; another one is not read.
const version = 1

// maxSize bounds what is read, in bytes: far more than kzr writes.
const maxSize = 16 << 20

// File is where state is kept.
type File struct {
	path string
	boot string
}

type envelope struct {
	Version int             `json:"version"`
	Boot    string          `json:"boot"` // /proc/sys/kernel/random/boot_id
	State   json.RawMessage `json:"state"`
}

// Beside returns the file kzr.state in the directory of the socket.
func Beside(socket string) (*File, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the boot id: %w", err)
	}
	return &File{filepath.Join(filepath.Dir(socket), "kzr.state"), strings.TrimSpace(string(boot))}, nil
}

// Load fills v from what was saved. It is false, without an error, if there is nothing,
// or only what an earlier boot left. An error means that what is there cannot be
// trusted, and v is not to be used.
func (f *File) Load(v any) (found bool, err error) {
	fd, err := unix.Open(f.path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening %s: %w", f.path, err)
	}
	file := os.NewFile(uintptr(fd), f.path)
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("reading %s: %w", f.path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return false, fmt.Errorf("%s is not a regular file", f.path)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return false, fmt.Errorf("%s belongs to user %d", f.path, st.Uid)
	case st.Mode&0o022 != 0:
		return false, fmt.Errorf("%s is writable by others (mode %#o)", f.path, st.Mode&0o777)
	case st.Size > maxSize:
		return false, fmt.Errorf("%s is too large: %d bytes", f.path, st.Size)
	}
	b, err := io.ReadAll(io.LimitReader(file, maxSize))
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", f.path, err)
	}
	var e envelope
	if err := strict(b, &e); err != nil {
		return false, fmt.Errorf("reading %s: %w", f.path, err)
	}
	if e.Version != version {
		return false, fmt.Errorf("%s has format %d; expected %d", f.path, e.Version, version)
	}
	if e.Boot != f.boot {
		return false, nil
	}
	if err := strict(e.State, v); err != nil {
		return false, fmt.Errorf("reading %s: %w", f.path, err)
	}
	return true, nil
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("trailing data")
	}
	return nil
}

// Save replaces what is kept, in one step: a reader sees the old or the new.
func (f *File) Save(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the state: %w", err)
	}
	if b, err = json.Marshal(envelope{version, f.boot, b}); err != nil {
		return fmt.Errorf("encoding the state: %w", err)
	}
	// Only one kzr has the socket, so nobody else writes this; what a kzr that was killed
	// left half written goes first.
	tmp := f.path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("saving the state: %w", err)
	}
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("saving the state: %w", err)
	}
	_, err = file.Write(b)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(tmp, f.path)
	}
	if err != nil {
		return fmt.Errorf("saving the state: %w", errors.Join(err, os.Remove(tmp)))
	}
	return nil
}
