package advice

import (
	"fmt"
	"strings"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/report"
)

// Settings are what a plan depends on and a Detail does not say.
type Settings struct {
	DryRun  bool
	Observe bool // this kzr has no ladder: it only looks
}

// Complete fills in the plan and the advice.
func Complete(d *report.Detail, s Settings) {
	d.Plan, d.Advice = Plan(d, s), Owner(d)
}

// Steps are those of a ladder as a Detail has them.
func Steps(ladder []policy.Step) []report.Step {
	out := make([]report.Step, len(ladder))
	for i, s := range ladder {
		out[i] = report.Step{Step: string(s.Do), Wait: report.Seconds(s.Wait), Skipped: report.Sanitize(s.Skipped)}
	}
	return out
}

// Plan says what kzr does about it and when.
func Plan(d *report.Detail, s Settings) []string {
	acting := d.Verdict == string(policy.Acting)
	switch {
	case Dead(d):
		return []string{"Nothing: a zombie cannot be signalled. Its parent is what counts."}
	case dying(d):
		return []string{planOfDying(d)}
	case d.Reason == string(policy.Protected):
		return []string{"Nothing, it is only reported: " + Because(policy.Protected) + "."}
	case d.Reason == string(policy.OutOfScope), d.Reason == string(policy.ByRule) && !d.RuleUnsure:
		text := Because(policy.Reason(d.Reason))
		if d.Rule != "" && d.Reason == string(policy.ByRule) {
			text = "rule " + d.Rule + " says observe"
		}
		return []string{"Nothing, it is only reported: " + text + "."}
	case d.RuleUnsure && !acting:
		what := "the name of its container"
		if d.Exe == "" {
			what = "its executable"
		}
		return []string{fmt.Sprintf("Nothing for now: rule %s, which says observe, may match it; %s is not known yet.", d.Rule, what)}
	}
	out := []string{rule(d)}
	if d.Reapable == 0 {
		return append(out, "It has no zombies that it could reap, so nothing happens.")
	}
	out = append(out, when(d, s)...)
	if len(d.Ladder) > 0 && (d.Reason == "" || acting || temporary(d)) && (d.Verdict != string(policy.Watch) || d.DeadlineSeconds != nil) {
		out = append(out, ladder(d, s))
	}
	switch {
	case s.Observe:
		out = append(out, "This view sends no signals; a daemon with this configuration would.")
	case s.DryRun:
		out = append(out, "The daemon is in dry-run mode: it logs each step and does nothing.")
	}
	if r := d.ReapInside; r != nil && r.Times >= 2 {
		out = append(out, fmt.Sprintf("kzr has reaped inside it %d times already: the cause is still there and its owner should be told.", r.Times))
	}
	return out
}

// planOfDying says that there is nothing to do but wait, and for what.
func planOfDying(d *report.Detail) string {
	text := "kzr sends no further signal: it is already exiting, and waits for "
	var who []string
	for _, b := range d.BlockedBy {
		does := "reap"
		if b.Trace {
			does = "detach from"
		}
		who = append(who, fmt.Sprintf("process %d (%s) to %s %s", b.PID, b.Comm, does, plural(b.Dead, "dead process", "dead processes")))
	}
	switch {
	case len(who) > 0:
		return text + enumerate(who) + "."
	case namespaceInit(d):
		return text + "all processes of its pid namespace to be gone."
	}
	return text + "the kernel to finish that."
}

// rule says what makes a target, for this process.
func rule(d *report.Detail) string {
	by := "The rule"
	if d.Rule != "" {
		by = "Rule " + d.Rule
	}
	switch d.Pressure {
	case string(policy.WorkloadPressure):
		return "A pid limit of its workload is almost reached: the threshold no longer applies, and zombies count after 1s. Its largest parents come first."
	case string(policy.NodePressure):
		return "The node is almost out of pids: the threshold no longer applies, and zombies count after 1s. The largest workloads come first."
	}
	return fmt.Sprintf("%s: at least %s, each for at least %s.", by, plural(d.Threshold, "zombie", "zombies"), seconds(d.Grace))
}

// temporary says that what spares it ends by itself, or when a pid limit is near.
func temporary(d *report.Detail) bool {
	switch policy.Reason(d.Reason) {
	case policy.Traced, policy.Stopped, policy.Frozen, policy.Uninterruptible, policy.Waiting, policy.Foreign,
		policy.RateLimited, policy.Backoff:
		return true
	}
	return false
}

