#!/bin/sh
# onAction: [/usr/share/kzr/mail.sh, ops@example.com]
# Mails one outcome. Needs jq, and a sendmail that speaks SMTP itself, such as msmtp-mta:
# the unit has NoNewPrivileges, so that one which is set-group-ID, such as those of
# postfix and exim, cannot put the mail into its queue.
set -eu
document=$(cat)
# Nothing of it is ever part of a command: a pod's owner chose the names.
{
	printf 'To: %s\n' "$1"
	printf '%s' "$document" | jq -r '"Subject: kzr on \(.node): \(.event) \(.workload)\nContent-Type: text/plain; charset=utf-8\n\n\(.message)\n",
		(.trail[] | "\(.time)  \(.event)  \(.message)"), "", "For its owner:", (.advice[] | "- " + .)'
} | "${SENDMAIL:-/usr/sbin/sendmail}" -i -- "$1"
