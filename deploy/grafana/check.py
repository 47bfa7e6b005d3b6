#!/usr/bin/env python3
"""What dashboards and alerts ask for is there: two real kzr beside processes that leak,
scraped by a real Prometheus for SECONDS, and every expression of every panel and alert
asked of that one.

	check.py KZR SECONDS [SVG-DIRECTORY]

"watching" is the kzr of this machine, which only looks (dryRun): one process fills a
pids limit, others leak for a while and are gone. "acting" is alone in a pid namespace
with processes that leak, and ends them; there is no eBPF there.

With a third argument it also draws what each panel's query gave, as dashboard-fleet.svg
and dashboard-node.svg: a drawing of real data, and not a picture of Grafana. Needs
prometheus and root; what is started here ends here."""

import html, json, os, re, signal, socket, subprocess, sys, tempfile, time, urllib.error, urllib.parse, urllib.request
import yaml

here = os.path.dirname(os.path.abspath(__file__))
BOARDS = ("fleet", "node")
# They may be empty where this machine gives out no pids limit, which is said.
NEED_LIMIT = {"Workloads nearest to their pid limit", "Pids of those workloads"}

# Grows by one zombie a second.
GROWING = """
import os, time
for i in range(100000):
    if os.fork() == 0: os._exit(0)
    time.sleep(0 if i < 60 else 1)"""
