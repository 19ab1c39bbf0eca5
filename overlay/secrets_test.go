package overlay

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/wireguard"
	"tulle/policy/api"
)

// said is a log that a test reads.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), what)
}

// quantum starts a cell with that setting.
func (p *plane) quantum(name, underlay string, mode PostQuantum) (*cell, *said) {
	p.Helper()
	log := &said{}
	return p.cell(name, underlay, func(c *Config) {
		c.PostQuantum, c.Log = mode, slog.New(slog.NewTextHandler(log, nil))
	}), log
}

// preshared is the key of the session with a peer; ok is false without a session.
func (c *cell) preshared(peer string) (k wireguard.PresharedKey, ok bool) {
	s, ok := c.daemon.life.Load().tunnel.Session(peer)
	return s.PSK, ok
}

// stored are the keys that a cell has with a peer.
func (c *cell) stored(peer string) []wireguard.PresharedKey {
	s := c.daemon.secrets
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pairs[peer].Keys
}

// anHour passes for the cell's encapsulation key.
func (c *cell) anHour() {
	s := c.daemon.secrets
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made -= secretLife
}

// onlyKey is the one that both have, and it is not that of before.
func onlyKey(t *testing.T, one, two *cell, before wireguard.PresharedKey) (k wireguard.PresharedKey) {
	t.Helper()
	defer func() {
		if t.Failed() {
			for _, c := range []*cell{one, two} {
				s := c.daemon.secrets
				s.mu.Lock()
				for peer, pair := range s.pairs {
					t.Logf("%s has with %s: secret %d, %d keys, settled %t; to tell: %d offers, %d taken up; stuck %v", c.name, peer, pair.Sequence, len(pair.Keys), pair.Settled, len(s.offers), len(s.held), s.stuck)
				}
				s.mu.Unlock()
			}
		}
	}()
	eventually(t, "both have one new key and no other", func() bool {
		a, b := one.stored(two.name), two.stored(one.name)
		if len(a) != 1 || len(b) > 2 || len(b) == 0 || a[0] != b[0] || a[0] == before || a[0] == (wireguard.PresharedKey{}) {
			return false
		}
		k = a[0]
		return true
	})
	return k
}

// Two cells come to a secret, mix it into their handshakes, and change it every hour
// without a loss; it is on the disk, so that a restart does not wait for another.
func TestPostQuantumSecret(t *testing.T) {
	p := newPlane(t)
	one, log := p.quantum("one", "127.0.0.1", PostQuantumOn)
	two, _ := p.quantum("two", "127.0.0.2", PostQuantumRequired)
	p.allow(tcp("web", "db", 5432), udpPolicy("db", "web", 5353))
	web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
	s := web.streams(db)
	key := onlyKey(t, one, two, wireguard.PresharedKey{})
	for _, c := range [][2]*cell{{one, two}, {two, one}} {
		eventually(t, "the session has the key", func() bool { k, there := c[0].preshared(c[1].name); return there && k == key })
	}
	for range 2 {
		two.anHour()
		next := onlyKey(t, one, two, key)
		for _, c := range [][2]*cell{{one, two}, {two, one}} {
			eventually(t, "the session has the next key, and the former is gone", func() bool {
				k, there := c[0].preshared(c[1].name)
				return there && k == next && len(c[0].stored(c[1].name)) == 1
			})
		}
		key = next
	}
	s.end()
	if log.count("NO POST-QUANTUM SECRET") > 0 {
		t.Error("the log says that the peer makes none")
	}
	// What the server has is no key of theirs, and no file of it has one.
	for _, name := range []string{"tulle.db", "tulle.db-wal"} {
		b, err := os.ReadFile(filepath.Join(p.dir, name))
		if err == nil && bytes.Contains(b, key[:]) {
			t.Errorf("%s has the key", name)
		}
	}
	if st := one.status(); st.PostQuantum != "on" || len(st.NoSecret) != 0 {
		t.Errorf("status: %q, %v", st.PostQuantum, st.NoSecret)
	}

	two.shut()
	secrets, err := wireguard.LoadSecrets(two.cfg.StateDir)
	if err != nil || len(secrets["one"].Keys) != 1 || secrets["one"].Keys[0] != key {
		t.Errorf("on the disk is another key, or %v", err)
	}
	two.run()
	db2 := two.attach("db-2", "db", control.LifelineNone)
	db2.listen(5432)
	web.reaches(db2, 5432)
	if k, there := one.preshared("two"); !there || k == (wireguard.PresharedKey{}) {
		t.Errorf("after the restart the session is without (there: %t)", there)
	}
}

