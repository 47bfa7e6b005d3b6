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
		p.text("These apply to " + strings.Join(takers, ", ") + ". All but the first override the\nsetting of that name in the configuration file, see kzr.yaml(5).")
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
has been waiting to be reaped for at least ` + "`grace`" + `. It gets SIGCHLD. If that does not
help, kzr reaps inside it the zombies that other processes forked, which does not end
it. Then come SIGTERM and SIGKILL. Before each step the target is checked again through
the pidfd that signals are sent on, and in any doubt nothing is done. Process 1, kernel
threads, kzr with its ancestors and the infrastructure of the host (systemd, container
runtimes and their shims, kubelet, sshd, dbus) are never a target.

Reaping inside attaches to the parent with ptrace(2) for some tenths of a millisecond;
intrusion detection may report that. ` + "`reap: off`" + ` turns it off.`

var sections = []struct{ title, text string }{
	{"SIGNALS", `SIGHUP makes ` + "`kzr run`" + ` reload its configuration; ` + "`event=reloaded`" + ` in the log says how that
went. An invalid configuration, or a file that has disappeared, changes nothing: that is an
error in the log, and systemctl status shows it until a good one is loaded. SIGTERM and
SIGINT stop it at any time; it sends no further signals.`},
	{"EXIT STATUS", `0: success. 1: failure at run time. 2: bad command line or configuration. 3: ` + "`kzr scan --exit-status`" + `
has found targets, or, without a daemon, which alone knows ages, parents with as many
zombies as a target has.`},
	{"THE SERVICE", `The unit kzr.service runs as a user of its own with four capabilities and no
network access. Files under /usr/share/kzr are drop-ins for it; each opens one thing and
says what that means:

` + "`cri.conf`" + ` and ` + "`docker.conf`" + ` let it ask container runtimes for the names of pods,
containers and images; ` + "`metrics.conf`" + ` lets it serve metrics to this machine, and to
the network of your Prometheus once that is in the line ` + "`IPAddressAllow=`" + ` of the copy. To
use one:

  install -D -m 644 -t /etc/systemd/system/kzr.service.d /usr/share/kzr/cri.conf
  systemctl daemon-reload
  systemctl restart kzr

Under systemd the log goes to the journal, with each key as a field in capitals that
begins with KZR_. journalctl -x explains each event:

  journalctl -u kzr KZR_EVENT=signal
  journalctl -u kzr KZR_NAMESPACE=shop -o json
  journalctl -u kzr -p warning

` + "`systemctl status kzr`" + ` shows how kzr watches, and the number of zombies, targets and
kills.`},
	{"FILES", `/etc/kzr/kzr.yaml and /etc/kzr/kzr.yaml.d/*.yaml are the configuration, see kzr.yaml(5).
They must be readable by the user that kzr runs as.

/run/kzr/kzr.sock is the API, HTTP on a unix socket: GET / lists what there is. ` + "`kzr top`" + `,
` + "`kzr scan`" + ` and ` + "`kzr explain`" + ` use it.`},
	{"EXAMPLES", `List parents with zombies, and what would happen to them with other settings:

  kzr scan --threshold 10 --grace 10s

Run in the foreground without sending signals:

  kzr run --dry-run

Explain why process 3775, or process 1 of its container, has zombies:

  kzr explain 3775
  kzr explain 1 --in 3775`},
	{"SEE ALSO", `kzr.yaml(5), ps(1), wait(2), pidfd_open(2), systemd.exec(5)`},
}
