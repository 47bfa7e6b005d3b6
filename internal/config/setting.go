package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A setting is one key of the file, and where it has a name for it, one flag.
type setting[T any] struct {
	key   string // with dots: limits.perWorkload.kills
	flag  string // "" has no flag
	group string // of flags, in help
	usage string // of the flag
	value func(*T) value
}

// The groups of flags, in the order in which help shows them.
const (
	GroupRule   = "Which parents"
	GroupAction = "What kzr does"
	GroupWatch  = "How kzr watches and reports"
)

// Groups are the titles of the groups of flags, in the order of help.
var Groups = []string{GroupRule, GroupAction, GroupWatch}

const rulesKey = "rules"

// settings is every key of the file but rules.
var settings = []setting[Config]{
	{"threshold", "threshold", GroupRule, "zombies that make a parent a target",
		func(c *Config) value { return count(&c.Threshold) }},
	{"grace", "grace", GroupRule, "minimum age of each of these zombies",
		func(c *Config) value { return duration(&c.Grace, time.Second) }},
	{"scope", "scope", GroupRule, "processes that kzr may act on",
		func(c *Config) value { return choice(&c.Scope, ScopeContainers, ScopeAll) }},
	{"protect", "protect", GroupRule, "host executable never to act on, as a path or glob; repeatable",
		func(c *Config) value {
			return &list{p: &c.Protect, typ: "path", use: "absolute paths or globs of executables", valid: checkProtect}
		}},
	{"pressure", "pressure", GroupRule, "PID usage (0 to 1) above which kzr acts sooner; 0 disables",
		func(c *Config) value { return fraction(&c.Pressure) }},

	{"dryRun", "dry-run", GroupAction, "log decisions without sending signals",
		func(c *Config) value { return toggle(&c.DryRun) }},
	{"nudge", "nudge", GroupAction, "time to reap after SIGCHLD; 0 skips SIGCHLD",
		func(c *Config) value { return duration(&c.Nudge, 0) }},
	{"reap", "reap", GroupAction, "zombies to reap from inside their parent",
		func(c *Config) value { return reap(&c.Reap) }},
	{"termTimeout", "term-timeout", GroupAction, "time to exit after SIGTERM; 0 skips SIGTERM",
		func(c *Config) value { return duration(&c.TermTimeout, 0) }},
	{"limits.killsPerMinute", "kills-per-minute", GroupAction, "maximum kills per minute on the node",
		func(c *Config) value { return count(&c.Limits.KillsPerMinute) }},
	{"limits.perWorkload.kills", "per-workload-kills", GroupAction, "maximum kills per workload within the window",
		func(c *Config) value { return count(&c.Limits.PerWorkload.Kills) }},
	{"limits.perWorkload.window", "per-workload-window", GroupAction, "length of that window",
		func(c *Config) value { return duration(&c.Limits.PerWorkload.Window, time.Second) }},

	{"mode", "mode", GroupWatch, "how zombies are found",
		func(c *Config) value { return choice(&c.Mode, ModeAuto, ModeEBPF, ModeProc) }},
	{"sweepInterval", "sweep-interval", GroupWatch, "time between scans of all tasks",
		func(c *Config) value { return duration(&c.SweepInterval, time.Second) }},
	{"cri", "cri", GroupWatch, `socket of a container runtime, as a path or unix:// URL; repeatable, "" for none (default the usual paths)`,
		func(c *Config) value {
			return &list{p: &c.CRI, typ: "path", use: "paths of sockets", clean: socketPath, valid: checkRuntime, none: true}
		}},
	{"kubernetes.events", "kubernetes-events", GroupWatch, "report outcomes as Events on the pod; only in a pod that may create them",
		func(c *Config) value { return toggle(&c.Kubernetes.Events) }},
	{"onAction", "on-action", GroupWatch, `command to run for each outcome, and its arguments (repeatable)`,
		func(c *Config) value {
			return &list{p: &c.OnAction, typ: "argument", use: "a command's absolute path and its arguments",
				first: checkPath, valid: checkArgument, none: true}
		}},
	{"socket", "socket", GroupWatch, `unix socket of the API, "" for none`,
		func(c *Config) value { return text(&c.Socket, "path", `an absolute path, or "" for none`, checkSocket) }},
	{"metrics", "metrics", GroupWatch, "address to serve Prometheus metrics on",
		func(c *Config) value {
			return text(&c.Metrics, "host:port", `host:port, or "" for none`, checkMetrics)
		}},
	{"logFormat", "log-format", GroupWatch, "log format",
		func(c *Config) value { return choice(&c.LogFormat, "text", "json") }},
	{"logLevel", "log-level", GroupWatch, "minimum level to log",
		func(c *Config) value { return choice(&c.LogLevel, "debug", "info", "warn", "error") }},
}