// A peer without a secret is named loudly. Where one is required nothing passes.
func TestPostQuantumWithOneSideOnly(t *testing.T) {
	for _, mode := range []PostQuantum{PostQuantumOn, PostQuantumRequired} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPlane(t)
			one, log := p.quantum("one", "127.0.0.1", mode)
			two, _ := p.quantum("two", "127.0.0.2", PostQuantumOff)
			p.allow(tcp("web", "db", 5432))
			web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
			db.listen(5432)
			one.untilStatus("says who has none", func(s control.Status) bool {
				return len(s.NoSecret) == 1 && s.NoSecret[0] == "two" && s.PostQuantum == string(mode)
			})
			if log.count("NO POST-QUANTUM SECRET") != 1 {
				t.Errorf("said %d times", log.count("NO POST-QUANTUM SECRET"))
			}
			if mode == PostQuantumOn {
				web.reaches(db, 5432)
				if k, there := one.preshared("two"); !there || k != (wireguard.PresharedKey{}) {
					t.Errorf("a session with a key that the peer does not have (there: %t)", there)
				}
				return
			}
			if c, err := web.dial(db, 5432, time.Second); err == nil {
				_ = c.Close()
				t.Error("a connection without the secret that is required")
			}
			if _, there := one.preshared("two"); there {
				t.Error("a session without the secret that is required")
			}
		})
	}
}

// Nor does anything pass in the clear, with a peer that has no tunnel at all.
func TestPostQuantumRequiredIsNeverPlain(t *testing.T) {
	p := newPlane(t)
	one, _ := p.quantum("one", "127.0.0.1", PostQuantumRequired)
	two := p.cell("two", "127.0.0.2", func(c *Config) { c.Mode = api.ModeVXLAN })
	p.allow(tcp("web", "db", 5432), tcp("db", "web", 80))
	web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.listen(80)
	one.untilStatus("says who has none", func(s control.Status) bool { return slices.Contains(s.NoSecret, "two") })
	if c, err := web.dial(db, 5432, time.Second); err == nil {
		_ = c.Close()
		t.Error("a connection in the clear where a secret is required")
	}
	if c, err := db.dial(web, 80, time.Second); err == nil {
		_ = c.Close()
		t.Error("a connection in the clear to where a secret is required")
	}
}

// A peer that has it no more is not gone along with in silence, and not at all where
// it is required.
func TestPostQuantumIsNotTakenBackInSilence(t *testing.T) {
	p := newPlane(t)
	one, log := p.quantum("one", "127.0.0.1", PostQuantumRequired)
	two, _ := p.quantum("two", "127.0.0.2", PostQuantumOn)
	p.allow(tcp("web", "db", 5432))
	web, db := one.attach("web-1", "web", control.LifelineNone), two.attach("db-1", "db", control.LifelineNone)
	db.listen(5432)
	web.reaches(db, 5432)
	two.shut()
	two.cfg.PostQuantum = PostQuantumOff
	two.run()
	one.untilStatus("says who has none", func(s control.Status) bool { return len(s.NoSecret) == 1 })
	if log.count("had_one=true refused=true") != 1 {
		t.Error("the log does not say that the peer had one")
	}
	if c, err := web.dial(db, 5432, time.Second); err == nil {
		_ = c.Close()
		t.Error("a connection without the secret that is required")
	}
}

// exchange is two cells and a server, without the rest: what any of them knows is
// told to another only when the test says so.
type exchange struct {
	*testing.T
	dirs  [2]string
	ends  [2]*secrets // "a" and "b"
	now   time.Duration
	key   api.EncapsulationKey // b's, as published
	row   api.PairSecret       // the server's
	modes [2]PostQuantum
}

func (x *exchange) open(i int) {
	x.Helper()
	s, err := openSecrets(x.modes[i], string(rune('a'+i)), x.dirs[i], slog.New(slog.DiscardHandler), func() time.Duration { return x.now })
	if err != nil {
		x.Fatal(err)
	}
	x.ends[i] = s
}

func (x *exchange) peer(i int) api.Peer {
	p := api.Peer{Name: string(rune('a' + i)), Mode: api.ModeWireGuard, Key: api.TunnelKey{byte(1 + i)}, EncapsulationKey: "a's"}
	if i == 1 {
		p.EncapsulationKey = x.key
	}
	return p
}

// list is what one end has for the tunnel to the other.
func (x *exchange) list(i int) []wireguard.PresharedKey {
	keys, ok := x.ends[i].of(x.peer(1 - i))
	if ok && len(keys) == 0 {
		return []wireguard.PresharedKey{{}}
	}
	return keys
}

// handshake is begun by one end; the other answers with its first key.
func (x *exchange) handshake(i int) (with wireguard.PresharedKey, ok bool) {
	answer := x.list(1 - i)
	if len(answer) == 0 || !slices.Contains(x.list(i), answer[0]) {
		return with, false
	}
	return answer[0], true
}

// begins a session from one end, of which both take notice.
func (x *exchange) begins(i int) {
	if k, ok := x.handshake(i); ok {
		x.ends[i].used(x.peer(1-i).Name, wireguard.Session{PSK: k, Begun: true})
		x.ends[1-i].used(x.peer(i).Name, wireguard.Session{PSK: k})
	}
}

