package hub

import (
	"slices"
	"testing"

	"tulle/policy/api"
	"tulle/policy/store"
)

// A secret is told to the two cells that it is of, and the ciphertext to the one
// that can open it; in a snapshot as in a delta. It goes with either cell.
func TestSecretsAreTheirPairsAlone(t *testing.T) {
	peer := func(name string) api.Peer {
		return api.Peer{Name: name, Kind: api.KindTulle, Mode: api.ModeWireGuard, EncapsulationKey: "a key"}
	}
	first := api.PairSecret{From: "a", To: "b", Sequence: 1, Ciphertext: []byte("one")}
	x := NewIndex(&store.State{Epoch: "e", Revision: 1, Peers: []api.Peer{peer("a"), peer("b"), peer("c")}, Secrets: []api.PairSecret{first}})
	told := func(list []api.PairSecret) (what []string) {
		for _, s := range list {
			what = append(what, s.From+s.To+":"+string(s.Ciphertext))
		}
		slices.Sort(what)
		return what
	}
	expect := func(what string, got []api.PairSecret, want ...string) {
		t.Helper()
		if !slices.Equal(told(got), want) {
			t.Errorf("%s: %v, want %v", what, told(got), want)
		}
	}
	expect("a's snapshot", x.Snapshot("a").Secrets, "ab:")
	expect("b's snapshot", x.Snapshot("b").Secrets, "ab:one")
	expect("c's snapshot", x.Snapshot("c").Secrets)
	apply := func(d api.Delta) *Change {
		t.Helper()
		d.Revision = x.Revision() + 1
		ch, err := x.Apply(d)
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	ch := apply(api.Delta{SecretsSet: []api.PairSecret{{From: "a", To: "c", Sequence: 1, Ciphertext: []byte("two")}}})
	var concerned []string
	if all := x.EachConcerned(ch, func(cell string) { concerned = append(concerned, cell) }); all || !slices.Equal(concerned, []string{"a", "c"}) {
		t.Errorf("concerned are %v, all %t", concerned, all)
	}
	expect("a's delta", x.Delta("a", []*Change{ch}).SecretsSet, "ac:")
	expect("b's delta", x.Delta("b", []*Change{ch}).SecretsSet)
	expect("c's delta", x.Delta("c", []*Change{ch}).SecretsSet, "ac:two")
	gone := apply(api.Delta{PeersRemoved: []string{"a"}})
	expect("c's delta when a is gone", x.Delta("c", []*Change{ch, gone}).SecretsSet)
	expect("c's snapshot when a is gone", x.Snapshot("c").Secrets)
	if len(x.secrets) != 0 {
		t.Errorf("left are %v", x.secrets)
	}
	apply(api.Delta{SecretsSet: []api.PairSecret{{From: "b", To: "c", Sequence: 1, Ciphertext: []byte("three")}}})
	plain := peer("c")
	plain.EncapsulationKey = ""
	apply(api.Delta{PeersSet: []api.Peer{plain}})
	expect("b's snapshot when c makes none any more", x.Snapshot("b").Secrets)
}