// when says when it meets its rule, or what stands in the way.
func when(d *report.Detail, s Settings) []string {
	var out []string
	switch {
	case d.Verdict == string(policy.Acting):
		text := "It meets the rule, and kzr is acting on it now"
		if d.HeldUp != "" {
			text += "; its next step is held up"
			if d.Until != nil {
				text += " until " + moment(*d.Until)
			}
			text += ": " + d.HeldUp
		}
		out = append(out, text+".")
	case d.DeadlineSeconds == nil:
		text := fmt.Sprintf("It has %d: nothing happens now.", d.Reapable)
		if r := d.RatePerHour; r != nil && *r >= 1 && d.Reapable < d.Threshold {
			left := float64(d.Threshold-d.Reapable)/(*r)*3600 + d.Grace
			text = fmt.Sprintf("It has %d: nothing happens now. At this rate it is eligible in about %s.", d.Reapable, seconds(left))
		}
		out = append(out, text)
	case *d.DeadlineSeconds > 0:
		out = append(out, fmt.Sprintf("It is eligible in %s, unless it reaps.", seconds(*d.DeadlineSeconds)))
	case s.DryRun && d.Reason == string(policy.Backoff):
		out = append(out, "It meets the rule. The dry run has been through the steps; it is repeated within the hour.")
		return out
	default:
		out = append(out, "It meets the rule now.")
	}
	if d.Reason != "" && d.Verdict != string(policy.Acting) && (d.DeadlineSeconds != nil || d.Verdict == string(policy.Spared)) {
		text := "It is spared: " + Because(policy.Reason(d.Reason))
		switch {
		case d.Until != nil:
			text += ", until " + moment(*d.Until)
		case temporary(d) && d.Reason != string(policy.RateLimited) && d.Reason != string(policy.Backoff):
			text += ". kzr acts when that ends, or when a pid limit is almost reached"
		}
		out = append(out, text+".")
	}
	for _, l := range d.LimitsUsed {
		name := map[string]string{"perWorkload": "limits.perWorkload", "killsPerMinute": "limits.killsPerMinute", "pause": "the pause between kills in one workload"}[l.Name]
		if name == "" {
			name = l.Name
		}
		out = append(out, fmt.Sprintf("The limit on kills is used up (%s, since %s): no kill until %s. SIGCHLD and reaping inside it go on.",
			name, moment(l.Since), moment(l.Until)))
	}
	return out
}

// ladder lists what happens to it.
func ladder(d *report.Detail, setting Settings) string {
	var steps, skipped []string
	for _, s := range d.Ladder {
		name := s.Step
		if s.Step == string(policy.Reap) {
			name = "reaping inside it"
		}
		if s.Skipped != "" {
			skipped = append(skipped, fmt.Sprintf("%s (%s)", name, s.Skipped))
			continue
		}
		switch policy.Do(s.Step) {
		case policy.Nudge:
			name += ", then " + wait(s.Wait) + " to reap"
		case policy.Reap:
			switch {
			case d.Reap == string(config.ReapAll):
				name = fmt.Sprintf("reaping the %s inside it, which does not end it but takes the exit statuses of its own children too",
					plural(d.Reapable, "zombie", "zombies"))
			case setting.Observe: // only a daemon sees which are
				name = "reaping its adopted zombies inside it, if it has any and the kernel allows it, which does not end it"
			default:
				name = fmt.Sprintf("reaping the %s inside it, which does not end it", plural(d.Adopted, "adopted zombie", "adopted zombies"))
			}
		case policy.Terminate:
			name += ", then " + wait(s.Wait) + " to exit"
		}
		steps = append(steps, name)
	}
	text := "Steps, until one of them helps: " + strings.Join(steps, "; ") + "."
	if len(skipped) > 0 {
		text += " Skipped: " + strings.Join(skipped, "; ") + "."
	}
	return text
}

func wait(s float64) string { return time.Duration(s * float64(time.Second)).String() }

// moment is a time of day, with the date: a limit can last for long.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// Impact says what SIGKILL would take along; nil if that is nothing, not known, or
// never happens.
func Impact(d *report.Detail) []string {
	k := d.KillTakes
	if k == nil || Dead(d) || dying(d) || d.Reason == string(policy.Protected) {
		return nil
	}
	var out []string
	if len(k.Containers) > 0 {
		out = append(out, fmt.Sprintf("The whole pod ends with it, with the containers %s.", enumerate(k.Containers)))
	}
	if k.Processes > 0 {
		text := fmt.Sprintf("%s of its container end with it", plural(k.Processes, "other process", "other processes"))
		if k.Processes == 1 {
			text = "1 other process of its container ends with it"
		}
		if len(k.Sessions) > 0 {
			var names []string
			for _, r := range k.Sessions[:min(len(k.Sessions), 4)] {
				names = append(names, named(r))
			}
			if n := len(k.Sessions) - 4; n > 0 {
				names = append(names, fmt.Sprintf("%d more", n))
			}
			text += ", among them what was started in it from outside (exec, probes, builds): " + enumerate(names)
		}
		out = append(out, text+".")
	}
	if k.Orphans > 0 {
		text := "Its live child lives on and gets another parent."
		if k.Orphans > 1 {
			text = fmt.Sprintf("Its %d live children live on and get another parent.", k.Orphans)
		}
		out = append(out, text)
	}
	if namespaceInit(d) && !sandbox(d) {
		out = append(out, "The container ends, and its runtime restarts it if it is configured to.")
	}
	return out
}

// Because finishes "It is spared: ".
func Because(r policy.Reason) string {
	switch r {
	case policy.Protected:
		return "kzr never signals pid 1, kernel threads, itself or the host's infrastructure"
	case policy.OutOfScope:
		return "it is not in a container, and the scope is containers"
	case policy.ByRule:
		return "its rule says observe"
	case policy.Traced:
		return "it is being traced"
	case policy.Stopped:
		return "it is stopped"
	case policy.Frozen:
		return "its cgroup is frozen"
	case policy.Dying:
		return "it is already exiting"
	case policy.Uninterruptible:
		return "it is in uninterruptible sleep"
	case policy.Waiting:
		return "it is waiting for one child and can reap the others after that"
	case policy.Foreign:
		return "its zombies were put on it by a process that may not signal it"
	case policy.RateLimited:
		return "the limit on kills is used up"
	case policy.Backoff:
		return "kzr has recently acted on it or its workload"
	case policy.Recovered:
		return "it has begun to reap"
	case policy.IdentityChanged:
		return "it is not the same process any more"
	}
	return "kzr leaves it alone"
}
