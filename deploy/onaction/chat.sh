#!/bin/sh
# onAction: [/usr/share/kzr/chat.sh, /run/credentials/kzr.service/chat.curl]
# Posts one outcome to an incoming webhook, as Slack, Mattermost and Rocket.Chat have
# them. The file holds the line url = "https://…", which is a secret and so no argument;
# on-action.conf says how kzr's user gets to read it. Needs jq and curl.
set -eu
jq -c '{text: "kzr on \(.node): \(.event) \(.workload): \(.message)\n\(.advice[0] // "")"}' |
	curl --fail --silent --show-error --max-time 20 --header 'Content-Type: application/json' --data-binary @- --config "$1"
