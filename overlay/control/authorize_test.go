package control

import (
	"testing"

	"tulle/policy"
	"tulle/policy/api"
)

func byName(org, space, name string) api.AppRef {
	return api.AppRef{Org: org, Space: space, Name: name}
}
func byGUID(id policy.AppID) api.AppRef { return api.AppRef{GUID: id} }

func TestAuthorizer(t *testing.T) {
	const self, user, other = 500, 1000, 1001
	grants := []Grant{
		{UID: user, Orgs: []string{"acme"}, Spaces: []string{"dev", "test"}},
		{UID: user, Apps: []string{"guid-1"}},
		{UID: 2000, Orgs: []string{"*"}},
		{UID: 2001, Apps: []string{"*"}, Orgs: []string{"acme"}},
		{UID: 2002},
		{UID: 2003, Apps: []string{"guid-3"}, Spaces: []string{"s1"}, Orgs: []string{"*"}},
	}
	a := NewAuthorizer(self, grants)
	cases := []struct {
		name string
		uid  uint32
		ref  api.AppRef
		ok   bool
	}{
		{"root, any", 0, byName("x", "y", "z"), true},
		{"root, any GUID", 0, byGUID("g"), true},
		{"the daemon's own user, any", self, byGUID("g"), true},
		{"nobody said anything", other, byName("acme", "dev", "web"), false},
		{"org and space", user, byName("acme", "dev", "web"), true},
		{"space of another org", user, byName("evil", "dev", "web"), false},
		{"another space", user, byName("acme", "prod", "web"), false},
		{"no space said", user, byName("acme", "", "web"), false},
		{"its GUID", user, byGUID("guid-1"), true},
		{"another GUID", user, byGUID("guid-2"), false},
		{"another GUID, claiming to be in the space", user, api.AppRef{GUID: "guid-2", Org: "acme", Space: "dev"}, false},
		{"its GUID, in a space that nobody granted", user, api.AppRef{GUID: "guid-1", Space: "dev"}, false},
		{"its GUID, in an org that nobody granted", user, api.AppRef{GUID: "guid-1", Org: "acme"}, false},
		{"its GUID in its space", 2003, api.AppRef{GUID: "guid-3", Space: "s1", Org: "o"}, true},
		{"its GUID in another space", 2003, api.AppRef{GUID: "guid-3", Space: "s2", Org: "o"}, false},
		{"its GUID in no space", 2003, byGUID("guid-3"), true},
		{"any org, by name", 2000, byName("x", "y", "z"), true},
		{"any org, by GUID", 2000, byGUID("g"), false},
		{"any app of an org, by name", 2001, byName("acme", "y", "z"), true},
		{"any app of an org, of another", 2001, byName("evil", "y", "z"), false},
		{"any app of an org, by GUID", 2001, byGUID("g"), false},
		{"an empty grant", 2002, byName("acme", "dev", "web"), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := a.Attach(Peer{UID: c.uid}, c.ref)
			if (err == nil) != c.ok {
				t.Errorf("got %v, allowed is %t", err, c.ok)
			}
			if err != nil && codeOf(err) != CodeNotAllowed {
				t.Errorf("code %q", codeOf(err))
			}
		})
	}
	if a.Known(Peer{UID: other}) == nil {
		t.Error("a uid without a grant is known")
	}
	if err := a.Detach(Peer{UID: user}, user, byGUID("gone")); err != nil {
		t.Errorf("its own container: %v", err)
	}
	if a.Detach(Peer{UID: user}, 0, byGUID("gone")) == nil {
		t.Error("detached root's container")
	}
	if a.Detach(Peer{UID: other}, other, byGUID("g")) == nil {
		t.Error("a uid whose grant is gone detached")
	}
	for uid, may := range map[uint32]bool{0: true, self: true, user: false, other: false} {
		if err := a.Operate(Peer{UID: uid}); (err == nil) != may {
			t.Errorf("uid %d as operator: %v", uid, err)
		}
	}
	// A grant of root's own takes the default's place.
	if NewAuthorizer(self, []Grant{{UID: 0, Apps: []string{"db"}}}).Attach(Peer{}, byName("", "", "web")) == nil {
		t.Error("root held to db attached web")
	}
}

// Keys and sockets of containers are given to root and the daemon's own user alone,
// whatever else a uid may do, and whatever it asks for. So are the cell's keys.
func TestKeysAreForTheDaemonsUserAlone(t *testing.T) {
	const self, user, other = 500, 1000, 1001
	s := &Server{Authorizer: NewAuthorizer(self, []Grant{{UID: user, Apps: []string{"*"}, Orgs: []string{"*"}}})}
	for uid, may := range map[uint32]bool{0: true, self: true, user: false, other: false} {
		want := CodeNotAllowed
		if may {
			want = CodeUnavailable // the next thing that is asked: this daemon has no TLS
		}
		for _, r := range []any{TLSList{}, TLSSockets{}, TLSCertificate{}, TLSCaller{}} {
			if _, err := s.handleTLS(t.Context(), Peer{UID: uid}, r); codeOf(err) != want {
				t.Errorf("uid %d, %T: %v", uid, r, err)
			}
		}
		if err := s.Authorizer.Rotate(Peer{UID: uid}); (err == nil) != may {
			t.Errorf("uid %d changes the cell's keys: %v", uid, err)
		}
	}
}
