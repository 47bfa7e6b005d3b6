#!/bin/sh
# onAction: [/usr/local/lib/kzr/mail.sh, ops@example.com]
# Mails one outcome. Needs jq, and a sendmail.
set -eu
document=$(cat)
# Nothing of it is ever part of a command: a pod's owner chose the names.
{
	printf 'To: %s\n' "$1"
	printf '%s' "$document" | jq -r '"Subject: kzr on \(.node): \(.event) \(.workload)\nContent-Type: text/plain; charset=utf-8\n\n\(.message)\n",
		(.trail[] | "\(.time)  \(.event)  \(.message)"), "", "For its owner:", (.advice[] | "- " + .)'
} | "${SENDMAIL:-/usr/sbin/sendmail}" -i -- "$1"
