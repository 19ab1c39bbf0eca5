package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	headerLen = 12
	// maxQuery is far above any honest question and bounds what a container
	// can make the decoder do.
	maxQuery = 4096
	// maxUDP is the largest answer that passes every path unfragmented, and
	// what we say to resolvers that we take (DNS flag day 2020).
	maxUDP = 1232
)

// immediate answers what needs no waiting: internal names, what the cache holds,
// and what is no honest question. Otherwise ask is to be put to the outside; a
// nil ask without an answer is dropped.
func (r *Resolver) immediate(q query) (answer []byte, ask *dns.Msg) {
	if answer := r.quick(q.from, q.message, q.limit); answer != nil {
		r.counters.internal.Add(1)
		return answer, nil
	}
	return r.byRecords(q)
}

// byRecords is immediate for all that quick does not answer.
func (r *Resolver) byRecords(q query) (answer []byte, ask *dns.Msg) {
	ask, rcode, err := decode(q.message)
	switch {
	case err != nil:
		r.malformed(q.from, err)
		return nil, nil
	case rcode == dns.RcodeFormatError:
		r.malformed(q.from, errNoQuestion)
		return pack(refusal(ask, rcode, nil), ask, q.limit), nil
	case rcode != dns.RcodeSuccess:
		r.counters.refused.Add(1)
		return pack(refusal(ask, rcode, nil), ask, q.limit), nil
	}
	if m := r.internal(q.from, ask); m != nil {
		r.counters.internal.Add(1)
		return pack(m, ask, q.limit), nil
	}
	now := r.now()
	if last := r.looked.Load(); now.UnixNano()-last > int64(time.Second) && r.looked.CompareAndSwap(last, now.UnixNano()) {
		r.upstreams.list() // which empties the cache where others are to be asked by now
	}
	if got := r.cache.get(ask, now); got != nil {
		r.counters.cached.Add(1)
		return pack(restore(got, ask), ask, q.limit), nil
	}
	return nil, ask
}

// outside asks the host's resolvers; nil where the asker has given up by now.
func (r *Resolver) outside(q query, ask *dns.Msg) []byte {
	if !time.Now().Before(q.deadline) {
		r.counters.late.Add(1)
		return nil
	}
	got, err := r.exchange(ask, q.deadline)
	if err != nil {
		r.counters.failed.Add(1)
		return pack(refusal(ask, dns.RcodeServerFailure, &dns.EDNS0_EDE{
			InfoCode: dns.ExtendedErrorCodeNetworkError, ExtraText: err.Error(),
		}), ask, q.limit)
	}
	if a, yes := rebinds(got, r.overlay, r.network6); yes {
		r.counters.rebinding.Add(1)
		return pack(refusal(ask, dns.RcodeNameError, &dns.EDNS0_EDE{
			InfoCode: dns.ExtendedErrorCodeFiltered, ExtraText: "a name of the outside led to " + a.String() + ", which is a container's",
		}), ask, q.limit)
	}
	r.counters.answered.Add(1)
	r.cache.put(ask, got, r.now())
	return pack(restore(got, ask), ask, q.limit)
}

var (
	errNoQuery    = errors.New("not a query")
	errNoQuestion = errors.New("not one readable question")
	errTooLong    = errors.New("a query that is longer than any honest one")
)

// tellEvery is how often malformed queries are worth a line of the log, whoever
// sends them and however many.
const tellEvery = 10 * time.Second

// malformed counts what a container sent that is no query, and says so now and then.
func (r *Resolver) malformed(from netip.Addr, why error) {
	count := r.counters.malformed.Add(1)
	now := r.now().UnixNano()
	last := r.told.Load()
	if last != 0 && now-last < int64(tellEvery) || !r.told.CompareAndSwap(last, now) {
		return
	}
	r.log.Warn("container sends the resolver what is no question", "container", from, "error", why, "malformed_so_far", count)
}

// decode reads a container's datagram. An error means that there is nothing to
// answer: it is too short for an id, or itself an answer (two forwarders must
// not be made to answer each other). Otherwise ask is what can be answered, and
// rcode, unless 0, what it is to be answered with.
func decode(b []byte) (ask *dns.Msg, rcode int, err error) {
	if len(b) < headerLen || b[2]&0x80 != 0 {
		return nil, 0, errNoQuery
	}
	ask = new(dns.Msg)
	if len(b) > maxQuery || ask.Unpack(b) != nil || len(ask.Question) != 1 {
		bare := new(dns.Msg)
		bare.Id = binary.BigEndian.Uint16(b)
		bare.Opcode = int(b[2]>>3) & 0xF
		bare.RecursionDesired = b[2]&1 != 0
		return bare, dns.RcodeFormatError, nil
	}
	question := ask.Question[0]
	switch {
	case ask.Opcode != dns.OpcodeQuery:
		return ask, dns.RcodeNotImplemented, nil
	case question.Qclass != dns.ClassINET, question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		return ask, dns.RcodeRefused, nil
	case ask.IsEdns0() != nil && ask.IsEdns0().Version() != 0:
		return ask, dns.RcodeBadVers, nil
	}
	return ask, dns.RcodeSuccess, nil
}

// refusal answers ask without any resolver. why is told to those who can read
// it (RFC 8914).
func refusal(ask *dns.Msg, rcode int, why *dns.EDNS0_EDE) *dns.Msg {
	m := new(dns.Msg)
	m.Id, m.Response, m.Opcode = ask.Id, true, ask.Opcode
	m.RecursionDesired, m.CheckingDisabled = ask.RecursionDesired, ask.CheckingDisabled
	m.RecursionAvailable = true
	m.Rcode = rcode
	m.Question = ask.Question
	if opt := ask.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
		if why != nil {
			own := m.IsEdns0()
			own.Option = append(own.Option, why)
		}
	}
	return m
}

// restore makes a resolver's answer the answer to ask: its id, the question as
// it was spelled, and an OPT record only if ask had one (RFC 6891, 7). Of the
// resolver's OPT only the extended error concerns the asker.
func restore(got, ask *dns.Msg) *dns.Msg {
	theirs := got.IsEdns0()
	got.Extra = withoutOPT(got.Extra)
	got.Id = ask.Id
	got.Question = ask.Question
	opt := ask.IsEdns0()
	if opt == nil {
		// An extended code cannot be said without OPT.
		if got.Rcode > 0xF {
			got.Rcode = dns.RcodeServerFailure
		}
		return got
	}
	got.SetEdns0(maxUDP, opt.Do())
	if theirs != nil {
		own := got.IsEdns0()
		for _, o := range theirs.Option {
			if _, ok := o.(*dns.EDNS0_EDE); ok {
				own.Option = append(own.Option, o)
			}
		}
	}
	return got
}

func withoutOPT(rrs []dns.RR) []dns.RR {
	kept := rrs[:0]
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}

// pack cuts m to what the asker takes and encodes it; nil if that cannot be
// done, which only a record that decodes but does not encode can cause. limit is
// that of a connection, 0 of a datagram.
func pack(m, ask *dns.Msg, limit int) []byte {
	size := limit
	if size == 0 {
		size = dns.MinMsgSize
		if opt := ask.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
	}
	m.Compress = true
	// What explains goes before anything that is explained (RFC 8914, 3).
	if opt := m.IsEdns0(); opt != nil && len(opt.Option) > 0 && m.Len() > size {
		opt.Option, m.Truncated = nil, true
	}
	m.Truncate(size)
	b, err := m.Pack()
	if err != nil || len(b) > size {
		return nil
	}
	return b
}
