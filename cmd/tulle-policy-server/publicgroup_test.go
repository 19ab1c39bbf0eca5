package main

import (
	"path/filepath"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

func TestFirstGroup(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "tulle.db"), sqlite.Options{
		Lease: store.LeaseConfig{Network: defaults().Network, Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		if err := firstGroup(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	g, err := s.SecurityGroup(t.Context(), policy.PublicGroup().GUID)
	if err != nil || !g.RunningDefault || len(g.Rules) != 2 { // one a family
		t.Fatalf("group %+v, %v", g, err)
	}
	if err := s.DeleteSecurityGroup(t.Context(), g.GUID); err != nil {
		t.Fatal(err)
	}
	if err := firstGroup(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if all, _, err := s.SecurityGroups(t.Context(), store.GroupFilter{All: true}); err != nil || len(all) != 0 {
		t.Errorf("what was removed is back: %+v, %v", all, err)
	}
}
