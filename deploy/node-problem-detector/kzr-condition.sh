#!/bin/bash
# For node-problem-detector: status 0 is well, 1 is not, 2 is unknown; one line says why.
# Asks kzr's metrics port (KZR_METRICS=host:port) and starts no process to do so, as on a
# node without pids it could not.
address=${KZR_METRICS:-127.0.0.1:9464}
exec 2>/dev/null
value() { # NAME: of a metric without labels
	local line
	exec 3<>"/dev/tcp/${address%:*}/${address##*:}" || return
	printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
	while read -r -t 5 line <&3; do
		case $line in "$1 "*) found=${line#* } ;; esac
	done
	exec 3>&-
	[ -n "$found" ]
}
found=
case $1 in
pressure)
	value kzr_under_pressure || { echo "kzr does not answer"; exit 2; }
	[ "${found%%[!0-9]*}" = 0 ] || { echo "the node is almost out of pids"; exit 1; }
	echo "the node has pids left"
	;;
sweeps)
	value kzr_last_sweep_timestamp_seconds || { echo "kzr does not answer"; exit 1; }
	# It is written 1.79e+09.
	printf -v last '%.0f' "$found"
	[ $((EPOCHSECONDS - last)) -lt 300 ] || { echo "kzr has not swept for $((EPOCHSECONDS - last)) s"; exit 1; }
	echo "kzr watches the node"
	;;
esac
