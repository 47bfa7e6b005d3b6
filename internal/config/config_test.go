package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

const shipped = "../../deploy/kzr.yaml"

func TestShippedFileIsTheDefault(t *testing.T) {
	got, _, err := Load(shipped, true)
	if err != nil {
		t.Fatal(err)
	}
	// An empty list in the file and none are the same.
	if want := Default(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What the shipped file has as examples must load once it is uncommented, and
// must show every key that there is.
func TestShippedFileShowsEveryKey(t *testing.T) {
	raw, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, line := range []string{"protect: []\n", "rules: []\n", "onAction: []\n"} {
		if strings.Count(text, "\n"+line) != 1 {
			t.Fatalf("no line %q", line)
		}
		text = strings.Replace(text, line, "", 1)
	}
	text = regexp.MustCompile(`(?m)^#([a-z-]|  )`).ReplaceAllString(text, "$1")
	c, err := parse("example", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Rules) != 3 || len(c.Protect) != 2 {
		t.Errorf("%d rules, %d protected, want 3 and 2", len(c.Rules), len(c.Protect))
	}
	var keys []string
	for _, s := range settings {
		keys = append(keys, s.key)
	}
	for _, s := range ruleSettings {
		keys = append(keys, s.key)
	}
	for _, key := range append(keys, rulesKey) {
		word := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`(?m)(^|[-{, ])` + word + `:`).MatchString(text) {
			t.Errorf("%s is not in %s", key, shipped)
		}
	}
}

// The tables and the types must not part: every field is set by one key.
func TestEveryFieldHasAKey(t *testing.T) {
	var walk func(t reflect.Type, prefix string) []string
	walk = func(t reflect.Type, prefix string) []string {
		var keys []string
		for f := range t.Fields() {
			key := prefix + f.Tag.Get("yaml")
			if f.Type.Kind() == reflect.Struct {
				keys = append(keys, walk(f.Type, key+".")...)
			} else {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		return keys
	}
	top := []string{rulesKey}
	for _, s := range settings {
		top = append(top, s.key)
	}
	slices.Sort(top)
	if want := walk(reflect.TypeFor[Config](), ""); !slices.Equal(top, want) {
		t.Errorf("settings has %q, Config has %q", top, want)
	}
	var rule []string
	for _, s := range ruleSettings {
		rule = append(rule, s.key)
	}
	slices.Sort(rule)
	if want := walk(reflect.TypeFor[Rule](), ""); !slices.Equal(rule, want) {
		t.Errorf("ruleSettings has %q, Rule has %q", rule, want)
	}
}

func TestLoad(t *testing.T) {
	id, yes, no := uint32(0), true, false
	for name, tt := range map[string]struct {
		text string
		want func(*Config)
	}{
		"empty":          {"", func(*Config) {}},
		"comments":       {"# nothing\n\n", func(*Config) {}},
		"byte order":     {"\ufeffthreshold: 3\n", func(c *Config) { c.Threshold = 3 }},
		"windows lines":  {"threshold: 3\r\nmode: proc\r\n", func(c *Config) { c.Threshold, c.Mode = 3, ModeProc }},
		"document marks": {"---\nthreshold: 3\n...\n", func(c *Config) { c.Threshold = 3 }},
		"nothing below":  {"limits:\nprotect:\nrules:\n", func(*Config) {}},
		"zero durations": {"nudge: 0\ntermTimeout: 0s\n", func(c *Config) { c.Nudge, c.TermTimeout = 0, 0 }},
		"pressure off":   {"pressure: 0\n", func(c *Config) { c.Pressure = 0 }},
		"all scalars": {
			"mode: ebpf\nscope: all\nthreshold: 1\ngrace: 1s\nnudge: 500ms\nreap: off\ntermTimeout: 1m30s\nsweepInterval: \"1s\"\n" +
				"dryRun: true\npressure: 1\nlimits: {killsPerMinute: 1, perWorkload: {kills: 9, window: 24h}}\n" +
				"socket: \"\"\nmetrics: \"[::1]:9100\"\nlogFormat: json\nlogLevel: debug\n",
			func(c *Config) {
				*c = Config{Mode: ModeEBPF, Scope: ScopeAll, Threshold: 1, Grace: time.Second,
					Nudge: 500 * time.Millisecond, Reap: ReapOff, TermTimeout: 90 * time.Second, SweepInterval: time.Second,
					DryRun: true, Pressure: 1, Metrics: "[::1]:9100", LogFormat: "json", LogLevel: "debug",
					Limits: Limits{1, PerWorkload{9, 24 * time.Hour}}}
			},
		},
		"protect":       {"protect: [/opt/a, '/opt/*/b']\n", func(c *Config) { c.Protect = []string{"/opt/a", "/opt/*/b"} }},
		"cri":           {"cri: [/run/a.sock, /run/b.sock]\n", func(c *Config) { c.CRI = []string{"/run/a.sock", "/run/b.sock"} }},
		"cri, one":      {"cri: unix:///run/a.sock\n", func(c *Config) { c.CRI = []string{"/run/a.sock"} }},
		"cri, URLs":     {"cri: [unix:///run/a.sock, 'unix:/run/b.sock']\n", func(c *Config) { c.CRI = []string{"/run/a.sock", "/run/b.sock"} }},
		"cri, nobody":   {"cri: \"\"\n", func(c *Config) { c.CRI = []string{} }},
		"cri, empty":    {"cri: []\n", func(c *Config) { c.CRI = nil }},
		"events":        {"kubernetes: {events: true}\n", func(c *Config) { c.Kubernetes.Events = true }},
		"onAction":      {"onAction: [/bin/mail, '', -s, 5x]\n", func(c *Config) { c.OnAction = []string{"/bin/mail", "", "-s", "5x"} }},
		"onAction, one": {"onAction: /bin/mail\n", func(c *Config) { c.OnAction = []string{"/bin/mail"} }},
		"protect, one":  {"protect: /opt/a\n", func(c *Config) { c.Protect = []string{"/opt/a"} }},
		"reap": {"reap: off\nrules: [{name: a, reap: all, termTimeout: 0}, {name: b, reap: off, termTimeout: 5s}]\n", func(c *Config) {
			var zero, five = time.Duration(0), 5 * time.Second
			c.Reap, c.Rules = ReapOff, []Rule{{Name: "a", Reap: ReapAll, TermTimeout: &zero}, {Name: "b", Reap: ReapOff, TermTimeout: &five}}
		}},
		"cri, usual": {"cri:\n", func(c *Config) { c.CRI = nil }},
		"rules": {
			"rules:\n- {name: a, match: {scope: containers, namespace: ns, pod: p-*, container: c, image: 'i/*',\n" +
				"    exe: /bin/x, cgroup: '*/pod*', uid: 0, containerInit: true}, action: observe}\n" +
				"- {name: b, threshold: 2, grace: 5s, match: {containerInit: false}}\n- name: c\n  match:\n",
			func(c *Config) {
				c.Rules = []Rule{
					{Name: "a", Action: ActionObserve, Match: Match{ScopeContainers, "ns", "p-*", "c", "i/*", "/bin/x", "*/pod*", &id, &yes}},
					{Name: "b", Threshold: 2, Grace: 5 * time.Second, Match: Match{ContainerInit: &no}},
					{Name: "c"},
				}
			},
		},
		"alias": {
			"rules:\n- name: a\n  match: &m {pod: x}\n- name: b\n  match: *m\n",
			func(c *Config) {
				c.Rules = []Rule{{Name: "a", Match: Match{Pod: "x"}}, {Name: "b", Match: Match{Pod: "x"}}}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := Default()
			tt.want(&want)
			path := write(t, tt.text)
			got, _, err := Load(path, true)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	for text, want := range map[string]string{
		// Keys.
		"treshold: 5\n":               ":1: treshold: unknown key; did you mean threshold?",
		"term-timeout: 5s\n":          ":1: term-timeout: unknown key; did you mean termTimeout?",
		"killsPerMinute: 5\n":         ":1: killsPerMinute: unknown key; did you mean limits.killsPerMinute?",
		"per-workload-kills: 5\n":     ":1: per-workload-kills: unknown key; did you mean limits.perWorkload.kills?",
		"limits: {x: 5}\n":            ":1: limits.x: unknown key; use killsPerMinute or perWorkload",
		"limits:\n  \"a\\n\": 5\n":    `:2: limits."a\n": unknown key; use killsPerMinute or perWorkload`,
		"rule: []\n":                  ":1: rule: unknown key; did you mean rules?",
		"<<: {mode: proc}\n":          ":1: <<: unknown key; use cri, dryRun, grace, kubernetes, limits, logFormat, logLevel, metrics, mode, nudge, onAction, pressure, protect, reap, rules, scope, socket, sweepInterval, termTimeout or threshold",
		"? [a]\n: 1\n":                ":1: a list cannot be a key",
		"mode: auto\n\nmode: proc":    ":3: mode: duplicate key, first set on line 1",
		"limits: {}\nlimits: {}\n":    ":2: limits: duplicate key, first set on line 1",
		"rules: [{name: a, name: b}]": ":1: rules[0].name: duplicate key, first set on line 1",

		// Values.
		"mode: auto\nscope: all\nthreshold: -5\n": ":3: threshold: -5 is out of range: expected a whole number of at least 1",
		"threshold: 0\n":                              ":1: threshold: 0 is out of range: expected a whole number of at least 1",
		"threshold: 4194305\n":                        ":1: threshold: 4194305 is out of range: expected a whole number of at most 4194304",
		"threshold: 99999999999999999999\n":           `:1: threshold: "99999999999999999999" is out of range: expected a whole number from 1 to 4194304`,
		"threshold: 1.5\n":                            `:1: threshold: invalid number "1.5": expected a whole number of at least 1`,
		"threshold: \"5\"\n":                          `:1: threshold: invalid type: expected a whole number of at least 1, found the string "5"`,
		"threshold:\n":                                ":1: threshold: value is missing: expected a whole number of at least 1",
		"threshold: [1]\n":                            ":1: threshold: invalid type: expected a whole number of at least 1, found a list",
		"threshold: !x 1\n":                           `:1: threshold: invalid type: expected a whole number of at least 1, found "1", something tagged "!x" in YAML`,
		"threshold: \"\\e[31m\\n\"\n":                 `:1: threshold: invalid number "\x1b[31m\n": expected a whole number of at least 1`,
		"grace: 60\n":                                 `:1: grace: invalid duration "60": missing unit; expected a duration such as 30s or 1m`,
		"grace: 5 minutes\n":                          `:1: grace: invalid duration "5 minutes": expected a duration such as 30s or 1m`,
		"grace: 999ms\n":                              ":1: grace: 999ms is out of range: expected a duration of at least 1s",
		"grace: 0\n":                                  ":1: grace: 0 is out of range: expected a duration of at least 1s",
		"grace: 2562047h\n":                           ":1: grace: 2562047h is out of range: expected a duration of at most 8760h",
		"nudge: -1s\n":                                ":1: nudge: -1s is out of range: expected a duration of at least 0",
		"termTimeout: {a: 1}\n":                       ":1: termTimeout: invalid type: expected a duration such as 30s or 1m, found a mapping",
		"sweepInterval: 1ms\n":                        ":1: sweepInterval: 1ms is out of range: expected a duration of at least 1s",
		"dryRun: yes\n":                               `:1: dryRun: invalid value "yes": expected true or false`,
		"dryRun: 1\n":                                 `:1: dryRun: invalid type: expected true or false, found "1", a number in YAML`,
		"pressure: 1.01\n":                            ":1: pressure: 1.01 is out of range: expected a number from 0 to 1",
		"pressure: .nan\n":                            `:1: pressure: invalid number ".nan": expected a number from 0 to 1`,
		"pressure: 85%\n":                             `:1: pressure: invalid number "85%": expected a number from 0 to 1`,
		"mode: bpf\n":                                 `:1: mode: unknown value "bpf": expected auto, ebpf or proc`,
		"scope: host\n":                               `:1: scope: unknown value "host": expected containers or all`,
		"logFormat: xml\n":                            `:1: logFormat: unknown value "xml": expected text or json`,
		"logLevel: INFO\n":                            `:1: logLevel: unknown value "INFO": expected debug, info, warn or error`,
		"limits: 5\n":                                 `:1: limits: invalid type: expected keys and values, found "5"`,
		"limits: {perWorkload: {kills: 0}}":           ":1: limits.perWorkload.kills: 0 is out of range: expected a whole number of at least 1",
		"limits: {perWorkload: {window: 1}}":          `:1: limits.perWorkload.window: invalid duration "1": missing unit; expected a duration such as 30s or 1m`,
		"protect: {a: b}\n":                           ":1: protect: invalid type: expected a list of absolute paths or globs of executables, found a mapping",
		"onAction: [mail, x]\n":                       `:1: onAction: invalid path "mail": expected an absolute path`,
		"onAction: [/bin/mail, {a: b}]\n":             ":1: onAction: invalid type: expected a command's absolute path and its arguments, found a mapping",
		"onAction: [/bin/mail, \"a\\0\"]\n":           `:1: onAction: invalid argument "a\x00": it contains a NUL`,
		"kubernetes: {events: maybe}\n":               `:1: kubernetes.events: invalid value "maybe": expected true or false`,
		"kubernetes: {event: true}\n":                 ":1: kubernetes.event: unknown key; did you mean kubernetes.events?",
		"protect: opt/x\n":                            `:1: protect: invalid path "opt/x": expected an absolute path`,
		"reap: all\n":                                 `:1: reap: "all" is only allowed in a rule: expected off or adopted`,
		"reap: false\n":                               `:1: reap: unknown value "false": expected off or adopted`,
		"cri: tcp://127.0.0.1:1\n":                    `:1: cri: unsupported scheme "tcp": expected a path or unix:///path`,
		"protect:\n- /opt/x\n- opt/*\n":               `:3: protect: invalid path "opt/*": expected an absolute path`,
		"protect: [/opt//x]\n":                        `:1: protect: invalid path "/opt//x": write it as "/opt/x"`,
		"protect: ['/opt/[x']\n":                      `:1: protect: invalid pattern "/opt/[x": a '[' has no matching ']'`,
		"protect: [\"/a\\0b\"]\n":                     `:1: protect: invalid path "/a\x00b": it contains a NUL`,
		"cri: [containerd.sock]\n":                    `:1: cri: invalid path "containerd.sock": expected an absolute path`,
		"socket: kzr.sock\n":                          `:1: socket: invalid path "kzr.sock": expected an absolute path`,
		"socket: /" + strings.Repeat("x", 107) + "\n": `:1: socket: path "/` + strings.Repeat("x", 59) + `"… is too long for a unix socket: at most 107 bytes`,
		"metrics: 9100\n":                             `:1: metrics: invalid address "9100": expected host:port such as 127.0.0.1:9100, or "" for none`,
		"metrics: localhost:http\n":                   `:1: metrics: invalid port in "localhost:http": expected host:port such as 127.0.0.1:9100, or "" for none`,
		"metrics: 'a b:9100'\n":                       `:1: metrics: invalid host in "a b:9100": expected host:port such as 127.0.0.1:9100, or "" for none`,

		// Rules.
		"rules: {}\n":                                     ":1: rules: invalid type: expected a list of rules, found a mapping",
		"rules:\n- a\n":                                   `:2: rules[0]: invalid type: expected keys and values, found "a"`,
		"rules:\n- action: kill\n":                        ":2: rules[0].name: is missing or empty: every rule needs a name",
		"rules:\n- name: \"a\\tb\"\n":                     `:2: rules[0].name: "a\tb" contains characters that cannot be printed`,
		"rules:\n- name: a\n  reap: yes\n":                `:3: rules[0].reap: unknown value "yes": expected off, adopted or all`,
		"rules:\n- name: a\n  termTimeout: 5\n":           `:3: rules[0].termTimeout: invalid duration "5": missing unit; expected a duration such as 30s or 1m`,
		"rules:\n- name: a\n  action: spare\n":            `:3: rules[0].action: unknown value "spare": expected kill or observe`,
		"rules:\n- name: a\n  threshold: 0\n":             ":3: rules[0].threshold: 0 is out of range: expected a whole number of at least 1",
		"rules:\n- name: a\n  grace: 0\n":                 ":3: rules[0].grace: 0 is out of range: expected a duration of at least 1s",
		"rules:\n- name: a\n  pod: x\n":                   ":3: rules[0].pod: unknown key; did you mean match.pod?",
		"rules:\n- name: a\n  match: {comm: x}\n":         ":3: rules[0].match.comm: unknown key; use cgroup, container, containerInit, exe, image, namespace, pod, scope or uid",
		"rules:\n- name: a\n  match: {pod: \"\"}\n":       `:3: rules[0].match.pod: "" matches nothing: omit the key to match everything`,
		"rules:\n- name: a\n  match: {pod: 5}\n":          `:3: rules[0].match.pod: invalid type: "5" is a number in YAML; put it in quotes`,
		"rules:\n- name: a\n  match: {pod: *x}\n":         `:3: a value that starts with "*" needs quotes, such as "*-ci"`,
		"rules:\n- name: a\n  match: {pod: '[z-a]'}\n":    `:3: rules[0].match.pod: invalid pattern "[z-a]": the range 'z'-'a' is empty`,
		"rules:\n- name: a\n  match: {uid: root}\n":       `:3: rules[0].match.uid: invalid user id "root": expected a numeric user id`,
		"rules:\n- name: a\n  match: {uid: 4294967295}\n": ":3: rules[0].match.uid: 4294967295 is not a valid user id",

		// The file as a whole.
		"- a\n":                      ":1: invalid type: expected keys and values, found a list",
		"hello\n":                    `:1: invalid type: expected keys and values, found "hello"`,
		"mode: auto\n---\nmode: x\n": ":2: the file has more than one YAML document",
		"mode: auto\nscope: [\n":     ":3: invalid YAML: did not find expected node content",
		"mode: auto\n\tscope: all\n": ":2: invalid YAML: found a tab character that violates indentation while scanning a plain scalar from line 1",
		"mode: auto\nscope: \"all\n": ":3: invalid YAML: found unexpected end of stream while scanning a quoted scalar from line 2",
		"mode: auto\nscope: \xff\n":  ":2: invalid UTF-8: byte 0xff",
		"mode: auto\nscope: \x00\n":  ":2: control character U+0000 is not allowed",
	} {
		path := write(t, text)
		_, _, err := Load(path, true)
		if err == nil || err.Error() != path+want {
			t.Errorf("%q:\ngot  %v\nwant %s%s", text, err, path, want)
		}
	}
}

func TestLoadFiles(t *testing.T) {
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent.yaml")
	if c, _, err := Load(absent, false); err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("an absent default file: %+v, %v", c, err)
	}
	if _, files, err := Load(os.DevNull, true); err != nil || !slices.Equal(files, []string{os.DevNull}) {
		t.Errorf("%s as an empty file: %q, %v", os.DevNull, files, err)
	}
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, []byte(strings.Repeat("#\n", maxFile/2)+"#"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		absent:                    absent + ": cannot be read: no such file or directory",
		dir:                       dir + ": cannot be read: is a directory",
		large:                     large + ": cannot be read: larger than 1 MiB",
		fifo:                      fifo + ": cannot be read: not a regular file",
		loop:                      loop + ": cannot be read: too many levels of symbolic links",
		"new\nline":               `"new\nline": cannot be read: no such file or directory`,
		filepath.Join(large, "x"): large + "/x: cannot be read: not a directory",
	} {
		if _, _, err := Load(path, true); err == nil || err.Error() != want {
			t.Errorf("Load(%q) = %v, want %s", path, err, want)
		}
	}
}

// The files beside the main one come after it, by name; what they hold replaces
// or, of rules and protected executables, adds up.
func TestDropins(t *testing.T) {
	main := write(t, "threshold: 10\ngrace: 20s\nprotect: [/a]\ncri: [/run/a.sock]\nrules: [{name: a}]\n")
	dir := main + ".d"
	put := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	second := put("20-b.yaml", "threshold: 30\ncri: /run/b.sock\nrules:\n- name: c\n")
	first := put("10-a.yaml", "threshold: 20\nscope: all\nprotect: [/b]\nrules:\n- name: b\n")
	put(".hidden.yaml", "bad: true\n")
	put("30-c.yaml.bak", "bad: true\n")
	got, files, err := Load(main, true)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Threshold, want.Grace, want.Scope = 30, 20*time.Second, ScopeAll
	want.Protect, want.CRI = []string{"/a", "/b"}, []string{"/run/b.sock"}
	want.Rules = []Rule{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !slices.Equal(files, []string{main, first, second}) {
		t.Errorf("read %q", files)
	}
	for text, want := range map[string]string{
		"mode: bpf\n":                    `:1: mode: unknown value "bpf": expected auto, ebpf or proc`,
		"rules:\n- name: d\n- name: b\n": `:3: rules[1].name: "b" is already the name of rules[0] at ` + first + `:5`,
	} {
		path := put("40-d.yaml", text)
		if _, _, err := Load(main, true); err == nil || err.Error() != path+want {
			t.Errorf("got  %v\nwant %s%s", err, path, want)
		}
	}
	if err := os.Remove(main); err != nil {
		t.Fatal(err)
	}
	put("40-d.yaml", "")
	if c, files, err := Load(main, false); err != nil || len(files) != 3 || c.Threshold != 30 {
		t.Errorf("without a main file: threshold %d from %q, %v", c.Threshold, files, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(main, false); err == nil || err.Error() != dir+": cannot be read: not a directory" {
		t.Errorf("a file in the directory's place: %v", err)
	}
}

func TestFlags(t *testing.T) {
	path := write(t, "threshold: 10\ngrace: 20s\nprotect: [/a]\ndryRun: true\nrules: [{name: a}]\n")
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := Register(set)
	if err := set.Parse([]string{
		"--config", path, "--threshold=5", "--threshold=7", "--protect", "/x,y", "--protect=/z/*", "--dry-run=false",
		"--mode=proc", "--scope=all", "--nudge=0", "--reap=off", "--term-timeout=3s", "--sweep-interval=4s", "--pressure=0.5",
		"--kills-per-minute=8", "--per-workload-kills=9", "--per-workload-window=10m", "--socket=", "--metrics=:9",
		"--log-format=json", "--log-level=error", "--kubernetes-events", "--on-action=/bin/mail", "--on-action=a,b",
	}); err != nil {
		t.Fatal(err)
	}
	want := Config{
		Mode: ModeProc, Scope: ScopeAll, Threshold: 7, Grace: 20 * time.Second, Reap: ReapOff, TermTimeout: 3 * time.Second,
		SweepInterval: 4 * time.Second, Pressure: 0.5, Protect: []string{"/x,y", "/z/*"}, Rules: []Rule{{Name: "a"}},
		Limits:  Limits{8, PerWorkload{9, 10 * time.Minute}},
		Metrics: ":9", LogFormat: "json", LogLevel: "error",
		Kubernetes: Kubernetes{Events: true}, OnAction: []string{"/bin/mail", "a,b"},
	}
	for range 2 { // a reload does it all again
		got, err := f.Load()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if err := os.WriteFile(path, []byte("grace: 30s\nprotect: [/b]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want.Grace, want.Rules = 30*time.Second, nil
	if got, err := f.Load(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("after a change of the file: %v\ngot  %+v\nwant %+v", err, got, want)
	}
	if err := os.WriteFile(path, []byte("cri: [/run/a.sock]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want []string }{
		{nil, []string{"/run/a.sock"}},
		{[]string{"--cri="}, []string{}},
		{[]string{"--cri=unix:///run/b.sock", "--cri", "/run/c.sock"}, []string{"/run/b.sock", "/run/c.sock"}},
	} {
		set := pflag.NewFlagSet("test", pflag.ContinueOnError)
		f := Register(set)
		if err := set.Parse(append(tt.args, "--config", path)); err != nil {
			t.Fatal(err)
		}
		if got, err := f.Load(); err != nil || !reflect.DeepEqual(got.CRI, tt.want) {
			t.Errorf("%q over a file: %v, %#v, want %#v", tt.args, err, got.CRI, tt.want)
		}
	}
	if err := os.WriteFile(path, []byte("grace: 30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(); err == nil || !strings.HasPrefix(err.Error(), path+":1: grace: ") {
		t.Errorf("after the file went bad: %v", err)
	}
}

// Every setting has a flag, in kebab-case, with the same checks.
func TestFlagNames(t *testing.T) {
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := Register(set)
	for _, s := range settings {
		want := regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(strings.TrimPrefix(s.key, "limits."),
			func(c string) string { return "-" + strings.ToLower(c) })
		want = strings.ReplaceAll(want, ".", "-")
		if s.flag != want {
			t.Errorf("%s has the flag %s, want %s", s.key, s.flag, want)
		}
		if !slices.Contains(Groups, s.group) {
			t.Errorf("--%s is in no group of help", s.flag)
		}
	}
	for flag, words := range f.Choices() {
		for _, w := range words {
			if err := set.Set(flag, w); err != nil {
				t.Errorf("completion offers a bad value: %v", err)
			}
		}
	}
	if len(f.Choices()) != 5 {
		t.Errorf("choices of %d flags, want 5: %v", len(f.Choices()), f.Choices())
	}
	err := set.Parse([]string{"--threshold=-5"})
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); !ok ||
		bad.Unwrap().Error() != "-5 is out of range: expected a whole number of at least 1" {
		t.Errorf("--threshold=-5: %v", err)
	}
}

func TestValidate(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for want, change := range map[string]func(*Config){
		"threshold: 0 is out of range: expected a whole number of at least 1": func(c *Config) { c.Threshold = 0 },
		`mode: unknown value "": expected auto, ebpf or proc`:                 func(c *Config) { c.Mode = "" },
		`protect: invalid path "": expected an absolute path`: func(c *Config) {
			c.Protect = []string{"/a", ""}
		},
		"rules[1].name: is missing or empty: every rule needs a name": func(c *Config) {
			c.Rules = []Rule{{Name: "a"}, {}}
		},
		`rules[1].name: "a" is already the name of rules[0]`: func(c *Config) {
			c.Rules = []Rule{{Name: "a"}, {Name: "a"}}
		},
		"rules[0].threshold: -1 is out of range: expected a whole number of at least 1": func(c *Config) {
			c.Rules = []Rule{{Name: "a", Threshold: -1}}
		},
	} {
		c := Default()
		change(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	example, err := os.ReadFile(shipped)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	for _, s := range []string{
		"", "threshold: -5", "a: &x [*x]", "rules: &r [{name: a, match: {uid: 1, pod: '*'}}]", "rules: [&a [*a]]",
		"limits: {perWorkload: {kills: 1, window: 1h}}", "protect: [/a, \"/\\0\"]", "? [x]\n: 1", "<<: {mode: proc}",
		"mode: !!binary YQ==", "grace: 1h\n---\n", "%YAML 1.1\n---\n", "\"\\u202e\\x1b\": 1", "- \xff", "a: \u2028b",
		"grace: 10m\nsweepInterval: 90m\nnudge: 0\nprotect: [/a, /b]\ncri: []",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "kzr.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("f.yaml", data)
		if err == nil {
			if err := c.Validate(); err != nil {
				t.Errorf("loads but does not validate: %v", err)
			}
			if again, err := parse("f.yaml", data); err != nil || !reflect.DeepEqual(again, c) {
				t.Errorf("loads as %+v, and then as %+v, %v", c, again, err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := throughFlags(t, c, path); !reflect.DeepEqual(got, c) {
				t.Errorf("with every flag over the file %+v, want %+v", got, c)
			}
			got := throughFlags(t, c, os.DevNull)
			if got.Rules = c.Rules; !reflect.DeepEqual(got, c) {
				t.Errorf("with every flag %+v, want %+v", got, c)
			}
			return
		}
		if e, ok := errors.AsType[*Error](err); !ok || e.Problem == "" {
			t.Errorf("%T: %v", err, err)
		}
		if !strings.HasPrefix(err.Error(), "f.yaml:") || !printable(err.Error()) || len(err.Error()) > 1000 {
			t.Errorf("not one plain line: %q", err.Error())
		}
	})
}

// throughFlags says every setting of c but the rules with flags, over a file.
func throughFlags(t *testing.T, c Config, path string) Config {
	t.Helper()
	args := []string{"--config=" + path}
	for _, s := range settings {
		v := s.value(&c)
		texts := []string{v.String()}
		if l, ok := v.(*list); ok {
			if texts = *l.p; len(texts) == 0 && texts != nil {
				texts = []string{""}
			}
		}
		for _, text := range texts {
			args = append(args, "--"+s.flag+"="+text)
		}
	}
	set := pflag.NewFlagSet("kzr", pflag.ContinueOnError)
	f := Register(set)
	if err := set.Parse(args); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	got, err := f.Load()
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return got
}

// parse reads a text as if it were the only file.
func parse(file string, data []byte) (Config, error) {
	c := Default()
	err := parser{file, make(map[string]string)}.into(&c, data)
	return c, err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kzr.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

// Root reads everything, so the thread gives up root's rights to files.
func TestLoadUnreadable(t *testing.T) {
	path := write(t, "mode: proc\n")
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SetfsuidRetUid(65534)
	if err != nil {
		t.Fatal(err)
	}
	_, _, loadErr := Load(path, false)
	if _, err := unix.SetfsuidRetUid(before); err != nil {
		t.Fatal(err)
	}
	if loadErr == nil || loadErr.Error() != path+": cannot be read: permission denied" {
		t.Errorf("Load = %v", loadErr)
	}
}

// TestVolumeChanges plays the kubelet, which writes all files of a ConfigMap anew and
// then changes one link.
func TestVolumeChanges(t *testing.T) {
	dir := t.TempDir()
	dropins := filepath.Join(dir, "kzr.yaml.d")
	put := func(name, content string) {
		if err := os.MkdirAll(filepath.Join(dropins, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dropins, name, "10.yaml"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, filepath.Join(dropins, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dropins, "..data_tmp"), filepath.Join(dropins, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put("..one", "threshold: 10\n")
	if err := os.Symlink("..data/10.yaml", filepath.Join(dropins, "10.yaml")); err != nil {
		t.Fatal(err)
	}
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := Register(set)
	f.path = filepath.Join(dir, "kzr.yaml")
	for i, want := range []int{10, 20} {
		if i > 0 {
			put("..two", "threshold: 20\n")
			if !f.Changed() {
				t.Error("a change is not noticed")
			}
		}
		if c, err := f.Load(); err != nil || c.Threshold != want {
			t.Errorf("threshold %d, want %d: %v", c.Threshold, want, err)
		}
		if f.Changed() {
			t.Error("changed since it was read")
		}
	}
	// A file that somebody edits by hand is not a volume.
	set = pflag.NewFlagSet("test", pflag.ContinueOnError)
	f = Register(set)
	f.path = write(t, "threshold: 10\n")
	if _, err := f.Load(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path, []byte("thr"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f.Changed() {
		t.Error("a file that is being written counts as changed")
	}
}
