#!/bin/bash
# A real kzr, alone in a pid namespace with a process that leaks, ends it and runs a
# command for that; and the examples that mail and that post to a chat, with a sendmail
# and a web server of this test's. Needs root, curl, jq and python3.
#
#	check.sh KZR
set -euo pipefail
if [ "$$" != 1 ]; then
	export KZR_CHECK_DIR
	KZR_CHECK_DIR=$(mktemp -d)
	trap 'rm -rf "$KZR_CHECK_DIR"' EXIT
	unshare --pid --fork --kill-child --mount-proc "$0" "$(realpath "$1")"
	exit
fi
kzr=$1 dir=$KZR_CHECK_DIR
cd "$(dirname "$0")"
cat >"$dir/command" <<'C'
#!/bin/sh
cat >"$1.new"; echo from the command >&2; mv "$1.new" "$1"
C
chmod +x "$dir/command"
cat >"$dir/kzr.yaml" <<Y
scope: all
threshold: 50
grace: 1s
nudge: 0
reap: off
termTimeout: 1s
sweepInterval: 1s
cri: ""
socket: ""
onAction: [$dir/command, $dir/document]
Y
"$kzr" run --config="$dir/kzr.yaml" 2>"$dir/log" &
kzr_pid=$!
python3 -c '
import os, time
for i in range(60):
    if os.fork() == 0: os._exit(0)
time.sleep(1000)' &
for _ in $(seq 300); do [ ! -e "$dir/document" ] || break; sleep .1; done
[ -e "$dir/document" ] || { cat "$dir/log"; exit 1; }
for _ in $(seq 100); do ! grep -q 'from the command' "$dir/log" || break; sleep .1; done
kill $kzr_pid
jq -e '.event == "terminated" and .reapable == 60 and .comm == "python3" and (.trail | map(.signal) | index("SIGTERM")) and (.advice | length > 0)' "$dir/document" >/dev/null ||
	{ cat "$dir/document" "$dir/log"; exit 1; }
has() { # FILE PATTERN...
	local file=$1 pattern
	shift
	for pattern; do grep -q -- "$pattern" "$file" || { echo "no $pattern in:"; cat "$file"; exit 1; }; done
}
has "$dir/log" 'the command ran.*status=0' 'from the command'

printf '#!/bin/sh\nprintf "to %%s\\n" "$*"\ncat\n' >"$dir/sendmail"
chmod +x "$dir/sendmail"
SENDMAIL=$dir/sendmail ./mail.sh ops@example.com <"$dir/document" >"$dir/mail"
has "$dir/mail" '^to -i -- ops@example.com$' '^Subject: kzr on .*: terminated ' 'For its owner:'

python3 - "$dir" <<'P' &
import http.server, os, sys
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1] + "/post", "w") as f:
            f.write("%s %s\n%s\n" % (self.path, self.headers["Content-Type"], body.decode().strip()))
        self.send_response(404 if self.path == "/gone" else 200)
        self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
with open(sys.argv[1] + "/port.new", "w") as f:
    f.write(str(server.server_port))
os.rename(sys.argv[1] + "/port.new", sys.argv[1] + "/port")
server.serve_forever()
P
for _ in $(seq 100); do [ ! -e "$dir/port" ] || break; sleep .1; done
printf 'url = "http://127.0.0.1:%s/hook"\n' "$(cat "$dir/port")" >"$dir/chat.curl"
./chat.sh "$dir/chat.curl" <"$dir/document"
has "$dir/post" '^/hook application/json$'
tail -n 1 "$dir/post" | jq -re .text >"$dir/said"
has "$dir/said" '^kzr on .*: terminated .*ended after SIGTERM' 'wait()'
[ "$(wc -l <"$dir/said")" = 2 ] || { echo "the advice is missing:"; cat "$dir/said"; exit 1; }
sed -i s,/hook,/gone, "$dir/chat.curl" # and what is refused is said
if ./chat.sh "$dir/chat.curl" <"$dir/document" 2>"$dir/stderr"; then echo "a refused post is taken for sent"; exit 1; fi
has "$dir/stderr" 404
echo "ok: the command was run for an outcome; mail and chat say what was done"
