#!/usr/bin/env python3
"""What dashboards and alerts ask for is there: a real kzr beside a process that leaks,
scraped by a real Prometheus for SECONDS, and every expression of every panel and alert
asked of that one.

	check.py KZR SECONDS [SVG-DIRECTORY]

With a third argument it also draws what each panel's query gave, as fleet.svg and
node.svg: a drawing of real data, and not a picture of Grafana. Needs prometheus and
root; kzr only looks (dryRun), and what is started here ends here."""

import html, json, os, re, signal, socket, subprocess, sys, tempfile, time, urllib.parse, urllib.request
import yaml

here = os.path.dirname(os.path.abspath(__file__))
BOARDS = ("fleet", "node")
# No container leaks on this node and nothing is handed on but by a command; a limit on
# the pids of the leaker is not everywhere to be had.
MAY_BE_EMPTY = {"Workloads nearest to their pid limit", "Pids of those workloads", "From rule to signal"}


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


def end(p):
    if p and p.poll() is None:
        os.killpg(p.pid, signal.SIGTERM)
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()


def panels():
    for board in BOARDS:
        for p in json.load(open("%s/%s.json" % (here, board)))["panels"]:
            for t in p["targets"]:
                yield board, p, t


def alerts():
    for g in yaml.safe_load(open(here + "/../prometheus/kzr.rules.yml"))["groups"]:
        for r in g["rules"]:
            yield r["alert"], r["expr"]


def main():
    kzr, seconds = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    problems = []
    with tempfile.TemporaryDirectory() as tmp:
        metrics, web = free_port(), free_port()
        target = "127.0.0.1:%d" % metrics
        leaker = """
import os, time
for i in range(60):
    if os.fork() == 0: os._exit(0)
time.sleep(100000)"""
        running = []
        try:
            running.append(start("unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", leaker))
            running.append(start(kzr, "run", "--config=/dev/null", "--dry-run", "--socket=", "--cri=", "--grace=1s", "--nudge=0", "--metrics=" + target,
                                 "--on-action=/bin/true", stderr=open(tmp + "/kzr.log", "w")))
            wait(30, "kzr serves metrics", lambda: get("http://%s/metrics" % target))
            with open(tmp + "/prometheus.yml", "w") as f:
                yaml.safe_dump({"global": {"scrape_interval": "1s"}, "rule_files": [os.path.abspath(here + "/../prometheus/kzr.rules.yml")],
                                "scrape_configs": [{"job_name": "kzr", "static_configs": [{"targets": [target]}]}]}, f)
            running.append(start("prometheus", "--config.file=" + tmp + "/prometheus.yml", "--storage.tsdb.path=" + tmp + "/data",
                                 "--web.listen-address=127.0.0.1:%d" % web, stdout=open(tmp + "/prometheus.log", "w"), stderr=subprocess.STDOUT))
            api = "http://127.0.0.1:%d/api/v1/" % web

            def ask(expr, **range_):
                expr = expr.replace("$__rate_interval", "30s").replace("$instance", target)
                q = dict(query=expr, **range_)
                try:
                    return json.loads(get(api + ("query_range?" if range_ else "query?") + urllib.parse.urlencode(q)))["data"]["result"]
                except urllib.error.HTTPError as e:
                    problems.append("%s: %s" % (expr, e.read().decode()))
                    return []

            wait(30, "Prometheus has scraped kzr", lambda: ask("up == 1"))
            began = time.time()
            time.sleep(seconds)
            exported = get("http://%s/metrics" % target)
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
                    result = ask(t["expr"], start=began, end=time.time(), step=max(1, seconds // 60))
                asked += 1
                real = [r for r in result if any(v[1] != "NaN" for v in r.get("values", [r.get("value")]))]
                if not real and p["title"] not in MAY_BE_EMPTY:
                    problems.append("%s: %s gives nothing" % (where, t["expr"]))
                drawn[board].append((p, t, result))
            for name, expr in alerts():
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
            for name, _ in alerts():
                if "### " + name.lower() + "\n" not in runbook:
                    problems.append("docs/OPERATIONS.md has no section " + name)
            if len(sys.argv) > 3:
                for b in BOARDS:
                    draw(drawn[b], "%s/%s.svg" % (sys.argv[3], b))
        finally:
            for p in reversed(running):
                end(p)
    for p in problems:
        print(p)
    print("%d expressions asked of a Prometheus that scraped kzr for %ds, %d problems" % (asked, seconds, len(problems)))
    sys.exit(bool(problems))


def draw(panels, path):
    """Boxes where Grafana has them, with the lines or numbers that the queries gave."""
    cell, row = 50, 30
    title = {}
    for p, t, result in panels:
        title.setdefault(p["title"], (p, []))[1].extend((t, r) for r in result)
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p, _ in title.values()) * row
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">' % (24 * cell, height),
           '<rect width="100%" height="100%" fill="#f4f5f7"/>']
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f")
    for p, series in title.values():
        g = p["gridPos"]
        x, y, w, h = g["x"] * cell + 3, g["y"] * row + 3, g["w"] * cell - 6, g["h"] * row - 6
        out.append('<rect x="%d" y="%d" width="%d" height="%d" fill="#fff" stroke="#ccd"/>' % (x, y, w, h))
        out.append('<text x="%d" y="%d" font-weight="bold">%s</text>' % (x + 6, y + 14, html.escape(p["title"])))
        if not series:
            out.append('<text x="%d" y="%d" fill="#888">no data</text>' % (x + 6, y + 32))
        elif p["type"] == "stat":
            v = series[0][1]["values"][-1][1]
            out.append('<text x="%d" y="%d" font-size="30">%s</text>' % (x + 6, y + 60, html.escape("%g" % float(v))))
        elif p["type"] == "table":
            for i, (t, r) in enumerate(series[: (h - 20) // 14]):
                labels = {k: v for k, v in r["metric"].items() if k not in ("__name__", "job")}
                out.append('<text x="%d" y="%d">%s  %s</text>' % (x + 6, y + 32 + 14 * i, html.escape(r["value"][1]), html.escape(str(labels))))
        else:
            points = [(float(a), float(b)) for _, r in series for a, b in r["values"] if b not in ("NaN", "+Inf", "-Inf")]
            if not points:
                out.append('<text x="%d" y="%d" fill="#888">no data</text>' % (x + 6, y + 32))
                continue
            t0, t1, top = min(a for a, _ in points), max(a for a, _ in points), max(b for _, b in points) or 1
            lines = [(t, r) for t, r in series if any(float(b) for _, b in r["values"] if b != "NaN")] or series[:1]
            for i, (t, r) in enumerate(lines[:8]):
                at = " ".join("%.1f,%.1f" % (x + 6 + (float(a) - t0) / ((t1 - t0) or 1) * (w - 12), y + h - 6 - float(b) / top * (h - 60))
                              for a, b in r["values"] if b != "NaN")
                legend = re.sub(r"{{(\w+)}}", lambda m: r["metric"].get(m[1], ""), t["legendFormat"])
                out.append('<polyline fill="none" stroke="%s" points="%s"/>' % (colours[i], at))
                out.append('<text x="%d" y="%d" fill="%s">%s</text>' % (x + 6 + (i % 3) * w // 3, y + 28 + 12 * (i // 3), colours[i], html.escape(legend[:w // 20])))
            out.append('<text x="%d" y="%d" text-anchor="end" fill="#888">%g</text>' % (x + w - 6, y + 14, top))
    out.append("</svg>")
    open(path, "w").write("\n".join(out))


main()
