#!/bin/bash
# Make the packages in dist/ from this tree: the same ones from the same commit.
#
#	build.sh "ARCH..." "FORMAT..."
#
# ARCH is one of Go's, FORMAT deb or rpm. `make package` sets VERSION, LDFLAGS that
# tell it to Go, SOURCE_DATE_EPOCH and NFPM; DIST is where they go.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${NFPM:?}" "${LDFLAGS:?}" "${SOURCE_DATE_EPOCH:?}" "${DIST:=dist}"
export VERSION ARCH STAGE MAINTAINER=${MAINTAINER:-The kzr authors <kzr@localhost>}
[[ $VERSION =~ ^[0-9][0-9A-Za-z.+~]*$ ]] || { echo >&2 "version $VERSION: deb and rpm take digits first, then letters, digits and .+~" && exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# One that runs on this machine, for the completions.
build() { CGO_ENABLED=0 GOARCH=$1 go build -trimpath -buildvcs=false -ldflags "-s -w $LDFLAGS" -o "$scratch/kzr-$1" ./cmd/kzr; }
native=$(go env GOHOSTARCH)
build "$native"

# What is in DIST can be installed by a pattern: one version of it.
mkdir -p "$DIST"
find "$DIST" -maxdepth 1 -name 'kzr[-_]*.[dr][ep][bm]' ! -name "kzr[-_]${VERSION}[-_]*" -delete

umask 022
for ARCH in $1; do
	[ "$ARCH" = "$native" ] || build "$ARCH"
	for format in $2; do
		STAGE=$scratch/$ARCH-$format
		case $format in
		deb) zsh=/usr/share/zsh/vendor-completions ;;
		rpm) zsh=/usr/share/zsh/site-functions ;;
		esac
		KZR=$scratch/kzr-$native BINARY=$scratch/kzr-$ARCH DESTDIR=$STAGE PREFIX=/usr ZSHDIR=$zsh deploy/install.sh install
		if [ "$format" = deb ]; then
			install -D -m 644 deploy/package/lintian-overrides "$STAGE/usr/share/lintian/overrides/kzr"
		else
			install -D -m 644 -t "$STAGE/usr/share/licenses/kzr" LICENSE bpf/LICENSE.*
		fi
		# Apart, as it is a configuration file.
		mkdir "$STAGE.conf"
		mv "$STAGE/etc/kzr/kzr.yaml" "$STAGE.conf/"
		rmdir -p --ignore-fail-on-non-empty "$STAGE/etc/kzr"
		find "$STAGE" "$STAGE.conf" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
		"$NFPM" package --config deploy/nfpm.yaml --packager "$format" --target "$DIST/"
	done
done
