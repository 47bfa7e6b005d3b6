#!/bin/bash
# Make what a release consists of in dist/release, twice, and compare: packages,
# binaries, an OCI image for each processor, a bill of materials (CycloneDX) and the
# checksums of all. `make release` sets VERSION, LDFLAGS, SOURCE_DATE_EPOCH, NFPM and
# CYCLONEDX; the commit must have the tag of that version.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${NFPM:?}" "${CYCLONEDX:?}" "${VERSION:?}" "${LDFLAGS:?}" "${SOURCE_DATE_EPOCH:?}"
git() { command git --git-dir=.git "$@"; }
[ -z "$(git --work-tree=. status --porcelain)" ] || { echo >&2 "a release is made of a commit: there are changes that are in none" && exit 1; }
[ -n "${UNTAGGED-}" ] || [ "$(git describe --tags --exact-match 2>/dev/null)" = "v${VERSION/\~/-}" ] ||
	{ echo >&2 "the commit has no tag v$VERSION; UNTAGGED=1 makes it all the same, as a trial" && exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
umask 022

# archive DIR: its files, the same bytes whoever makes it and when.
archive() { tar -C "$1" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -c .; }

# blob DIR FILE TYPE: put a file into an image; prints its descriptor.
blob() {
	local sum
	sum=$(sha256sum <"$2" | cut -d ' ' -f 1)
	cp "$2" "$1/blobs/sha256/$sum"
	printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%d' "$3" "$sum" "$(stat -c %s "$2")"
}

# image ARCH FILE: kzr alone, for a container in the host's pid namespace.
image() {
	local dir=$scratch/image root=$scratch/root layer=$scratch/layer config=$scratch/config manifest=$scratch/manifest l c m created
	rm -rf "$dir" "$root"
	mkdir -p "$dir/blobs/sha256"
	install -D -m 755 "$scratch/kzr-$1" "$root/usr/bin/kzr"
	install -D -m 644 -t "$root/usr/share/doc/kzr" LICENSE bpf/LICENSE.*
	archive "$root" >"$layer"
	created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
	printf '{"created":"%s","architecture":"%s","os":"linux","config":{"Entrypoint":["/usr/bin/kzr"],"Cmd":["run"],"Labels":{"org.opencontainers.image.version":"%s","org.opencontainers.image.revision":"%s","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"make release"}]}' \
		"$created" "$1" "$VERSION" "$(git rev-parse HEAD)" "$(sha256sum <"$layer" | cut -d ' ' -f 1)" "$created" >"$config"
	gzip -9n <"$layer" >"$layer.gz"
	l=$(blob "$dir" "$layer.gz" layer.v1.tar+gzip)
	c=$(blob "$dir" "$config" config.v1+json)
	printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s},"layers":[%s}]}' "$c" "$l" >"$manifest"
	m=$(blob "$dir" "$manifest" manifest.v1+json)
	printf '{"schemaVersion":2,"manifests":[%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' "$m" "$1" "${VERSION//[+\~]/-}" >"$dir/index.json"
	printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/oci-layout"
	archive "$dir" >"$2"
}

# release DIR
release() {
	local arch
	mkdir -p "$1"
	DIST=$1 deploy/package/build.sh "amd64 arm64" "deb rpm"
	for arch in amd64 arm64; do
		CGO_ENABLED=0 GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w $LDFLAGS" -o "$scratch/kzr-$arch" ./cmd/kzr
		cp "$scratch/kzr-$arch" "$1/kzr-linux-$arch"
		image "$arch" "$1/kzr-image-$arch.tar"
		"$CYCLONEDX" bin -json -noserial -version "v$VERSION" -output "$scratch/sbom" "$scratch/kzr-$arch" 2>"$scratch/said" || { cat "$scratch/said" && return 1; }
		# When it was made is when the commit was.
		sed "s/\"timestamp\": \"[^\"]*\"/\"timestamp\": \"$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)\"/" "$scratch/sbom" >"$1/kzr-linux-$arch.cdx.json"
	done
	(cd "$1" && sha256sum kzr* >SHA256SUMS)
}

release "$scratch/first"
release "$scratch/second"
diff -r "$scratch/first" "$scratch/second"
rm -rf dist/release
mkdir -p dist
mv "$scratch/first" dist/release
cat dist/release/SHA256SUMS
