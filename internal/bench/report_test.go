package bench

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// quick makes few rounds at small sizes: to see that all of it runs.
var quick = os.Getenv("KZR_BENCH") == "quick"

// pick is the number of rounds, or a size.
func pick(n, whenQuick int) int {
	if quick {
		return whenQuick
	}
	return n
}

// section is a part of the report.
type section struct {
	title, text string
	head        []string
	rows        [][]string
	charts      []chart
	after       string
}

// scratch is a directory for the run.
var scratch string

var (
	order    = []string{"loops", "exit", "quiet", "looking", "cost", "acting", "size", "growth"}
	sections = map[string]*section{}
)

// TestMain writes the report to the directory that KZR_BENCH_REPORT names, if every
// benchmark has passed.
func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "kzr-bench-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	if dir := os.Getenv("KZR_BENCH_REPORT"); dir != "" && code == 0 {
		if err := write(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func write(dir string) error {
	var text bytes.Buffer
	var uts unix.Utsname
	var info unix.Sysinfo_t
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	fmt.Fprintf(&text, `# Benchmarks

Made by `+"`make bench`"+` of kzr %s on a machine with %d CPUs and %d GiB, Linux %s. Do not edit: run it again.

Each figure stands beside one of something else that was measured in the same run, in turns with it. "1.02 (1.00–1.05)" is the
median of the rounds and, in brackets, the half of them in the middle.
`, os.Getenv("KZR_COMMIT"), runtime.NumCPU(), info.Totalram*uint64(info.Unit)>>30, unix.ByteSliceToString(uts.Release[:]))
	if v := versions(); v != "" {
		fmt.Fprintf(&text, "\nThe others: %s.\n", v)
	}
	for _, name := range order {
		s := sections[name]
		if s == nil {
			return fmt.Errorf("no section %q: run all of them", name)
		}
		fmt.Fprintf(&text, "\n## %s\n\n%s\n", s.title, s.text)
		for _, c := range s.charts {
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.svg()), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(&text, "\n![%s](%s)\n", c.title, c.file)
		}
		fmt.Fprintf(&text, "\n| %s |\n|%s\n", strings.Join(s.head, " | "), strings.Repeat("---|", len(s.head)))
		for _, r := range s.rows {
			fmt.Fprintf(&text, "| %s |\n", strings.Join(r, " | "))
		}
		if s.after != "" {
			fmt.Fprintf(&text, "\n%s\n", s.after)
		}
	}
	return os.WriteFile(filepath.Join(dir, "BENCHMARKS.md"), text.Bytes(), 0o644)
}

// versions are those of the packages that the others come from.
func versions() string {
	out, _ := exec.Command("dpkg-query", "-W", "-f", "${Package} ${Version}, ", "procps", "mawk", "forkstat", "libbpf-tools", "bpftrace").Output()
	text := string(out)
	debs, _ := filepath.Glob(filepath.Join(peersDir(), "*.deb"))
	for _, deb := range debs {
		if name, rest, ok := strings.Cut(filepath.Base(deb), "_"); ok {
			version, _, _ := strings.Cut(rest, "_")
			text += name + " " + version + ", "
		}
	}
	return strings.TrimSuffix(text, ", ")
}

// spread is a list of measurements of one thing.
type spread []float64

func (s spread) at(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s spread) median() float64 { return s.at(0.5) }

// over are its ratios to others of the same rounds.
func (s spread) over(others spread) spread {
	ratios := make(spread, len(s))
	for i := range s {
		ratios[i] = s[i] / others[i]
	}
	return ratios
}

func (s spread) format(verb string) string {
	return fmt.Sprintf(verb+" ("+verb+"–"+verb+")", s.median(), s.at(0.25), s.at(0.75))
}

func (s spread) String() string { return s.format("%.2f") }

// times says how many times as much something is.
func times(x float64) string {
	if x >= 10 {
		return fmt.Sprintf("%.0f×", x)
	}
	return fmt.Sprintf("%.1f×", x)
}

// chart is lines over two logarithmic axes.
type chart struct {
	file, title, x, y string
	lines             []line
}

type line struct {
	name string
	xy   [][2]float64
}

const (
	chartW, chartH            = 720, 380
	left, right, above, under = 70, 190, 40, 50
)

// The colours are Okabe and Ito's, which all can tell apart.
var colours = []string{"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"}

func (c *chart) svg() string {
	lo, hi := [2]float64{math.Inf(1), math.Inf(1)}, [2]float64{}
	for _, l := range c.lines {
		for _, p := range l.xy {
			for i := range p {
				lo[i], hi[i] = min(lo[i], p[i]), max(hi[i], p[i])
			}
		}
	}
	for i := range lo { // whole decades
		lo[i], hi[i] = math.Floor(math.Log10(lo[i])), math.Ceil(math.Log10(hi[i]))
		hi[i] = max(hi[i], lo[i]+1)
	}
	x := func(v float64) float64 {
		return left + (math.Log10(v)-lo[0])/(hi[0]-lo[0])*(chartW-left-right)
	}
	y := func(v float64) float64 {
		return chartH - under - (math.Log10(v)-lo[1])/(hi[1]-lo[1])*(chartH-above-under)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%d" y="22" font-size="15">%s</text>
`, chartW, chartH, left, c.title)
	for e := lo[0]; e <= hi[0]; e++ {
		at := x(math.Pow(10, e))
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			at, above, chartH-under, at, chartH-under+18, thousands(math.Pow(10, e)))
	}
	for e := lo[1]; e <= hi[1]; e++ {
		at := y(math.Pow(10, e))
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, at, chartW-right, left-6, at+4, thousands(math.Pow(10, e)))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text><text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n",
		(left+chartW-right)/2, chartH-10, c.x, (above+chartH-under)/2, c.y)
	for i, l := range c.lines {
		colour := colours[i%len(colours)]
		var points strings.Builder
		for _, p := range l.xy {
			fmt.Fprintf(&points, "%.1f,%.1f ", x(p[0]), y(p[1]))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p[0]), y(p[1]), colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, points.String(), colour)
		at := above + 8 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %dh18" stroke="%s" stroke-width="2"/><text x="%d" y="%d">%s</text>`+"\n",
			chartW-right+14, at, colour, chartW-right+38, at+4, l.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func thousands(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%g", v)
}
