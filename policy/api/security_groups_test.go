package api

import (
	"encoding/json"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
)

// FuzzSecurityGroup: a group comes from an admin, and what is accepted goes to
// agents. It reads back as itself in both shapes, and its rules are in the form.
func FuzzSecurityGroup(f *testing.F) {
	for _, body := range []string{
		`{"name":"a","rules":[{"protocol":"tcp","destination":"10.0.0.0/8","ports":"1,2-3","log":true}],"running_space_guids":["s"]}`,
		`{"name":"a","rules":[{"protocol":"icmp","destination":"10.0.0.1-10.0.0.2,10.1.0.0/16","type":-1,"code":255}]}`,
		`{"guid":"g","name":"\u2028\ud83d\ude00","rules":[{"protocol":"all","destination":"0.0.0.0/0","description":"\"\\\/\b\f\u0000"}]}`,
		`{"name":"a","rules":null}`, `{"name":"a","rules":[null]}`, `[]`, `{`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		g, err := DecodeSecurityGroup("g", body)
		if err != nil {
			return
		}
		text, err := json.Marshal(NewSecurityGroup(g))
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeSecurityGroup("g", text)
		if diff := cmp.Diff(g, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("%s read again: %v\n%s", text, err, diff)
		}
		page, err := NewGroupsPage([]policy.SecurityGroup{g}, 0)
		if err != nil {
			t.Fatal(err)
		}
		literal, err := json.Marshal(page.Groups[0].Rules)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := strconv.Unquote(string(literal))
		if err != nil {
			t.Fatalf("an agent cannot unquote %s: %v", literal, err)
		}
		var back []policy.SecurityRule
		if err := json.Unmarshal([]byte(rules), &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(g.Rules, back, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("polled rules (-want +got):\n%s", diff)
		}
		for _, r := range back {
			if err := r.Check(); err != nil {
				t.Errorf("accepted: %v", err)
			}
		}
	})
}
