package config

import "cmp"

// Doc describes a key of the file to who writes about it.
type Doc struct {
	Key     string // with dots: limits.perWorkload.kills
	Flag    string // without dashes; "" has no flag
	Type    string // "N", "duration", "auto|ebpf|proc"
	Default string // "" is empty, none or, in a rule, inherited or anything
}

// Docs describes every key but rules, in the order of help.
func Docs() []Doc {
	c := Default()
	docs := make([]Doc, 0, len(settings))
	for _, s := range settings {
		v := s.value(&c)
		docs = append(docs, Doc{Key: s.key, Flag: s.flag, Type: v.Type(), Default: v.String()})
	}
	return docs
}

// RuleDocs describes every key of a rule.
func RuleDocs() []Doc {
	docs := make([]Doc, 0, len(ruleSettings))
	for _, s := range ruleSettings {
		v := s.value(new(Rule))
		docs = append(docs, Doc{Key: s.key, Type: cmp.Or(v.Type(), v.want())})
	}
	return docs
}
