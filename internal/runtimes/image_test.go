package runtimes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	goruntime "runtime"
	"testing"

	"kzr/internal/zoo"
)

// The images. Each is one static program and nothing else.
const (
	imageZoo   = "kzr.test/zoo:1"
	imageKzr   = "kzr.test/kzr:1"
	imagePause = "kzr.test/pause:1" // for pods' sandboxes: one that reaps nobody
)

// images builds them as one archive in the format of `docker save`, which every
// runtime can load.
func images(t *testing.T, w *world) []byte {
	t.Helper()
	program, err := os.ReadFile(zoo.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	kzr, err := os.ReadFile(w.program())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []entry
	for _, i := range []struct {
		name, file string
		program    []byte
		entrypoint []string
	}{
		{imageZoo, "zoo", program, []string{"/zoo", "alone"}},
		{imageKzr, "kzr", kzr, []string{"/kzr"}},
		{imagePause, "pause", program, []string{"/pause", "alone"}},
	} {
		var layer bytes.Buffer
		l := tar.NewWriter(&layer)
		put(t, l, i.file, 0o755, i.program)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		config, err := json.Marshal(map[string]any{
			"architecture": goruntime.GOARCH,
			"os":           "linux",
			"config":       map[string]any{"Entrypoint": i.entrypoint, "Cmd": []string{"serve"}},
			"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
		})
		if err != nil {
			t.Fatal(err)
		}
		e := entry{fmt.Sprintf("%x.json", sha256.Sum256(config)), []string{i.name}, []string{i.file + ".tar"}}
		put(t, archive, e.Layers[0], 0o644, layer.Bytes())
		put(t, archive, e.Config, 0o644, config)
		manifest = append(manifest, e)
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	put(t, archive, "manifest.json", 0o644, text)
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func put(t *testing.T, w *tar.Writer, name string, mode int64, data []byte) {
	t.Helper()
	err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
}
