// Package man writes kzr's manual pages: kzr(8) from the commands and their help,
// kzr.yaml(5) from the commented configuration file. It is no part of kzr itself.
package man

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kzr/internal/config"
)

// Command renders kzr(8).
func Command(root *cobra.Command, a About) []byte {
	p := newPage(a, "kzr", 8, "remove the cause of zombie processes")
	p.section("SYNOPSIS")
	for i, cmd := range commands(root) {
		if i > 0 {
			p.WriteString(".br\n")
		}
		p.line("`" + strings.Replace(cmd.UseLine(), " [flags]", "` [flags]`", 1) + "`")
	}
	p.section("DESCRIPTION")
	p.text(root.Long)
	p.WriteString(".PP\n")
	p.text(description)

	p.section("COMMANDS")
	for _, cmd := range commands(root) {
		p.item("`"+strings.TrimSuffix(cmd.Use, " [flags]")+"`", cmp.Or(cmd.Long, cmd.Short))
		if flags := ownFlags(cmd); len(flags) > 0 {
			p.WriteString(".RS\n")
			for _, f := range flags {
				p.flag(f)
			}
			p.WriteString(".RE\n")
		}
	}

	p.section("OPTIONS")
	var takers []string
	var common *cobra.Command
	for _, cmd := range commands(root) {
		if cmd.Flags().Lookup("config") != nil {
			takers, common = append(takers, "`"+cmd.Name()+"`"), cmd
		}
	}
	if common != nil {
		p.text("These are of " + strings.Join(takers, ", ") + ". Each but the first is a setting of the\nconfiguration file, over which it wins; kzr.yaml(5) says more about it.")
		p.flag(common.Flags().Lookup("config"))
		for _, title := range config.Groups {
			p.subsection(title)
			common.Flags().VisitAll(func(f *pflag.Flag) {
				if group(f) == title {
					p.flag(f)
				}
			})
		}
	}
	for _, s := range sections {
		p.section(s.title)
		p.text(s.text)
	}
	return []byte(p.String())
}

// commands are those that help shows.
func commands(root *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() {
			list = append(list, cmd)
		}
	}
	return list
}

// ownFlags are those that are about the command, not the configuration.
func ownFlags(cmd *cobra.Command) []*pflag.Flag {
	var list []*pflag.Flag
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if group(f) == "" && f.Name != "config" && f.Name != "help" && !f.Hidden {
			list = append(list, f)
		}
	})
	return list
}

func group(f *pflag.Flag) string {
	if a := f.Annotations[config.GroupAnnotation]; a != nil {
		return a[0]
	}
	return ""
}

func (p *page) flag(f *pflag.Flag) {
	typ, usage := pflag.UnquoteUsage(f)
	tag := "`--" + f.Name + "`"
	if f.NoOptDefVal == "" {
		tag += " " + typ
	}
	if shown := f.DefValue; shown != "" && shown != "false" && shown != "[]" {
		usage += fmt.Sprintf(" (default %s)", shown)
	}
	p.item(tag, usage)
}

const description = `A parent is a target when it holds at least ` + "`threshold`" + ` zombies, each of which
has been waiting to be reaped for at least ` + "`grace`" + `. It gets SIGCHLD; if that does
not help, SIGTERM; if it does not end, SIGKILL. Before each signal it is looked
at again through the pidfd that the signal is sent on, and any doubt means that
none is sent. Process 1, kernel threads, kzr with its ancestors and the infrastructure
of the host (systemd, container runtimes and their shims, kubelet, sshd, dbus) are
never a target.`

var sections = []struct{ title, text string }{
	{"SIGNALS", `SIGHUP makes ` + "`kzr run`" + ` read its configuration again; ` + "`event=reloaded`" + ` says how that
went. A bad one changes nothing, as does a file that was there and is no more: that
is an error in the log, and one of the problems that systemctl status shows until a
good one is read. SIGTERM and SIGINT end it, in the middle of anything: it
sends no signal any more, and a target begins with a grace of its own when kzr
is back.`},
	{"EXIT STATUS", `0 is success, 1 a failure at run time, 2 a bad command line or configuration.`},
	{"THE SERVICE", `The unit kzr.service runs as a user of its own with four capabilities and no
network. Files under /usr/share/kzr are drop-ins for it, each of which opens just
one thing and says what that means:

` + "`cri.conf`" + ` and ` + "`docker.conf`" + ` let it ask container runtimes for the names of pods,
containers and images; ` + "`metrics.conf`" + ` lets it serve metrics to this machine, and to
the network of your Prometheus once that is in the line ` + "`IPAddressAllow=`" + ` of the copy. To
use one:

  install -D -m 644 -t /etc/systemd/system/kzr.service.d /usr/share/kzr/cri.conf
  systemctl daemon-reload
  systemctl restart kzr

Under systemd the log goes to the journal with each key as a field, in capitals
and with KZR_ before it:

  journalctl -u kzr KZR_EVENT=signal
  journalctl -u kzr KZR_NAMESPACE=shop -o json
  journalctl -u kzr -p warning

` + "`systemctl status kzr`" + ` shows how kzr watches, and how many zombies, targets and kills
there are.`},
	{"FILES", `/etc/kzr/kzr.yaml is the configuration, see kzr.yaml(5). It must be readable for
everybody, or at least for the user that kzr runs as.

/run/kzr/kzr.sock is where ` + "`kzr top`" + ` and ` + "`kzr explain`" + ` ask the daemon, and others over
HTTP: GET /v1/parents, /v1/events, /v1/status and /metrics.`},
	{"EXAMPLES", `Who holds zombies now, and what would happen to them:

  kzr scan --threshold 10 --grace 10s

All but the signals, on one's own terminal:

  kzr run --dry-run

Why does this one leak, and what is to be done about it?

  kzr explain 3775`},
	{"SEE ALSO", `kzr.yaml(5), ps(1), wait(2), pidfd_open(2), systemd.exec(5)`},
}
