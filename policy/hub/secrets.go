package hub

import "tulle/policy/api"

// pair is two cells, the lower name first.
type pair struct{ from, to string }

// secrets are the newest of each pair, by both its ends.
type secrets map[string]map[pair]api.PairSecret

func (s secrets) put(p api.PairSecret) {
	k := pair{p.From, p.To}
	for _, end := range [...]string{p.From, p.To} {
		if s[end] == nil {
			s[end] = make(map[pair]api.PairSecret)
		}
		s[end][k] = p
	}
}

// drop forgets what is of a cell.
func (s secrets) drop(cell string) {
	for k := range s[cell] {
		other := k.from
		if other == cell {
			other = k.to
		}
		delete(s[other], k)
		if len(s[other]) == 0 {
			delete(s, other)
		}
	}
	delete(s, cell)
}

// as is a secret as one of its ends is told of it: the ciphertext is for the other
// than who made it.
func (k pair) as(cell string, p api.PairSecret) api.PairSecret {
	if cell == k.from {
		p.Ciphertext = nil
	}
	return p
}

func (x *Index) secretsOf(cell string) []api.PairSecret {
	var list []api.PairSecret
	for k, p := range x.secrets[cell] {
		list = append(list, k.as(cell, p))
	}
	return list
}

// secrets are those of the cell that came or changed. What goes, goes with a peer.
func (b *deltaBuilder) secrets(changes []*Change, d *api.Delta) {
	touched := make(map[pair]struct{})
	for _, ch := range changes {
		for _, k := range ch.secrets {
			if k.from == b.cell || k.to == b.cell {
				touched[k] = struct{}{}
			}
		}
	}
	for k := range touched {
		if p, there := b.x.secrets[b.cell][k]; there {
			d.SecretsSet = append(d.SecretsSet, k.as(b.cell, p))
		}
	}
}
