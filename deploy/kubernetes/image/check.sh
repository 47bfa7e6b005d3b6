#!/bin/bash
# What `make image` wrote: the same bytes a second time, for each processor a static
# binary of that processor, and what the Containerfile makes. Takes build.sh's
# environment, skopeo and podman.
set -euo pipefail
cd "$(dirname "$0")/../../.."
: "${VERSION:?}" "${DIST:=dist}" "${ARCHS:=amd64 arm64}"
scratch=$(mktemp -d)
podman="podman --root $scratch/storage --runroot $scratch/run --tmpdir $scratch/tmp --storage-driver vfs --cgroup-manager cgroupfs"
trap 'rm -rf "$scratch"' EXIT

file=kzr-$VERSION.oci.tar
DIST=$scratch/again deploy/kubernetes/image/build.sh "$ARCHS" >/dev/null
cmp "$DIST/$file" "$scratch/again/$file"

# files DIR: what is in it, with modes and sums, without times.
files() {
	(cd "$1" && find . -mindepth 1 -type d -printf '%M %p\n' -o -type f -printf '%M %p ' -exec sh -c 'sha256sum <"$1"' - {} \; | sort -k 2)
}
# settings IMAGE ARCH: how it is started.
settings() {
	skopeo inspect --config --override-arch "$2" "$1" | python3 -c '
import json, sys
c = json.load(sys.stdin)
print(c["architecture"], c["os"], [c["config"].get(k) for k in ("Env", "Entrypoint", "Cmd", "User", "ExposedPorts", "Volumes")])'
}
for arch in $ARCHS; do
	skopeo copy -q --override-arch "$arch" "oci-archive:$DIST/$file" "dir:$scratch/$arch"
	mkdir "$scratch/root-$arch"
	layer=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["layers"][0]["digest"].split(":")[1])' "$scratch/$arch/manifest.json")
	tar -xzf "$scratch/$arch/$layer" -C "$scratch/root-$arch"
	readelf -h -l "$scratch/root-$arch/usr/bin/kzr" >"$scratch/elf"
	case $arch in amd64) machine=X86-64 ;; arm64) machine=AArch64 ;; esac
	grep -q "Machine:.*$machine" "$scratch/elf"
	if grep -q INTERP "$scratch/elf"; then echo "$arch is not static"; exit 1; fi
	settings "oci-archive:$DIST/$file" "$arch"
done

# The Containerfile has no directories but those of its files.
native=$(go env GOHOSTARCH)
mkdir -p "$scratch/context/bin" "$scratch/root-podman"
cp "$scratch/root-$native/usr/bin/kzr" "$scratch/context/bin/"
cp -r LICENSE bpf "$scratch/context/"
$podman build -q -f deploy/kubernetes/Containerfile -t localhost/kzr:check "$scratch/context" >/dev/null
$podman save -q --format oci-archive -o "$scratch/podman.tar" localhost/kzr:check
skopeo copy -q "oci-archive:$scratch/podman.tar" "dir:$scratch/podman"
for layer in $(python3 -c 'import json, sys; print(*[l["digest"].split(":")[1] for l in json.load(open(sys.argv[1]))["layers"]])' "$scratch/podman/manifest.json"); do
	tar -xf "$scratch/podman/$layer" -C "$scratch/root-podman"
done
diff <(files "$scratch/root-$native" | grep -Ev ' \./(etc|run)(/|$)') <(files "$scratch/root-podman")
diff <(settings "oci-archive:$DIST/$file" "$native") <(settings "oci-archive:$scratch/podman.tar" "$native")
echo "ok: $file is reproducible, and the Containerfile makes the same"