LEAK = """
import os, time
for i in range(60):
    if os.fork() == 0: os._exit(0)
time.sleep(100)"""
# One that reaps when it is reminded.
REMINDED = """
import os, signal, time
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
for i in range(60):
    if os.fork() == 0: os._exit(0)
time.sleep(1)
signal.signal(signal.SIGCHLD, reap)
while True: time.sleep(100)"""
# The scripts that are its arguments, for ten seconds in every fifteen.
BY_TURNS = """
import os, subprocess, sys, time
while True:
    all = [subprocess.Popen([sys.executable, "-c", s]) for s in sys.argv[1:]]
    time.sleep(10)
    for p in all: p.kill(); p.wait()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass # what they left
    except ChildProcessError: pass
    time.sleep(5)"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=20) as r:
        return r.read().decode()


def wait(seconds, what, f):
    end = time.time() + seconds
    while time.time() < end:
        try:
            v = f()
            if v:
                return v
        except OSError:
            pass
        time.sleep(.2)
    sys.exit("not within %ds: %s" % (seconds, what))


def start(*args, **kw):
    return subprocess.Popen(args, start_new_session=True, **kw)


def namespace(cgroup, *args, **kw):
    """A process that is pid 1, as that of a container is, in a cgroup that may be None."""
    def enter():
        if cgroup:
            with open(cgroup + "/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))
    return start("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *args, preexec_fn=enter, **kw)


def end(p):
    if p.poll() is None:
        os.killpg(p.pid, signal.SIGKILL if p.args[0] == "unshare" else signal.SIGTERM) # unshare ignores SIGTERM
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()


def pids_limit(name, n):
    """A cgroup with that limit, or why there is none."""
    why = None
    for base in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        path = "%s/kzr-check-%s-%d" % (base, name, os.getpid())
        try:
            os.mkdir(path)
        except OSError as e:
            why = why or e
            continue
        try:
            with open(path + "/pids.max", "w") as f:
                f.write(str(n))
            return path, None
        except OSError as e:
            os.rmdir(path)
            why = e
    return None, why


def panels():
    for board in BOARDS:
        for p in json.load(open("%s/%s.json" % (here, board)))["panels"]:
            for t in p["targets"]:
                yield board, p, t


def alerts():
    for g in yaml.safe_load(open(here + "/../prometheus/kzr.rules.yml"))["groups"]:
        for r in g["rules"]:
            yield r["alert"], r["expr"], r["annotations"]["runbook_url"]


def main():
    kzr, seconds = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    problems = []
    with tempfile.TemporaryDirectory() as tmp:
        targets = {"watching": "127.0.0.1:%d" % free_port(), "acting": "127.0.0.1:%d" % free_port()}
        web = free_port()
        may_be_empty, running = set(), []
        cgroups = {}
        for name, n in (("growing", 400), ("by-turns", 1000), ("acting", 2000)):
            cgroups[name], why = pids_limit(name, n)
            if why:
                may_be_empty = NEED_LIMIT
                print("no pids limit can be set here, so two panels may be empty: %s" % why)
        try:
            running.append(namespace(cgroups["growing"], sys.executable, "-c", GROWING))
            running.append(namespace(cgroups["by-turns"], sys.executable, "-c", BY_TURNS, LEAK))
            common = ["--socket=", "--cri=", "--grace=2s", "--sweep-interval=2s", "--on-action=/bin/true"]
            running.append(start(kzr, "run", "--config=/dev/null", "--dry-run", "--nudge=0", "--metrics=" + targets["watching"], *common, stderr=subprocess.DEVNULL))
            with open(tmp + "/acting.yaml", "w") as f:
                yaml.safe_dump({"scope": "all", "nudge": "500ms", "termTimeout": "1s",
                                "limits": {"killsPerMinute": 60, "perWorkload": {"kills": 1000, "window": "1h"}}}, f)
            running.append(namespace(cgroups["acting"], "sh", "-c", '"$@" & exec "$0" -c "$BY_TURNS" "$LEAK" "$REMINDED"', sys.executable,
                                     kzr, "run", "--config=" + tmp + "/acting.yaml", "--metrics=" + targets["acting"], *common,
                                     env=dict(os.environ, BY_TURNS=BY_TURNS, LEAK=LEAK, REMINDED=REMINDED), stderr=subprocess.DEVNULL))
            for t in targets.values():
                wait(30, "kzr serves metrics", lambda: get("http://%s/metrics" % t))
            with open(tmp + "/prometheus.yml", "w") as f:
                yaml.safe_dump({"global": {"scrape_interval": "1s"}, "rule_files": [os.path.abspath(here + "/../prometheus/kzr.rules.yml")],
                                "scrape_configs": [{"job_name": "kzr", "static_configs": [{"targets": [t], "labels": {"node": n}} for n, t in targets.items()]}]}, f)
            running.append(start("prometheus", "--config.file=" + tmp + "/prometheus.yml", "--storage.tsdb.path=" + tmp + "/data",
                                 "--web.listen-address=127.0.0.1:%d" % web, stdout=open(tmp + "/prometheus.log", "w"), stderr=subprocess.STDOUT))
            api = "http://127.0.0.1:%d/api/v1/" % web

            def ask(expr, **range_):
                expr = expr.replace("$__rate_interval", "30s").replace("$instance", targets["watching"])
                q = dict(query=expr, **range_)
                try:
                    return json.loads(get(api + ("query_range?" if range_ else "query?") + urllib.parse.urlencode(q)))["data"]["result"]
                except urllib.error.HTTPError as e:
                    problems.append("%s: %s" % (expr, e.read().decode()))
                    return []

            wait(30, "Prometheus has scraped kzr", lambda: len(ask("up == 1")) == len(targets))
            began = time.time()
            time.sleep(seconds)
            exported = get("http://%s/metrics" % targets["watching"])
            names = set(re.findall(r"^(kzr_\w+)", exported, re.M))

            def known(where, expr):
                for name in re.findall(r"\bkzr_\w+", expr):
                    # Absent where nothing has a limit; documented, so that a typo is found all the same.
                    if name not in names and name != "kzr_workload_pids_limit" and name != "kzr_workload_pids":
                        problems.append("%s: kzr exports no %s" % (where, name))

            drawn = {b: [] for b in BOARDS}
            asked = 0
            for board, p, t in panels():
                where = "%s, %s" % (board, p["title"])
                known(where, t["expr"])
                if t["instant"]:
                    result = ask(t["expr"])
                else:
                    result = ask(t["expr"], start=began, end=time.time(), step=max(1, seconds // 120))
                asked += 1
                real = [r for r in result if any(v[1] != "NaN" for v in r.get("values", [r.get("value")]))]
                if not real and p["title"] not in may_be_empty:
                    problems.append("%s: %s gives nothing" % (where, t["expr"]))
                drawn[board].append((p, t, result))
            # What happens there is also counted, or a panel of zeros would do.
            for series in ("kzr_kills_total", 'kzr_reaped_total{by="parent"}', 'kzr_signals_total{dry_run="false", signal="SIGTERM"}',
                           'kzr_signals_total{dry_run="true", signal!="SIGCHLD"}', 'kzr_notices_total{result="sent"}'):
                if not ask(series + " > 0"):
                    problems.append(series + " has counted nothing")
            for name, expr, _ in alerts():
                known(name, expr)
                ask(expr)
                asked += 1
            groups = json.loads(get(api + "rules"))["data"]["groups"]
            for r in groups[0]["rules"]:
                if r["health"] != "ok":
                    problems.append("%s: %s" % (r["name"], r.get("lastError", r["health"])))
            page = open(here + "/../../docs/API.md").read()
            for name in ("kzr_workload_pids_limit", "kzr_workload_pids"):
                if name not in page:
                    problems.append("docs/API.md has no " + name)
            runbook = open(here + "/../../docs/OPERATIONS.md").read().lower()
            for name, _, url in alerts():
                if "### " + name.lower() + "\n" not in runbook or url != "docs/OPERATIONS.md#" + name.lower():
                    problems.append("%s, which is no section of docs/OPERATIONS.md of alert %s" % (url, name))
            if len(sys.argv) > 3:
                for b in BOARDS:
                    draw(drawn[b], "%s/dashboard-%s.svg" % (sys.argv[3], b),
                         "kzr: %s. %d seconds of two real kzr in a real Prometheus, drawn by deploy/grafana/check.py; Grafana itself looks different" % (b, seconds))
        finally:
            for p in reversed(running):
                end(p)
            for cgroup in filter(None, cgroups.values()):
                wait(10, "the cgroup is empty", lambda: not open(cgroup + "/cgroup.procs").read())
                os.rmdir(cgroup)
    for p in problems:
        print(p)
    print("%d expressions asked of a Prometheus that scraped kzr for %ds, %d problems" % (asked, seconds, len(problems)))
    sys.exit(bool(problems))


def named(labels):
    """Labels for a picture: without what is this machine's own."""
    w = labels.get("workload", "")
    own = w.startswith("/") and not w.startswith("/kzr-check-")
    return dict(labels, workload="another of this machine" if own else re.sub(r"^/kzr-check-(.*)-\d+", r"/\1", w))


