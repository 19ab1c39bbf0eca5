package dns

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Limits of the cache. What resolvers answer is kept for as long as they say, and
// never longer than a host that follows its resolvers would want.
const (
	maxCached   = 16 << 20 // bytes of answers
	maxPositive = time.Hour
	maxNegative = 5 * time.Minute
)

// cache keeps what the host's resolvers answered. Safe for concurrent use.
type cache struct {
	mu      sync.Mutex // guards what follows
	entries map[cacheKey]cached
	size    int
}

// cacheKey is a question; the bits change what a resolver answers. Without rd it says
// what it has at hand, which may be half of what it would find.
type cacheKey struct {
	name       string // lower case
	qtype      uint16
	do, cd, rd bool
}

type cached struct {
	wire    []byte // the answer, without its id meaning anything
	at      time.Time
	expires time.Time
}

func keyOf(ask *dns.Msg) cacheKey {
	opt := ask.IsEdns0()
	q := ask.Question[0]
	return cacheKey{strings.ToLower(q.Name), q.Qtype, opt != nil && opt.Do(), ask.CheckingDisabled, ask.RecursionDesired}
}

// get is the answer to ask if it still holds, its times to live counted down.
func (c *cache) get(ask *dns.Msg, now time.Time) *dns.Msg {
	c.mu.Lock()
	key := keyOf(ask)
	e, there := c.entries[key]
	if there && !now.Before(e.expires) {
		c.drop(key, e)
		there = false
	}
	c.mu.Unlock()
	if !there {
		return nil
	}
	m := new(dns.Msg)
	if m.Unpack(e.wire) != nil {
		return nil
	}
	age := uint32(max(0, now.Sub(e.at)) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return m
}

// put keeps an answer, if it says for how long.
func (c *cache) put(ask, got *dns.Msg, now time.Time) {
	life := lifetime(got, ask.Question[0].Qtype)
	if life <= 0 {
		return
	}
	wire, err := got.Pack()
	if err != nil || len(wire) > maxCached/16 {
		return
	}
	key := keyOf(ask)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = make(map[cacheKey]cached)
	}
	if old, there := c.entries[key]; there {
		c.drop(key, old)
	}
	e := cached{wire, now, now.Add(life)}
	c.entries[key] = e
	c.size += weight(key, e)
	for other, o := range c.entries { // the map's order is as good as chance
		if c.size <= maxCached {
			break
		}
		if other != key {
			c.drop(other, o)
		}
	}
}

func (c *cache) drop(key cacheKey, e cached) {
	delete(c.entries, key)
	c.size -= weight(key, e)
}

// weight is about what an entry costs.
func weight(key cacheKey, e cached) int { return len(key.name) + len(e.wire) + 200 }

// clear forgets everything: other resolvers may answer otherwise.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries, c.size = nil, 0
}

// lifetime is how long an answer may be kept: for the least time to live in it. One
// without a record of the type that was asked for, be there aliases or not, is
// negative, and the SOA beside it has its say (RFC 2308, 5); without an SOA it is not
// kept, nor is anything else.
func lifetime(m *dns.Msg, qtype uint16) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	life, positive, authority := maxPositive, false, false
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
			}
		}
	}
	for _, rr := range m.Answer {
		positive = positive || m.Rcode == dns.RcodeSuccess && (qtype == dns.TypeANY || rr.Header().Rrtype == qtype)
	}
	if positive {
		return life
	}
	for _, rr := range m.Ns {
		if s, ok := rr.(*dns.SOA); ok {
			authority = true
			life = min(life, maxNegative, time.Duration(s.Minttl)*time.Second)
		}
	}
	if !authority {
		return 0
	}
	return life
}

// rebinds is an address of ours in an answer of the outside: a name out there that
// led in here would be a way around whatever trusts names (DNS rebinding).
func rebinds(m *dns.Msg, overlay, network6 netip.Prefix) (netip.Addr, bool) {
	ours := func(b []byte) (netip.Addr, bool) {
		a, ok := netip.AddrFromSlice(b)
		a = a.Unmap()
		return a, ok && (overlay.IsValid() && overlay.Contains(a) || network6.IsValid() && network6.Contains(a) ||
			a == Address.Addr() || a == Address6.Addr())
	}
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			var found [][]byte
			switch rr := rr.(type) {
			case *dns.A:
				found = [][]byte{rr.A}
			case *dns.AAAA:
				found = [][]byte{rr.AAAA}
			case *dns.SVCB:
				found = hints(rr.Value)
			case *dns.HTTPS:
				found = hints(rr.Value)
			}
			for _, b := range found {
				if a, yes := ours(b); yes {
					return a, true
				}
			}
		}
	}
	return netip.Addr{}, false
}

// hints are the addresses in a service binding (RFC 9460, 7.3).
func hints(values []dns.SVCBKeyValue) (all [][]byte) {
	for _, v := range values {
		switch v := v.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range v.Hint {
				all = append(all, ip)
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range v.Hint {
				all = append(all, ip)
			}
		}
	}
	return all
}
