package store_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

const (
	cfPolicies = `{"total_policies":2,"policies":[
		{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","ports":{"start":80,"end":90}}},
		{"source":{"id":"db"},"destination":{"id":"db","protocol":"udp","ports":{"start":53,"end":53}}}]}`
	cfTags = `{"tags":[{"id":"web","tag":"0004","type":"app"},{"id":"db","tag":"0002","type":"app"},{"id":"idle","tag":"0009","type":"app"},{"id":"gorouter","tag":"0005","type":"router"}]}`
)

func fromFoundation(t *testing.T, policies, tags string) (*store.Backup, error) {
	t.Helper()
	var ps api.Policies
	var ts api.Tags
	for text, v := range map[string]any{policies: &ps, tags: &ts} {
		if err := json.Unmarshal([]byte(text), v); err != nil {
			t.Fatal(err)
		}
	}
	return store.FromFoundation(store.Foundation{Policies: ps, Tags: ts}, time.Hour, time.Unix(1_800_000_000, 0))
}

// The tags stay what they are; those between are free, so that they are given.
func TestFromFoundation(t *testing.T) {
	b, err := fromFoundation(t, cfPolicies, cfTags)
	if err != nil {
		t.Fatal(err)
	}
	want := []store.BackupTag{{Tag: 1}, {Tag: 2, App: "db"}, {Tag: 3}, {Tag: 4, App: "web"}, {Tag: 5, App: "gorouter", Type: "router"}}
	if diff := cmp.Diff(want, b.Tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	ps, err := b.Check(policy.MaxTag)
	if err != nil || len(ps) != 2 || ps[0].String() != "web -> db tcp 80-90" {
		t.Errorf("policies %v, %v", ps, err)
	}
	for name, c := range map[string][2]string{
		"an app without tag":      {cfPolicies, `{"tags":[{"id":"db","tag":"0002"}]}`},
		"a tag of two":            {cfPolicies, strings.Replace(cfTags, "0004", "0002", 1)},
		"a tag that is none":      {cfPolicies, strings.Replace(cfTags, "0004", "0000", 1)},
		"a tag that is larger":    {cfPolicies, strings.Replace(cfTags, "0004", "10000", 1)},
		"a tag that is no number": {cfPolicies, strings.Replace(cfTags, "0004", "four", 1)},
		"a policy that is none":   {strings.Replace(cfPolicies, `"start":80`, `"start":0`, 1), cfTags},
	} {
		if b, err := fromFoundation(t, c[0], c[1]); err == nil {
			t.Errorf("%s: taken as %+v", name, b)
		}
	}
}

func TestReadBackupRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                 "EOF",
		"{":                "unexpected EOF",
		"[]":               "cannot unmarshal",
		`{"kind":"other"}`: `its kind is "other"`,
		`{"kind":"` + store.BackupKind + `","version":2}`:             "version 2, this program knows 1",
		`{"kind":"` + store.BackupKind + `"}`:                         "there is no version 0",
		`{"kind":"` + store.BackupKind + `","version":1,"x":1}`:       `unknown field "x"`,
		`{"kind":"` + store.BackupKind + `","version":1} {}`:          "something follows it",
		`{"kind":"` + store.BackupKind + `","version":1,"tags":[{}]}`: "tag 0 is not from 1 to 65535",
	} {
		if _, err := store.ReadBackup(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := store.ReadBackup(strings.NewReader(`{"kind":"` + store.BackupKind + `","version":2}`)); !errors.Is(err, store.ErrNewer) {
		t.Errorf("of a newer version: %v", err)
	}
}

// FuzzReadBackup: a file that an operator names. What is taken is written and
// taken again as the same.
func FuzzReadBackup(f *testing.F) {
	f.Add([]byte(`{"kind":"tulle-policy-server-backup","version":1,"revision":3,"tags":[{"tag":1,"app":"a"}],
		"policies":[{"source":{"id":"a"},"destination":{"id":"a","protocol":"tcp","ports":{"start":1,"end":2}}}]}`))
	f.Add([]byte(`{"kind":"tulle-policy-server-backup","version":1,"cells":[{"name":"x","subnet":"","live":true}],"audit":[{"id":1,"before":null}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := store.ReadBackup(bytes.NewReader(text))
		if err != nil {
			return
		}
		once, err := json.Marshal(b)
		if err != nil {
			t.Fatalf("%v: read from %s", err, text)
		}
		again, err := store.ReadBackup(bytes.NewReader(once))
		if err != nil {
			t.Fatalf("%v: %s", err, once)
		}
		twice, err := json.Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%v\n%s\n%s", err, once, twice)
		}
	})
}
