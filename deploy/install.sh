#!/bin/bash
# Put kzr into a file system, or take it out of it: `make install` and `make
# uninstall`, and the packages.
#
#	install.sh install|uninstall
#
# BINARY is kzr for the machine that it is for, KZR one that runs on this machine.
# The rest is as usual: DESTDIR, PREFIX, UNITDIR, and ZSHDIR for completions. Without
# DESTDIR it is an installation on this machine, of which systemd is told.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BINARY:=bin/kzr}" "${KZR:=bin/kzr}" "${DESTDIR:=}" "${PREFIX:=/usr/local}"
: "${ZSHDIR:=$PREFIX/share/zsh/site-functions}"
# Below other prefixes systemd does not look.
case $PREFIX in
/usr | /usr/local) : "${UNITDIR:=$PREFIX/lib/systemd/system}" ;;
*) : "${UNITDIR:=/etc/systemd/system}" ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What goes where: mode, source, target. The configuration is apart: a changed one
# is never touched.
files() {
	cat <<-END
		755 $BINARY $PREFIX/bin/kzr
		644 $scratch/kzr.service $UNITDIR/kzr.service
		644 $scratch/kzr.catalog $PREFIX/lib/systemd/catalog/kzr.catalog
		644 $scratch/notify-reload.conf $PREFIX/share/kzr/notify-reload.conf
		644 $scratch/cri.conf $PREFIX/share/kzr/cri.conf
		644 $scratch/docker.conf $PREFIX/share/kzr/docker.conf
		644 $scratch/metrics.conf $PREFIX/share/kzr/metrics.conf
		644 $scratch/on-action.conf $PREFIX/share/kzr/on-action.conf
		755 $scratch/mail.sh $PREFIX/share/kzr/mail.sh
		755 $scratch/chat.sh $PREFIX/share/kzr/chat.sh
		644 $scratch/kzr.8.gz $PREFIX/share/man/man8/kzr.8.gz
		644 $scratch/kzr.yaml.5.gz $PREFIX/share/man/man5/kzr.yaml.5.gz
		644 $scratch/kzr.bash $PREFIX/share/bash-completion/completions/kzr
		644 $scratch/kzr.zsh $ZSHDIR/_kzr
		644 $scratch/kzr.fish $PREFIX/share/fish/vendor_completions.d/kzr.fish
		644 deploy/package/copyright $PREFIX/share/doc/kzr/copyright
		644 $scratch/THIRD-PARTY.gz $PREFIX/share/doc/kzr/THIRD-PARTY.gz
	END
}

# The texts, with the paths of this installation.
generate() {
	local file shell
	for shell in bash zsh fish; do
		"$KZR" completion "$shell" >"$scratch/kzr.$shell"
	done
	for file in deploy/systemd/* deploy/onaction/{on-action.conf,mail.sh,chat.sh} dist/man/*; do
		sed "s,/usr/bin/kzr,$PREFIX/bin/kzr,g; s,/usr/share/kzr,$PREFIX/share/kzr,g" "$file" >"$scratch/${file##*/}"
	done
	licences >"$scratch/THIRD-PARTY"
	gzip -9n "$scratch"/{kzr.8,kzr.yaml.5,THIRD-PARTY}
}

# The licences of the modules that are linked into the binary.
licences() {
	local module dir file
	go list -buildvcs=false -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/kzr | sort -u |
		while read -r module version dir; do
			for file in "$dir"/{LICENSE,LICENCE,COPYING,NOTICE}*; do
				[ ! -f "$file" ] || printf '==== %s %s: %s\n\n%s\n\n' "$module" "$version" "${file##*/}" "$(cat "$file")"
			done
		done
	printf '==== Go: LICENSE\n\n'
	cat "$(go env GOROOT)/LICENSE"
}

config=/etc/kzr/kzr.yaml
here=
[ -n "$DESTDIR" ] || [ ! -d /run/systemd/system ] || here=yes

case ${1-} in
install)
	generate
	while read -r mode source target; do
		install -D -m "$mode" "$source" "$DESTDIR$target"
	done < <(files)
	[ -e "$DESTDIR$config" ] || install -D -m 644 deploy/kzr.yaml "$DESTDIR$config"
	if [ "$here" ]; then
		if [ "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')" -ge 253 ]; then
			install -D -m 644 "$scratch/notify-reload.conf" "$UNITDIR/kzr.service.d/notify-reload.conf"
		fi
		journalctl --update-catalog
		systemctl daemon-reload
	fi
	;;
uninstall)
	# Another one's stays as it is, a package's.
	if [ "$here" ] && [ "$(systemctl show --value -p FragmentPath kzr.service)" -ef "$UNITDIR/kzr.service" ]; then
		systemctl disable --now kzr.service || true
	fi
	files | while read -r _ _ target; do
		rm -f "$DESTDIR$target"
	done
	rm -f "$DESTDIR$UNITDIR/kzr.service.d/notify-reload.conf"
	for dir in "$PREFIX"/share/{kzr,doc/kzr} "$UNITDIR/kzr.service.d"; do
		[ ! -d "$DESTDIR$dir" ] || rmdir --ignore-fail-on-non-empty "$DESTDIR$dir"
	done
	[ ! "$here" ] || systemctl daemon-reload
	[ ! -e "$DESTDIR$config" ] || echo "left: $DESTDIR$config"
	;;
*)
	echo >&2 "usage: $0 install|uninstall"
	exit 2
	;;
esac
