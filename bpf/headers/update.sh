#!/bin/bash
# Refreshes the libbpf headers in ./bpf from Debian's libbpf-dev package, at the
# version pinned below. To move to another one: change the pin, run this on a
# Debian whose apt sources have it, run `make generate`, commit all three.
set -euo pipefail

version=1:1.1.2-0+deb12u1
headers=(bpf_helpers.h bpf_helper_defs.h bpf_core_read.h bpf_tracing.h)

cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp" # apt downloads as its own user

(cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download "libbpf-dev=$version")
dpkg-deb --extract "$tmp"/libbpf-dev_*.deb "$tmp/root"

install -m 644 "${headers[@]/#/$tmp/root/usr/include/bpf/}" -t bpf
install -m 644 "$tmp/root/usr/share/doc/libbpf-dev/copyright" bpf/COPYRIGHT