// tells the server what is due, which takes it in as the store does.
func (x *exchange) tells(i int) {
	req, any := x.ends[i].due()
	for _, o := range req.Offers {
		if o.KeyID == x.key.ID() && o.Sequence > x.row.Sequence {
			x.row = o
		}
	}
	for _, o := range req.Held {
		if o.Sequence == x.row.Sequence {
			x.row.Held = true
		}
	}
	if any {
		x.ends[i].done(req)
	}
}

func (x *exchange) told(i int) {
	if x.row.Sequence > 0 {
		x.ends[i].take(x.row, x.peer(1-i), x.own(i))
	}
}

func (x *exchange) own(i int) ends { return ends{own: api.TunnelKey{byte(1 + i)}} }

func (x *exchange) step(r *rand.Rand) (what string) {
	switch n := r.IntN(12); n {
	case 0: // b's key is published
		x.key = x.ends[1].published()
		return "b's key is published"
	case 1, 2:
		x.ends[0].offer(x.peer(1), x.own(0))
		return "a looks what to offer"
	case 3, 4, 5, 6:
		x.tells(n % 2)
		return fmt.Sprintf("%d tells", n%2)
	case 7, 8:
		x.told(n % 2)
		return fmt.Sprintf("%d is told", n%2)
	case 9:
		i := r.IntN(2)
		x.begins(i)
		return fmt.Sprintf("%d begins a session", i)
	case 10:
		i := r.IntN(2)
		if r.IntN(4) > 0 {
			return "nothing"
		}
		x.open(i)
		if i == 1 { // its first word to the server is its key
			x.key = x.ends[1].published()
		}
		x.told(i) // the snapshot
		if i == 0 {
			x.ends[0].missing([]api.PairSecret{x.row})
		}
		return fmt.Sprintf("%d starts anew", i)
	default:
		if x.ends[0].anyStuck() { // whose key a has heard of, that one can be heard
			x.tells(1)
			x.told(0)
		}
		x.now += time.Duration(r.Int64N(int64(20 * time.Minute)))
		if _, err := x.ends[1].renew(); err != nil {
			x.Fatal(err)
		}
		return "time passes"
	}
}

// Whatever the order in which the ends and the server hear of each other, and
// whoever is started anew: once there is a key, a handshake that either end begins
// is one that both can make, and with time the newest key is the only one.
func TestPairSecretsAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		x := &exchange{T: t, dirs: [2]string{t.TempDir(), t.TempDir()}, modes: [2]PostQuantum{PostQuantumOn, PostQuantumOn}}
		x.open(0)
		x.open(1)
		x.key = x.ends[1].published()
		var did []string
		for range 300 {
			did = append(did, x.step(r))
			for i := range 2 {
				if _, ok := x.handshake(i); !ok {
					t.Fatalf("seed %d: end %d begins a handshake that fails: a has %d keys, b %d; after %s", seed, i, len(x.list(0)), len(x.list(1)), strings.Join(did[max(0, len(did)-12):], ", "))
				}
			}
		}
		for range 2 {
			x.key = x.ends[1].published()
			x.ends[0].offer(x.peer(1), x.own(0))
			x.tells(0)
			x.told(1)
			x.tells(1)
			x.told(0)
			x.begins(1)
			x.now += offerPatience
		}
		a, b := x.list(0), x.list(1)
		if len(a) != 1 || !slices.Equal(a, b) || a[0] == (wireguard.PresharedKey{}) || x.row.Sequence < 2 {
			t.Errorf("seed %d, %d secrets: at the end a has %d keys, b %d, the same %t", seed, x.row.Sequence, len(a), len(b), slices.Equal(a, b))
		}
	}
}

// Where a secret is required, what a cell had begun without one is no way around it.
func TestRequiredAfterOnHasNoEmptyKey(t *testing.T) {
	none, key := wireguard.PresharedKey{}, wireguard.PresharedKey{1}
	for what, s := range map[string]wireguard.Secret{
		"offered":  {Sequence: 1, KeyID: "a", Keys: []wireguard.PresharedKey{none, key}},
		"taken up": {Sequence: 1, KeyID: "a", Keys: []wireguard.PresharedKey{key, none}, Settled: true},
	} {
		for mode, want := range map[PostQuantum][]wireguard.PresharedKey{PostQuantumOn: s.Keys, PostQuantumRequired: {key}} {
			dir := t.TempDir()
			if err := wireguard.SaveSecrets(dir, map[string]wireguard.Secret{"two": s}); err != nil {
				t.Fatal(err)
			}
			opened, err := openSecrets(mode, "one", dir, slog.New(slog.DiscardHandler), func() time.Duration { return 0 })
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := opened.of(api.Peer{Name: "two", EncapsulationKey: "its"}); !ok || !slices.Equal(got, want) {
				t.Errorf("%s, %s: %d keys, %t, want %d", what, mode, len(got), ok, len(want))
			}
		}
	}
}
