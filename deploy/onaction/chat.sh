#!/bin/sh
# onAction: [/usr/local/lib/kzr/chat.sh, /etc/kzr/chat.curl]
# Posts one outcome to an incoming webhook, as Slack, Mattermost and Rocket.Chat have
# them. The file holds the line url = "https://…", which is a secret and so no argument.
# Needs jq and curl.
set -eu
jq -c '{text: "kzr on \(.node): \(.event) \(.workload): \(.message)\n\(.advice[0] // "")"}' |
	curl --fail --silent --show-error --max-time 20 --header 'Content-Type: application/json' --data-binary @- --config "$1"
