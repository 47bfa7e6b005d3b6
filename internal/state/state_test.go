package state

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type sample struct {
	Kills []int  `json:"kills"`
	Name  string `json:"name"`
}

func beside(t *testing.T) *File {
	t.Helper()
	f, err := Beside(filepath.Join(t.TempDir(), "kzr.sock"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSaveAndLoad(t *testing.T) {
	f := beside(t)
	var got sample
	if found, err := f.Load(&got); found || err != nil {
		t.Errorf("loaded from nothing: %t, %v", found, err)
	}
	want := sample{[]int{1, 2}, "x"}
	for range 2 { // the second replaces the first
		if err := f.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := f.Load(&got); !found || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v (%t, %v), want %+v", got, found, err, want)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(f.path), "kzr.state.*")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	var st unix.Stat_t
	if err := unix.Stat(f.path, &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("mode %#o, %v; want 0600", st.Mode&0o777, err)
	}
}

// What was saved before the machine was booted is about other processes.
func TestAnotherBoot(t *testing.T) {
	f := beside(t)
	if err := f.Save(sample{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	f.boot = "another"
	var got sample
	if found, err := f.Load(&got); found || err != nil || got.Name != "" {
		t.Errorf("got %+v (%t, %v)", got, found, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	boot := beside(t).boot
	good := `{"version":1,"boot":"` + boot + `","state":{"name":"x"}}`
	for name, tt := range map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"not JSON":       {text("kzr"), "invalid character"},
		"cut off":        {text(good[:len(good)-3]), "unexpected EOF"},
		"more behind it": {text(good + "{}"), "trailing data"},
		"unknown field":  {text(strings.Replace(good, "name", "nome", 1)), `unknown field "nome"`},
		"other format":   {text(strings.Replace(good, ":1", ":2", 1)), "has format 2; expected 1"},
		"link": {func(t *testing.T, path string) {
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
		}, "too many levels of symbolic links"},
		"fifo": {func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a regular file"},
		"somebody else's": {func(t *testing.T, path string) {
			text(good)(t, path)
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}, "belongs to user 65534"},
		"writable by others": {func(t *testing.T, path string) {
			text(good)(t, path)
			if err := os.Chmod(path, 0o622); err != nil {
				t.Fatal(err)
			}
		}, "is writable by others (mode 0622)"},
	} {
		t.Run(name, func(t *testing.T) {
			f := beside(t)
			tt.make(t, f.path)
			var got sample
			found, err := f.Load(&got)
			if found || err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), f.path) {
				t.Errorf("found %t, error %v; want one with %q and the path", found, err, tt.want)
			}
			if err := f.Save(sample{Name: "new"}); err != nil { // what is bad is replaced
				t.Fatal(err)
			}
			if found, err := f.Load(&got); !found || err != nil || got.Name != "new" {
				t.Errorf("after saving: %+v (%t, %v)", got, found, err)
			}
		})
	}
}

func text(s string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
