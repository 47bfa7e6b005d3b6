#!/bin/bash
# Make the packages in dist/ from this tree.
#
#	NFPM=PATH VERSION=1.2.3 build.sh "ARCH..." "FORMAT..."
#
# ARCH is one of Go's, FORMAT deb or rpm.
set -euo pipefail
cd "$(dirname "$0")/../.."

export VERSION ARCH STAGE MAINTAINER
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
MAINTAINER='kzr maintainers <maintainers@kzr.invalid>'

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p dist
for ARCH in $1; do
	STAGE=$scratch/$ARCH
	CGO_ENABLED=0 GOARCH=$ARCH go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o "$scratch/kzr-$ARCH" ./cmd/kzr
	install -D -m 755 "$scratch/kzr-$ARCH" "$STAGE/usr/bin/kzr"
	install -D -m 644 deploy/systemd/kzr.service "$STAGE/usr/lib/systemd/system/kzr.service"
	install -D -m 644 deploy/kzr.yaml "$STAGE.conf/kzr.yaml"
	find "$scratch" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
	for format in $2; do
		"$NFPM" package --config deploy/nfpm.yaml --packager "$format" --target dist/
	done
done