def number(v, unit):
    if unit == "percentunit":
        return "%.3g%%" % (100 * v)
    if unit == "bytes":
        return "%.3g MiB" % (v / 2**20)
    if unit == "s":
        return "%.3g ms" % (1000 * v)
    return "%.3g%s" % (v, "/s" if unit == "ops" else "") if v < 1000 else "%d" % v


def draw(panels, path, what):
    """Boxes where Grafana has them, with the lines or numbers that the queries gave."""
    cell, row, top = 50, 30, 24
    title = {}
    for p, t, result in panels:
        title.setdefault(p["title"], (p, []))[1].extend((t, r) for r in result)
    height = top + max(p["gridPos"]["y"] + p["gridPos"]["h"] for p, _ in title.values()) * row
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">' % (24 * cell, height),
           '<rect width="100%" height="100%" fill="#f4f5f7"/>', '<text x="6" y="16" fill="#555">%s</text>' % html.escape(what)]
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b")

    def text(x, y, s, more=""):
        out.append('<text x="%d" y="%d" %s>%s</text>' % (x, y, more, html.escape(s)))

    for p, series in title.values():
        g, unit = p["gridPos"], p["fieldConfig"]["defaults"].get("unit", "short")
        x, y, w, h = g["x"] * cell + 3, top + g["y"] * row + 3, g["w"] * cell - 6, g["h"] * row - 6
        out.append('<rect x="%d" y="%d" width="%d" height="%d" fill="#fff" stroke="#ccd"/>' % (x, y, w, h))
        text(x + 6, y + 15, p["title"], 'font-weight="bold"')
        if p["type"] == "stat" and series:
            v = float(series[0][1]["values"][-1][1])
            text(x + 6, y + 65, "%.0f" % v if p["fieldConfig"]["defaults"].get("decimals") == 0 else number(v, unit), 'font-size="34"')
            continue
        if p["type"] == "table" and series:
            for i, (t, r) in enumerate(series[: (h - 30) // 15]):
                text(x + 70, y + 36 + 15 * i, number(float(r["value"][1]), unit), 'text-anchor="end"')
                text(x + 84, y + 36 + 15 * i, "%(workload)s on %(node)s" % named(r["metric"]))
            continue
        lines = [(t, r, [(float(a), float(b)) for a, b in r.get("values", []) if b not in ("NaN", "+Inf", "-Inf")]) for t, r in series]
        lines = [l for l in lines if l[2]]
        moving = [l for l in lines if any(b for _, b in l[2])]
        zeros = len(lines) - len(moving)
        if not lines:
            text(x + 6, y + 34, "no data", 'fill="#888"')
            continue
        # The largest first; of the others is said how many there are.
        shown = sorted(moving, key=lambda l: -max(b for _, b in l[2]))[:6] or lines[:2]
        rows = (len(shown) + 1) // 2
        left, right, up, down = x + 58, x + w - 10, y + 30 + 14 * rows, y + h - 20
        t0, t1 = min(a for l in shown for a, _ in l[2]), max(a for l in shown for a, _ in l[2])
        most = max(b for l in shown for _, b in l[2]) or 1
        for share in (0, .5, 1):
            at = down - share * (down - up)
            out.append('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#e4e6ea"/>' % (left, at, right, at))
            text(left - 4, at + 4, number(share * most, unit), 'text-anchor="end" fill="#666"')
        text(left, y + h - 6, time.strftime("%H:%M:%S", time.gmtime(t0)), 'fill="#666"')
        text(right, y + h - 6, time.strftime("%H:%M:%S", time.gmtime(t1)), 'text-anchor="end" fill="#666"')
        for i, (t, r, points) in enumerate(shown):
            at = " ".join("%.1f,%.1f" % (left + (a - t0) / ((t1 - t0) or 1) * (right - left), down - b / most * (down - up)) for a, b in points)
            legend = re.sub(r"{{(\w+)}}", lambda m: named(r["metric"]).get(m[1], ""), t["legendFormat"]).strip()
            out.append('<polyline fill="none" stroke-width="1.5" stroke="%s" points="%s"/>' % (colours[i], at))
            text(x + 6 + i % 2 * (w // 2), y + 30 + 14 * (i // 2), legend[: w // 13], 'fill="%s"' % colours[i])
        left_out = (["%d at 0" % zeros] if zeros and moving else []) + (["%d smaller" % (len(moving) - 6)] if len(moving) > 6 else [])
        if left_out:
            text(x + w - 8, y + 15, "and " + ", ".join(left_out), 'text-anchor="end" fill="#888"')
    out.append("</svg>")
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")


main()
