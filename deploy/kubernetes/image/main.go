// Command image writes a container image as an OCI archive, for several processors
// at once, without a container engine: containerd, CRI-O, podman, skopeo and docker
// read it. The same files make the same bytes.
//
//	image -o FILE -ref NAME:TAG -version V -revision COMMIT -license FILE amd64=BINARY arm64=BINARY
//
// SOURCE_DATE_EPOCH is the time of everything in it.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.out, "o", "kzr.oci.tar", "`file` to write")
	flag.StringVar(&o.ref, "ref", "localhost/kzr:latest", "name that the image is imported under")
	flag.StringVar(&o.version, "version", "", "version of kzr")
	flag.StringVar(&o.revision, "revision", "", "commit that it was made from")
	flag.Func("license", "`file` with a license (repeatable)", func(file string) error {
		o.licenses = append(o.licenses, file)
		return nil
	})
	flag.Parse()
	o.binaries = flag.Args()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

type options struct {
	out, ref, version, revision string
	licenses                    []string
	binaries                    []string // ARCH=FILE
}

// The media types of the OCI image specification, version 1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

func run(o options) error {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	made := time.Unix(epoch, 0).UTC()
	files := []file{{name: "usr/bin/kzr", mode: 0o755}}
	for _, path := range o.licenses {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files = append(files, file{name: "usr/share/doc/kzr/" + filepath.Base(path), mode: 0o644, data: data})
	}
	about := map[string]string{
		"org.opencontainers.image.title":    "kzr",
		"org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.version":  o.version,
		"org.opencontainers.image.revision": o.revision,
		"org.opencontainers.image.created":  made.Format(time.RFC3339),
	}

	a := archive{made: made, blobs: make(map[string]bool)}
	a.tar = tar.NewWriter(&a.file)
	var images []descriptor
	for _, arg := range o.binaries {
		arch, path, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q is not ARCH=FILE", arg)
		}
		if files[0].data, err = os.ReadFile(path); err != nil {
			return err
		}
		image, err := a.image(arch, files, about)
		if err != nil {
			return err
		}
		images = append(images, image)
	}
	if len(images) == 0 {
		return fmt.Errorf("no ARCH=FILE is given")
	}
	// One index with every processor's image, and over it the list of what the archive
	// holds: a reader takes the whole under one name, or its own processor's part.
	index := a.json(typeIndex, map[string]any{
		"schemaVersion": 2, "mediaType": typeIndex, "manifests": images, "annotations": about,
	})
	_, tag, _ := strings.Cut(o.ref[strings.LastIndexByte(o.ref, '/')+1:], ":")
	index.Annotations = map[string]string{
		"org.opencontainers.image.ref.name": tag,
		"io.containerd.image.name":          o.ref,
	}
	a.put("index.json", marshal(map[string]any{
		"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{index},
	}))
	a.put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := a.tar.Close(); err != nil {
		return err
	}
	return os.WriteFile(o.out, a.file.Bytes(), 0o644)
}

// archive is an OCI image layout in a tar.
type archive struct {
	made  time.Time
	file  bytes.Buffer
	tar   *tar.Writer
	blobs map[string]bool
}

type file struct {
	name string
	mode int64
	data []byte
}

// image adds all of one processor's image.
func (a *archive) image(arch string, files []file, about map[string]string) (descriptor, error) {
	var layer bytes.Buffer
	t := tar.NewWriter(&layer)
	for _, dir := range []string{"etc/", "etc/kzr/", "etc/kzr/kzr.yaml.d/", "run/", "run/kzr/", "usr/", "usr/bin/", "usr/share/", "usr/share/doc/", "usr/share/doc/kzr/"} {
		a.header(t, tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755})
	}
	for _, f := range files {
		a.header(t, tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data))})
		write(t, f.data)
	}
	if err := t.Close(); err != nil {
		return descriptor{}, err
	}
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression) // the level exists
	write(z, layer.Bytes())
	if err := z.Close(); err != nil {
		return descriptor{}, err
	}
	config := a.json(typeConfig, map[string]any{
		"created": a.made.Format(time.RFC3339), "architecture": arch, "os": "linux",
		"config": map[string]any{
			"Env": []string{"PATH=/usr/bin"}, "Entrypoint": []string{"/usr/bin/kzr"}, "Cmd": []string{"run"}, "Labels": about,
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}},
		"history": []any{map[string]any{"created": a.made.Format(time.RFC3339), "created_by": "kzr's make image"}},
	})
	manifest := a.json(typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config,
		"layers": []descriptor{a.blob(typeLayer, packed.Bytes())}, "annotations": about,
	})
	manifest.Platform = &platform{Architecture: arch, OS: "linux"}
	return manifest, nil
}

func (a *archive) json(mediaType string, v any) descriptor { return a.blob(mediaType, marshal(v)) }

func (a *archive) blob(mediaType string, data []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(data), Size: len(data)}
	if name := "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:"); !a.blobs[name] {
		a.blobs[name] = true
		a.put(name, data)
	}
	return d
}

func (a *archive) put(name string, data []byte) {
	a.header(a.tar, tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
	write(a.tar, data)
}

// header adds one that says nothing of this machine: no owner, no time but the given.
func (a *archive) header(t *tar.Writer, h tar.Header) {
	h.ModTime, h.Format = a.made, tar.FormatUSTAR
	if err := t.WriteHeader(&h); err != nil {
		panic(err) // a constant name, into memory
	}
}

// write is to memory, which has no errors but those of a wrong size.
func write(w io.Writer, data []byte) {
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
}

// marshal gives the keys of a map in order, so the same bytes each time.
func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return data
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
