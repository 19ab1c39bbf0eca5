package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

var (
	errNoUpstream = errors.New("no resolver to ask")
	errMismatch   = errors.New("answer to another question")
)

// exchange asks the resolvers in turn until one gives an answer that settles
// the question. A resolver that fails, is silent, or answers with an error of
// its own is followed by the next, as stub resolvers do; the last such answer is
// better than none.
func (r *Resolver) exchange(ask *dns.Msg, deadline time.Time) (*dns.Msg, error) {
	var (
		second *dns.Msg
		last   error = errNoUpstream
	)
	for i, server := range r.upstreams.list() {
		if i > 0 {
			r.counters.retried.Add(1)
		}
		limit := time.Now().Add(r.timeout)
		if deadline.Before(limit) {
			limit = deadline
		}
		ctx, cancel := context.WithDeadline(r.ctx, limit)
		got, err := r.ask(ctx, server, ask)
		cancel()
		if err != nil {
			last = fmt.Errorf("ask %v: %w", server, err)
		} else if settles(got.Rcode) {
			return got, nil
		} else {
			second = got
		}
		if r.ctx.Err() != nil || !time.Now().Before(deadline) {
			break
		}
	}
	if second != nil {
		return second, nil
	}
	return nil, last
}

func settles(rcode int) bool {
	switch rcode {
	case dns.RcodeServerFailure, dns.RcodeNotImplemented, dns.RcodeRefused, dns.RcodeFormatError:
		return false
	}
	return true
}

// ask puts the question to one resolver, over UDP and, if the answer does not
// fit, over TCP.
func (r *Resolver) ask(ctx context.Context, server netip.AddrPort, ask *dns.Msg) (*dns.Msg, error) {
	out := new(dns.Msg)
	out.Id = dns.Id()
	out.RecursionDesired, out.CheckingDisabled = ask.RecursionDesired, ask.CheckingDisabled
	out.AuthenticatedData = ask.AuthenticatedData
	out.Question = ask.Question
	// What the asker put into its OPT (cookies, padding, client subnet) is
	// between it and us: only the DO bit travels (RFC 6891, 6.2.6).
	opt := ask.IsEdns0()
	out.SetEdns0(maxUDP, opt != nil && opt.Do())
	got, err := r.put(ctx, server, out)
	if err == nil && knowsNoEDNS(got) {
		r.counters.retried.Add(1)
		out.Id, out.Extra = dns.Id(), nil
		got, err = r.put(ctx, server, out)
	}
	return got, err
}

// knowsNoEDNS is true of what a resolver from before EDNS says to an OPT record
// (RFC 6891, 7).
func knowsNoEDNS(got *dns.Msg) bool {
	return (got.Rcode == dns.RcodeFormatError || got.Rcode == dns.RcodeNotImplemented) && got.IsEdns0() == nil
}

// put sends out to a resolver and waits for the answer.
func (r *Resolver) put(ctx context.Context, server netip.AddrPort, out *dns.Msg) (*dns.Msg, error) {
	wire, err := out.Pack()
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	got, err := askOver(ctx, "udp", server, wire, out)
	if err == nil && got == nil { // truncated
		r.counters.retried.Add(1)
		got, err = askOver(ctx, "tcp", server, wire, out)
		if err == nil && got == nil {
			err = errors.New("truncated over TCP")
		}
	}
	return got, err
}

// askOver sends wire and waits for its answer. A nil message without an error
// is an answer that was truncated.
func askOver(ctx context.Context, network string, server netip.AddrPort, wire []byte, ask *dns.Msg) (*dns.Msg, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		return askStream(conn, wire, ask)
	}
	return askDatagram(conn, wire, ask)
}

// askDatagram reads on past what does not answer ask: anybody may send to our
// port, and only the true answer or the time ends the wait.
func askDatagram(conn net.Conn, wire []byte, ask *dns.Msg) (*dns.Msg, error) {
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	buf := make([]byte, maxQuery)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		got, err := decodeAnswer(buf[:n], ask)
		if errors.Is(err, errMismatch) {
			continue
		}
		return got, err
	}
}

func askStream(conn net.Conn, wire []byte, ask *dns.Msg) (*dns.Msg, error) {
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	if _, err := conn.Write(framed); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	return decodeAnswer(buf, ask)
}

// decodeAnswer reads b as the answer to ask: nil without an error if it is
// truncated, errMismatch if it answers something else.
func decodeAnswer(b []byte, ask *dns.Msg) (*dns.Msg, error) {
	if len(b) < headerLen || b[2]&0x80 == 0 || binary.BigEndian.Uint16(b) != ask.Id {
		return nil, errMismatch
	}
	got := new(dns.Msg)
	err := got.Unpack(b)
	if len(got.Question) == 0 && err == nil && !got.Truncated && !settles(got.Rcode) {
		return got, nil // some resolvers repeat no question beside an error of their own
	}
	if len(got.Question) != 1 || !sameQuestion(got.Question[0], ask.Question[0]) {
		return nil, errMismatch
	}
	if got.Truncated {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("decode the answer: %w", err)
	}
	return got, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
