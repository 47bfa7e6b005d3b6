#!/bin/bash
# Make sure that there is a Go as new as go.mod wants. The machine's own will do;
# where it is older, it fetches the toolchain in toolchain.sum, as it would a module:
# from the module proxy, checked against the checksum database and that file. Where
# there is none, Debian's or Ubuntu's is installed for that. What was fetched is in
# .cache/go, which the Makefile puts first in PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."

want=$(sed -n 's/^go //p' go.mod)
# new_enough GO: before 1.21 Go does not say that it is too old.
new_enough() {
	local have
	have=$("$1" version 2>/dev/null | sed -n 's/.* go\([0-9][0-9.]*\).*/\1/p')
	[ "$have" ] && printf '%s\n' "$want" "$have" | sort -CV
}
fail() { echo >&2 "$*" && exit 1; }

# On a bare Debian there is nothing to trust who downloads modules by.
[ -e /etc/ssl/certs/ca-certificates.crt ] || ! command -v apt-get >/dev/null || deploy/dev/need.sh ca-certificates

export GOTOOLCHAIN=local
own=$(PATH=${PATH/#$PWD\/.cache\/go\/bin:/} command -v go || true)
if [ "$own" ] && new_enough "$own"; then
	rm -rf .cache/go
	exit
fi
! new_enough .cache/go/bin/go || exit 0

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) fail "kzr needs Go $want or later; there is none to fetch for $(uname -m): see https://go.dev/dl" ;;
esac
read -r module version sum < <(grep "linux-$arch " deploy/dev/toolchain.sum)
if [ -z "$own" ]; then
	command -v apt-get >/dev/null || fail "kzr needs Go $want or later and finds none: see https://go.dev/dl"
	deploy/dev/need.sh go
	own=$(command -v go)
	! new_enough "$own" || exit 0
fi
echo "Go $want or later is needed, and $own is $("$own" version | cut -d ' ' -f 3): fetching ${version#*-}"
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch" && rm -rf "$scratch"' EXIT
# Outside of this module, whose go.mod an older Go cannot read.
said=$(cd "$scratch" && env -u GOFLAGS GOMODCACHE="$scratch/mod" "$own" mod download -json "$module@$version") ||
	fail "Go $want or later is needed, and could not be fetched: $said"
grep -qF "\"Sum\": \"$sum\"" <<<"$said" || fail "$module@$version is not what deploy/dev/toolchain.sum says: $said"
# Modules have no files that run.
chmod -R u+w "$scratch/mod"
find "$scratch/mod/$module@$version"/{bin,pkg/tool} -type f -exec chmod +x {} +
mkdir -p .cache
rm -rf .cache/go
mv "$scratch/mod/$module@$version" .cache/go
new_enough .cache/go/bin/go || fail "deploy/dev/toolchain.sum is about $(.cache/go/bin/go version | cut -d ' ' -f 3), and go.mod wants $want"
