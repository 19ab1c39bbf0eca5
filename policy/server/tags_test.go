package server_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/pgtest"
	"tulle/policy/store/sqlite"
)

// tagsOf reads the tags of a server of the site.
func (s *site) tagsOf(t *testing.T, address string) map[string]string {
	t.Helper()
	var list api.Tags
	if err := json.Unmarshal([]byte(s.must(t, "GET", address, "/networking/v1/external/tags", "")), &list); err != nil {
		t.Fatal(err)
	}
	tags := map[string]string{}
	for _, tag := range list.Tags {
		tags[string(tag.ID)] = tag.Tag
	}
	return tags
}

// TestTagRestsUntilEveryCellKnows releases the tags of two apps while one of two
// cells does not take the change in: they are given to nobody, on either server,
// until it has, or its lease has ended.
func TestTagRestsUntilEveryCellKnows(t *testing.T) {
	database := pgtest.Start(t).Database()
	s := newSite(t, database)
	one, two := s.serve(t), s.serve(t)
	a, b := s.cell(t, "a", one.Internal, 1, "web"), s.cell(t, "b", two.Internal, 2, "db")
	s.must(t, "POST", one.External, policies, body("web db tcp 80 80"))
	a.has(1)
	b.has(1)
	held := b.stall()
	s.must(t, "POST", two.External, remove, body("web db tcp 80 80"))
	a.has(0)
	s.must(t, "POST", one.External, policies, body("x y tcp 1 1"))
	s.must(t, "POST", two.External, policies, body("y z tcp 1 1"))
	if got := s.tagsOf(t, one.External); got["x"] != "0003" || got["y"] != "0004" || got["z"] != "0005" {
		t.Errorf("tags %v; want 3, 4 and 5 while 1 and 2 rest", got)
	}
	held()
	b.has(0)
	again := func(app string) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; {
			s.must(t, "POST", one.External, policies, body(app+" "+app+" tcp 1 1"))
			got := s.tagsOf(t, two.External)[app]
			if got == "0001" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s has tag %s long after every cell knows that 0001 is free", app, got)
			}
			s.must(t, "POST", one.External, remove, body(app+" "+app+" tcp 1 1"))
		}
	}
	again("again")
}

// TestTagsRunOut: the answer names the limit and why, and the log warns while
// there is time.
func TestTagsRunOut(t *testing.T) {
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "few.db"), sqlite.Options{MaxTag: 10, Lease: store.LeaseConfig{
		Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	var log journal
	w := start(t, func(o *server.Options) {
		o.Store = db
		o.InternalOptions.Refresh = time.Millisecond
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	var list []string
	for n := range 8 {
		list = append(list, fmt.Sprintf("app-%d app-%d tcp 1 1", n, n))
	}
	w.expect("seven", w.call("POST", policies, w.admin, body(list[:7]...)), 200, "{}")
	w.expect("the eighth", w.call("POST", policies, w.admin, body(list[7])), 200, "{}")
	for deadline := time.Now().Add(30 * time.Second); !log.says("tags run out"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody is warned at 80 %")
		}
	}
	log.has(t, "in_use=8 resting=0 limit=10")
	w.expect("three more", w.call("POST", policies, w.admin, body("a b tcp 1 1", "a c tcp 1 1")), 500,
		`{"error": "database create failed: no tag is free: of the 10 that a VXLAN group policy id can be, 10 are in use and 0 rest until every cell knows of their release"}`)
	w.expect("nothing of it is stored", w.call("GET", policies+"?id=a", w.admin, ""), 200, `{"total_policies":0,"policies":[]}`)
}

func (j *journal) says(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.b.String(), text)
}
