package container

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// readA reads the string under the key "a" of an object.
func readA(r io.Reader) (a string, err error) {
	j := newJSONReader(r)
	err = j.object(func(key string) error {
		if key == "a" {
			return j.text(&a)
		}
		return j.skip()
	})
	if err == nil {
		err = j.end()
	}
	return a, err
}

func TestJSON(t *testing.T) {
	long := strings.Repeat("x", 3*maxJSONString)
	for _, tt := range []struct {
		text, want string
		err        error
	}{
		{`{"a":"b"}`, "b", nil},
		{" {\n\t\"b\" : [ 1, -2.5e+7, true, null, {\"a\": \"no\"}, [] ],\r\n \"a\" : \" \\\" \\\\ \\u00e9 \" }\n", " \" \\ é ", nil},
		{`{"b":"` + long + `","a":"b"}`, "b", nil},
		{`{"b":"` + strings.Repeat(`\\`, maxJSONString) + `","a":"b"}`, "b", nil},
		{`{"b":"` + strings.Repeat(`\"`, maxJSONString) + `","a":"b"}`, "b", nil},
		{`{"b":"x` + strings.Repeat(`\u0022`, maxJSONString) + `","a":"b"}`, "b", nil},
		{`{"` + long + `":1,"a":"b"}`, "b", nil},
		{`{"a":"` + long + `"}`, "", errRefused},
		{`{"a":null}`, "", nil},
		{`null`, "", nil},
		{``, "", errGarbled},
		{`{"a":"b"`, "", errGarbled},
		{`{"a":"b"}}`, "", errGarbled},
		{`{"a":"b"}{}`, "", errGarbled},
		{`{"a":7}`, "", errGarbled},
		{`["a"]`, "", errGarbled},
		{`{"a" "b"}`, "", errGarbled},
		{`{"a":"\x"}`, "", errGarbled},
		{`{"a":nil}`, "", errGarbled},
		{`{,"a":"b"}`, "", errGarbled},
		{`{"b":` + strings.Repeat("1", 1<<20) + `,"a":"b"}`, "b", nil},
		{`{"b":` + strings.Repeat("[", maxJSON/2) + strings.Repeat("]", maxJSON/4), "", errGarbled},
		{`{"b":"` + strings.Repeat("x", maxJSON), "", errRefused},
		{strings.Repeat(" ", maxJSON+1), "", errRefused},
	} {
		name := tt.text[:min(len(tt.text), 30)]
		if a, err := readA(strings.NewReader(tt.text)); !errors.Is(err, tt.err) || err == nil && a != tt.want {
			t.Errorf("%s: %.20q, %v, want %.20q, %v", name, a, err, tt.want, tt.err)
		}
		if len(tt.text) > 1<<16 {
			continue
		}
		if a, err := readA(iotest.OneByteReader(strings.NewReader(tt.text))); !errors.Is(err, tt.err) || err == nil && a != tt.want {
			t.Errorf("%s, a byte at a time: %.20q, %v", name, a, err)
		}
	}
	// That the runtime goes away in the middle is no fault of the answer's.
	broken := io.MultiReader(strings.NewReader(`{"a":"b`), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := readA(broken); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errGarbled) || errors.Is(err, errRefused) {
		t.Errorf("cut off: %v", err)
	}
}

// What the standard library reads is read alike.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"a":"b","c":[1,{"d":null}]}`, `{"a":"\ud83d\ude00\\\""}`, ` { "b" : "\u0022" , "a" : "" } `, `{"a":"x","a":"y"}`, `null`, `{"A":"x"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var all map[string]json.RawMessage
		a, err := readA(strings.NewReader(text))
		if json.Unmarshal([]byte(text), &all) != nil || len(text) > maxJSONString { // the limits are another test's
			return
		}
		var want string
		if raw, ok := all["a"]; ok && json.Unmarshal(raw, &want) != nil {
			return
		}
		// A key that is there twice may hold something else the first time.
		if err != nil && strings.Count(text, `"a"`) < 2 && !strings.Contains(text, `\u`) || err == nil && a != want {
			t.Errorf("%q, %v, want %q", a, err, want)
		}
	})
}
