package storetest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"tulle/policy/api"
	"tulle/policy/store"
)

// encapsulation is some encapsulation key.
func encapsulation(n byte) api.EncapsulationKey {
	return api.EncapsulationKey(bytes.Repeat([]byte{n}, api.EncapsulationKeySize))
}

func offer(from, to string, sequence uint64, key byte) api.PairSecret {
	return api.PairSecret{From: from, To: to, Sequence: sequence, KeyID: encapsulation(key).ID(), FromKey: api.TunnelKey{1}, ToKey: api.TunnelKey{2},
		Ciphertext: bytes.Repeat([]byte{byte(sequence)}, api.CiphertextSize)}
}

// secretTests: what two cells tell each other to have a secret of their own.
var secretTests = map[string]func(*testing.T, Open){
	"an offer is passed on, and that it was taken up": func(t *testing.T, open Open) {
		f := start(t, open, small)
		a, b := inTunnel("192.0.2.1:4789", 51820, 1), inTunnel("192.0.2.2:4789", 51820, 2)
		a.EncapsulationKey, b.EncapsulationKey = encapsulation(1), encapsulation(2)
		f.lease("a", a)
		l := f.lease("b", b)
		if got := f.state().Peers[1].EncapsulationKey; got != encapsulation(2) {
			t.Errorf("published is a key of %d bytes", len(got))
		}
		put := func(cell string, r api.SecretsRequest) []api.PairSecret {
			t.Helper()
			before := f.state().Revision
			f.must(f.PutSecrets(t.Context(), cell, r))
			var told []api.PairSecret
			for _, d := range f.since(before) {
				told = append(told, d.SecretsSet...)
			}
			return told
		}
		one := offer("a", "b", 1, 2)
		same(t, "offered", put("a", api.SecretsRequest{Offers: []api.PairSecret{one}}), []api.PairSecret{one})
		same(t, "state", f.state().Secrets, []api.PairSecret{one})
		for name, r := range map[string]api.SecretsRequest{
			"the same again":      {Offers: []api.PairSecret{one}},
			"for a key of before": {Offers: []api.PairSecret{offer("a", "b", 2, 3)}},
			"to nobody":           {Offers: []api.PairSecret{offer("a", "c", 1, 3)}},
		} {
			same(t, name, put("a", r), []api.PairSecret(nil))
		}
		same(t, "another is taken up", put("b", api.SecretsRequest{Held: []api.PairSecret{{From: "a", Sequence: 2}, {From: "c", Sequence: 1}}}), []api.PairSecret(nil))
		held := one
		held.Held = true
		same(t, "taken up", put("b", api.SecretsRequest{Held: []api.PairSecret{{From: "a", To: "b", Sequence: 1}}}), []api.PairSecret{held})
		same(t, "taken up again", put("b", api.SecretsRequest{Held: []api.PairSecret{{From: "a", Sequence: 1}}}), []api.PairSecret(nil))
		two := offer("a", "b", 7, 2)
		same(t, "the next", put("a", api.SecretsRequest{Offers: []api.PairSecret{two}}), []api.PairSecret{two})
		same(t, "state", f.state().Secrets, []api.PairSecret{two})

		// A new key every hour is news to peers, and no entry of the record.
		record := func() int {
			t.Helper()
			entries, err := f.Audit(t.Context(), 0, 1000)
			f.must(err)
			return len(entries)
		}
		notes := record()
		b.Subnet, b.Generation, b.EncapsulationKey = l.Subnet, l.Generation, encapsulation(4)
		f.lease("b", b)
		if got := f.state().Peers[1].EncapsulationKey; got != encapsulation(4) || record() != notes {
			t.Errorf("the next key is not published, or recorded: %d entries, %d before", record(), notes)
		}
		// Without the key there is nothing to take up, and with the lease it goes.
		b.EncapsulationKey = ""
		f.lease("b", b)
		same(t, "without a key", f.state().Secrets, []api.PairSecret(nil))
		b.EncapsulationKey = encapsulation(5)
		f.lease("b", b)
		three := offer("a", "b", 1, 5)
		same(t, "from the beginning", put("a", api.SecretsRequest{Offers: []api.PairSecret{three}}), []api.PairSecret{three})
		f.must(f.ReleaseLease(t.Context(), "a"))
		same(t, "without a lease", f.state().Secrets, []api.PairSecret(nil))
	},
	"a cell speaks of its own pairs alone, and within bounds": func(t *testing.T, open Open) {
		f := start(t, open, small)
		for i, name := range []string{"a", "b", "c"} {
			r := inTunnel("192.0.2.1:4789", uint16(51820+i), byte(i+1))
			r.Port, r.EncapsulationKey = uint16(4789+i), encapsulation(byte(i+1))
			f.lease(name, r)
		}
		short := offer("b", "c", 1, 3)
		short.Ciphertext = short.Ciphertext[1:]
		claimed := offer("b", "c", 1, 3)
		claimed.Held = true
		many := slices.Repeat([]api.PairSecret{offer("b", "c", 1, 3)}, api.MaxSecrets+1)
		for name, r := range map[string]api.SecretsRequest{
			"another's":            {Offers: []api.PairSecret{offer("a", "c", 1, 3)}},
			"the wrong way":        {Offers: []api.PairSecret{offer("b", "a", 1, 1)}},
			"to itself":            {Offers: []api.PairSecret{offer("b", "b", 1, 2)}},
			"no ciphertext":        {Offers: []api.PairSecret{short}},
			"sequence 0":           {Offers: []api.PairSecret{offer("b", "c", 0, 3)}},
			"sequence too high":    {Offers: []api.PairSecret{offer("b", "c", 1<<63, 3)}},
			"already held":         {Offers: []api.PairSecret{claimed}},
			"held for another":     {Held: []api.PairSecret{{From: "a", To: "c", Sequence: 1}}},
			"too many":             {Offers: many},
			"too many held":        {Held: many},
			"one of them is wrong": {Offers: []api.PairSecret{offer("b", "c", 1, 3), offer("a", "c", 1, 3)}},
		} {
			if err := f.PutSecrets(t.Context(), "b", r); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", name, err, store.ErrConflict)
			}
		}
		if err := f.PutSecrets(t.Context(), "d", api.SecretsRequest{}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a cell without a lease: %v, want %v", err, store.ErrNotFound)
		}
		same(t, "state", f.state().Secrets, []api.PairSecret(nil))
		for name, change := range map[string]func(*api.LeaseRequest){
			"a short key":    func(r *api.LeaseRequest) { r.EncapsulationKey = "short" },
			"a key in plain": func(r *api.LeaseRequest) { r.Mode = api.ModeVXLAN },
		} {
			r := inTunnel("192.0.2.9:4789", 51820, 9)
			r.EncapsulationKey = encapsulation(9)
			change(&r)
			if _, err := f.Lease(t.Context(), "d", r); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v, want %v", name, err, store.ErrConflict)
			}
		}
	},
}
