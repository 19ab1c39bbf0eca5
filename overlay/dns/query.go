package dns

import (
	"encoding/binary"
	"errors"
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

// answer is the reply to q in wire format, or nil where there is none to give.
func (f *Forwarder) answer(q query) []byte {
	ask, rcode, err := decode(q.message)
	switch {
	case err != nil:
		f.counters.malformed.Add(1)
		return nil
	case rcode == dns.RcodeFormatError:
		f.counters.malformed.Add(1)
		return pack(refusal(ask, rcode, nil), ask)
	case rcode != dns.RcodeSuccess:
		f.counters.refused.Add(1)
		return pack(refusal(ask, rcode, nil), ask)
	case f.isInternal(ask.Question[0].Name):
		f.counters.internal.Add(1)
		return pack(refusal(ask, dns.RcodeServerFailure, &dns.EDNS0_EDE{
			InfoCode: dns.ExtendedErrorCodeNotReady, ExtraText: "internal names are not served here",
		}), ask)
	case !time.Now().Before(q.deadline):
		f.counters.late.Add(1)
		return nil
	}
	got, err := f.exchange(ask, q.deadline)
	if err != nil {
		f.counters.failed.Add(1)
		return pack(refusal(ask, dns.RcodeServerFailure, &dns.EDNS0_EDE{
			InfoCode: dns.ExtendedErrorCodeNetworkError, ExtraText: err.Error(),
		}), ask)
	}
	f.counters.answered.Add(1)
	return pack(restore(got, ask), ask)
}

var errNoQuery = errors.New("not a query")

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

func (f *Forwarder) isInternal(name string) bool {
	for _, domain := range f.internal {
		if dns.IsSubDomain(domain, name) {
			return true
		}
	}
	return false
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
// done, which only a record that decodes but does not encode can cause.
func pack(m, ask *dns.Msg) []byte {
	size := dns.MinMsgSize
	if opt := ask.IsEdns0(); opt != nil {
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	m.Compress = true
	m.Truncate(size)
	b, err := m.Pack()
	if err != nil || len(b) > size {
		return nil
	}
	return b
}
