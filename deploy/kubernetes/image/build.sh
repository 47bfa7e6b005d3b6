#!/bin/bash
# Write dist/kzr-VERSION.oci.tar, the container image: the same one from the same commit.
#
#	build.sh "ARCH..."
#
# `make image` sets VERSION, COMMIT, LDFLAGS that tell them to Go, and SOURCE_DATE_EPOCH;
# IMAGE is the image's name without a tag.
set -euo pipefail
cd "$(dirname "$0")/../../.."
: "${VERSION:?}" "${LDFLAGS:?}" "${SOURCE_DATE_EPOCH:?}" "${COMMIT=}" "${IMAGE:=localhost/kzr}" "${DIST:=dist}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
binaries=()
for arch in $1; do
	CGO_ENABLED=0 GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w $LDFLAGS" -o "$scratch/$arch" ./cmd/kzr
	binaries+=("$arch=$scratch/$arch")
done
mkdir -p "$DIST"
file=$DIST/kzr-$VERSION.oci.tar
# A tag takes neither + nor ~.
ref=$IMAGE:$(tr '+~' '--' <<<"$VERSION")
CGO_ENABLED=0 go run ./deploy/kubernetes/image -o "$file" -ref "$ref" -version "$VERSION" -revision "$COMMIT" \
	-license LICENSE -license bpf/LICENSE.BSD-2-Clause -license bpf/LICENSE.GPL-2.0 "${binaries[@]}"
echo "$file: $ref"
