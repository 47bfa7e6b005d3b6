package top

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// row is a line of the table: a parent, or in the view by workload also a workload, or
// how many of its parents are left out.
type row struct {
	report.Parent
	id           lineID
	who, command string
	past         *series
	rate         float64

	load  *report.Workload // of a workload's line
	more  int              // parents that are left out here
	below bool             // it stands below its workload's line
}

// lineID tells lines apart, from one look to the next.
type lineID struct {
	task.ID
	workload string // of a workload's line, or of what is left out below it
	more     bool
}

func newRows(doc *report.Document, h *history, dryRun bool) []row {
	rows := make([]row, len(doc.Parents))
	for i, p := range doc.Parents {
		r := &rows[i]
		*r = row{Parent: p, id: lineID{ID: task.ID{PID: p.PID, Start: p.StartTime}}, who: report.Who(p), command: report.Command(p)}
		if dryRun && r.Reason == string(policy.Backoff) {
			r.Reason = rehearsed
		}
		r.past = h.parents[r.id.ID]
		own := false
		if r.past != nil {
			r.rate, own = r.past.rate()
		}
		if !own {
			r.rate = perSecond(p.RatePerHour) // the daemon has looked for longer
		}
	}
	return rows
}

// matches says whether a row holds every word of the filter, in any case.
func (r *row) matches(words []string) bool {
	return len(words) == 0 || holdsAll(strings.Join([]string{
		strconv.Itoa(r.PID), r.who, r.Workload, r.command, r.Comm, r.Exe, r.Verdict, spelled(r.Reason), r.Cgroup,
	}, "\n"), words)
}

// holdsAll looks for words in lower case, in a text of any.
func holdsAll(text string, words []string) bool {
	if len(words) == 0 {
		return true
	}
	text = strings.ToLower(text)
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// column is a column of the table.
type column int

const (
	colPID column = iota
	colWho
	colCommand
	colZombies
	colAdopted
	colSpark
	colOldest
	colRate
	colState
	colUID
	colVerdict
)

// sortable are the columns that a table can be sorted by, in the order in which
// the key for the next one takes them.
var sortable = []column{colZombies, colRate, colOldest, colVerdict, colWho, colCommand, colPID}

// compare orders two rows by a column: what an operator looks for comes first,
// that is most, oldest, fastest and most urgent, and text from a to z.
func compare(by column, a, b *row) int {
	switch by {
	case colPID:
		return cmp.Compare(a.PID, b.PID)
	case colWho:
		return cmp.Compare(a.who, b.who)
	case colCommand:
		return cmp.Compare(a.command, b.command)
	case colOldest:
		ages := func(r *row) time.Duration { age, _ := r.Oldest(); return age }
		return cmp.Compare(ages(b), ages(a))
	case colRate:
		return cmp.Compare(b.rate, a.rate)
	case colVerdict:
		return cmp.Or(cmp.Compare(urgency(a), urgency(b)), cmp.Compare(left(a), left(b)))
	}
	return cmp.Compare(b.Zombies, a.Zombies)
}

// urgency is low for what happens first.
func urgency(r *row) int {
	switch {
	case r.Verdict == string(policy.Acting):
		return 0
	case r.Verdict == string(policy.Target):
		return 1
	case r.Reason == "" && r.DeadlineSeconds != nil:
		return 2
	case r.Verdict == string(policy.Spared):
		return 3
	case r.Reason == "":
		return 4
	}
	return 5
}

func left(r *row) float64 {
	if r.DeadlineSeconds == nil {
		return 0
	}
	return *r.DeadlineSeconds
}

// fewBelow is how many parents stand below a workload that is not opened.
const fewBelow = 3

// grouped puts the line of its workload before the parents of each, in the order of
// the workloads' zombies or of what the table is sorted by. Parents come in order and
// have passed the filter.
func grouped(parents []row, loads []report.Workload, by column, reverse bool, open map[string]bool) []row {
	below := make(map[string][]row)
	for _, r := range parents {
		r.below = true
		below[r.Workload] = append(below[r.Workload], r)
	}
	var heads []row
	for name, list := range below {
		load := report.Workload{Name: name, Parents: len(list)}
		for _, r := range list {
			load.Zombies += r.Zombies
		}
		for _, l := range loads {
			if l.Name == name {
				load = l
			}
		}
		head := row{Parent: list[0].Parent, id: lineID{workload: name}, who: cmp.Or(name, "no workload"), load: &load, rate: perSecond(load.RatePerHour)}
		head.Zombies, head.PID = load.Zombies, 0
		heads = append(heads, head)
	}
	slices.SortFunc(heads, func(a, b row) int {
		c := compare(by, &a, &b)
		if reverse {
			c = -c
		}
		return cmp.Or(c, cmp.Compare(b.Zombies, a.Zombies), cmp.Compare(a.who, b.who))
	})
	var out []row
	for _, head := range heads {
		out = append(out, head)
		list := below[head.id.workload]
		if n := len(list); n > fewBelow+1 && !open[head.id.workload] {
			out = append(out, list[:fewBelow]...)
			out = append(out, row{id: lineID{workload: head.id.workload, more: true}, more: n - fewBelow, below: true})
			continue
		}
		out = append(out, list...)
	}
	return out
}

func perSecond(perHour *float64) float64 {
	if perHour == nil {
		return 0
	}
	return *perHour / 3600
}

func sortRows(rows []row, by column, reverse bool) {
	slices.SortStableFunc(rows, func(a, b row) int {
		c := compare(by, &a, &b)
		if reverse {
			c = -c
		}
		return cmp.Or(c, cmp.Compare(b.Zombies, a.Zombies), cmp.Compare(a.PID, b.PID))
	})
}

// rehearsed is what a dry run has done with a parent that it leaves alone since.
const rehearsed = "rehearsed"

// spelled is a reason as a person would say it.
func spelled(reason string) string {
	switch policy.Reason(reason) {
	case policy.ByRule:
		return "by rule"
	case policy.Uninterruptible:
		return "in D state"
	}
	return strings.ReplaceAll(reason, "_", " ")
}

// grave are how a verdict looks.
type grave int

const (
	calm   grave = iota // nothing will happen
	soon                // something will, or stands in the way for now
	urgent              // it happens now
)

// verdict says what becomes of a row, elapsed after it was looked at; acts is
// "acts" or, where nobody will act, "due".
func (r *row) verdict(elapsed time.Duration, acts string) (string, grave) {
	switch {
	case r.Verdict == string(policy.Acting) && r.Reason != "":
		return "acting, " + spelled(r.Reason), urgent
	case r.Verdict == string(policy.Acting):
		return "acting", urgent
	case r.Reason != "":
		switch policy.Reason(r.Reason) {
		case policy.Traced, policy.Stopped, policy.Frozen, policy.Dying, policy.Uninterruptible, policy.Waiting, policy.Foreign,
			policy.RateLimited, policy.Backoff:
			return spelled(r.Reason), soon
		}
		return spelled(r.Reason), calm
	case r.Verdict == string(policy.Target):
		return acts + " now", urgent
	case r.DeadlineSeconds == nil:
		return "watch", calm
	}
	rest := seconds(*r.DeadlineSeconds) - elapsed
	if rest <= 0 {
		return acts + " now", urgent
	}
	return acts + " in " + span(rest+time.Second-1), soon
}