// ruleSettings is every key of a rule.
var ruleSettings = []setting[Rule]{
	{key: "name", value: func(r *Rule) value { return text(&r.Name, "", "a name of its own", checkName) }},
	{key: "action", value: func(r *Rule) value { return choice(&r.Action, ActionKill, ActionObserve) }},
	{key: "threshold", value: func(r *Rule) value { return count(&r.Threshold) }},
	{key: "grace", value: func(r *Rule) value { return duration(&r.Grace, time.Second) }},
	{key: "reap", value: func(r *Rule) value { return choice(&r.Reap, ReapOff, ReapAdopted, ReapAll) }},
	{key: "termTimeout", value: func(r *Rule) value {
		return pointer(&r.TermTimeout, func(p *time.Duration) value { return duration(p, 0) })
	}},
	{key: "match.scope", value: func(r *Rule) value { return choice(&r.Match.Scope, ScopeContainers, ScopeAll) }},
	pattern("match.namespace", func(m *Match) *string { return &m.Namespace }),
	pattern("match.pod", func(m *Match) *string { return &m.Pod }),
	pattern("match.container", func(m *Match) *string { return &m.Container }),
	pattern("match.image", func(m *Match) *string { return &m.Image }),
	pattern("match.exe", func(m *Match) *string { return &m.Exe }),
	pattern("match.cgroup", func(m *Match) *string { return &m.Cgroup }),
	{key: "match.uid", value: func(r *Rule) value { return pointer(&r.Match.UID, uid) }},
	{key: "match.containerInit", value: func(r *Rule) value { return pointer(&r.Match.ContainerInit, toggle) }},
}

func pattern(key string, field func(*Match) *string) setting[Rule] {
	return setting[Rule]{key: key, value: func(r *Rule) value {
		return text(field(&r.Match), "", "a pattern", checkGlob)
	}}
}

// Validate says whether c could have come from a file and flags; the error is
// an [*Error] without a file.
func (c Config) Validate() error {
	for _, s := range settings {
		if err := s.value(&c).check(); err != nil {
			return &Error{Key: s.key, Problem: err.Error()}
		}
	}
	names := make(map[string]string)
	for i := range c.Rules {
		if err := c.Rules[i].validate(ruleKey(i), ruleKey(i), names); err != nil {
			return err
		}
	}
	return nil
}

// validate checks a rule; names maps the name of each rule before it to its place.
func (r *Rule) validate(key, place string, names map[string]string) *Error {
	for _, s := range ruleSettings {
		v := s.value(r)
		if v.unset() && s.key != "name" { // the others are inherited, or match anything
			continue
		}
		if err := v.check(); err != nil {
			return &Error{Key: key + "." + s.key, Problem: err.Error()}
		}
	}
	if first, taken := names[r.Name]; taken {
		return &Error{Key: key + ".name", Problem: fmt.Sprintf(
			"%s is already the name of %s", quote(r.Name), first)}
	}
	names[r.Name] = place
	return nil
}

func ruleKey(i int) string { return fmt.Sprintf("%s[%d]", rulesKey, i) }

// Error is a setting that will not do. Everything in its text that kzr did not
// write itself is escaped, and it is one line.
type Error struct {
	File    string // "" if no file is to blame
	Line    int    // 0 if no line is
	Key     string // with dots; "" if no key is
	Problem string // what is wrong and what would be right
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(escape(e.File))
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
		}
		b.WriteString(": ")
	}
	if e.Key != "" {
		b.WriteString(e.Key)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

// escape leaves a text as it is if it can be shown so, and quotes it if not.
func escape(s string) string {
	if q := strconv.Quote(s); s == "" || q != `"`+s+`"` {
		return q
	}
	return s
}
