package top

import "charm.land/bubbles/v2/key"

// keys are what can be pressed; their help is what the screen shows of them.
type keyMap struct {
	up, down, pageUp, pageDown, first, last key.Binding
	details, filter, pause, next, reverse   key.Binding
	stream, zombies, workloads, help, back  key.Binding
	quit                                    key.Binding
}

var keys = keyMap{
	up:        bind("↑ k", "up", "up", "k"),
	down:      bind("↓ j", "down", "down", "j"),
	pageUp:    bind("pgup", "page up", "pgup", "ctrl+b"),
	pageDown:  bind("pgdn", "page down", "pgdown", "ctrl+f"),
	first:     bind("g", "first", "home", "g"),
	last:      bind("G", "last", "end", "G"),
	details:   bind("enter", "details", "enter", "right"),
	filter:    bind("/", "filter", "/", "ctrl+s"),
	pause:     bind("space", "pause", "space"),
	next:      bind("s", "sort", "s", ">", "<"),
	reverse:   bind("r", "reverse", "r"),
	stream:    bind("e", "events", "e", "tab"),
	zombies:   bind("z", "zombie lines", "z"),
	workloads: bind("w", "workloads", "w"),
	help:      bind("?", "help", "?", "f1"),
	back:      bind("esc", "back", "esc", "left", "backspace"),
	quit:      bind("q", "quit", "q", "ctrl+c", "f10"),
}

func bind(shown, what string, pressed ...string) key.Binding {
	return key.NewBinding(key.WithKeys(pressed...), key.WithHelp(shown, what))
}

// direct sorts by the column whose first letter is pressed with shift.
var direct = map[string]column{
	"Z": colZombies, "R": colRate, "O": colOldest, "V": colVerdict, "W": colWho, "C": colCommand, "P": colPID,
}
