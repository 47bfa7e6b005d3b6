package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Flags are the flags of a command that takes kzr's configuration.
type Flags struct {
	set   *pflag.FlagSet
	path  string
	files []string // that Load has read
	found bool     // path was among them once
	state string   // of the volume that they were in, see Changed
	over  []*override
}

// override is a flag of a setting: it remembers the texts it was given, to put
// them over whatever the file says each time that it is read.
type override struct {
	value
	setting setting[Config]
	texts   []string
}

// Set checks a text at once, so that a bad flag is an error even where the
// configuration is not read.
func (o *override) Set(text string) error {
	if err := o.value.Set(text); err != nil {
		return err
	}
	o.texts = append(o.texts, text)
	return nil
}

// GroupAnnotation is the key under which a flag carries the title of its group.
const GroupAnnotation = "kzr-group"

// Register adds --config and a flag for every setting but rules.
func Register(set *pflag.FlagSet) *Flags {
	f := &Flags{set: set}
	set.StringVar(&f.path, "config", DefaultPath, "configuration `file`")
	shown := Default() // where the flags show their defaults
	for _, s := range settings {
		o := &override{value: s.value(&shown), setting: s}
		flag := set.VarPF(o, s.flag, "", s.usage)
		flag.Annotations = map[string][]string{GroupAnnotation: {s.group}}
		if o.Type() == "bool" {
			flag.NoOptDefVal = "true"
		}
		f.over = append(f.over, o)
	}
	return f
}

// Path is the file that Load reads.
func (f *Flags) Path() string { return f.path }

// Files are those that Load found and read last, with the ones beside Path.
func (f *Flags) Files() []string { return f.files }

// Load reads the files, puts the flags that were given over it and checks the
// whole. It may be called again, to reload: a file that was there then has to be
// there still. The error is an [*Error].
func (f *Flags) Load() (Config, error) {
	if f.path == "" {
		return Config{}, &Error{Key: "--config", Problem: "the path is empty"}
	}
	f.state = f.volume()
	c, files, err := Load(f.path, f.set.Changed("config") || f.found)
	if err != nil {
		return Config{}, err
	}
	f.files, f.found = files, f.found || slices.Contains(files, f.path)
	for _, o := range f.over {
		v := o.setting.value(&c)
		if l, ok := v.(*list); ok && o.texts != nil {
			*l.p = nil // the flags replace the file's list
		}
		for _, text := range o.texts {
			if err := v.Set(text); err != nil {
				return Config{}, &Error{Key: "--" + o.setting.flag, Problem: err.Error()}
			}
		}
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Overridden says whether a flag was given that changes what is done, or decided, about
// a parent.
func (f *Flags) Overridden() bool {
	return slices.ContainsFunc(f.over, func(o *override) bool { return o.texts != nil && o.setting.key != "socket" })
}

// Changed says that the files lie in a Kubernetes volume whose content is another one
// since Load. The kubelet swaps all its files at once, by a link, so that none is half
// written. Elsewhere only who edits the files knows when they are complete.
func (f *Flags) Changed() bool { return f.volume() != f.state }

// volume tells one content of a Kubernetes volume from the next; "" is no volume.
func (f *Flags) volume() string {
	var all strings.Builder
	for _, dir := range []string{filepath.Dir(f.path), f.path + ".d"} {
		if link, err := os.Readlink(filepath.Join(dir, "..data")); err == nil {
			all.WriteString(link + "\n")
		}
	}
	return all.String()
}

// Choices maps the name of each flag that takes one of a few words to those
// words, for completion.
func (f *Flags) Choices() map[string][]string {
	choices := make(map[string][]string)
	for _, o := range f.over {
		if words := strings.Split(o.Type(), "|"); len(words) > 1 {
			choices[o.setting.flag] = words
		}
	}
	return choices
}
