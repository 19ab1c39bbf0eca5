package echo

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Op is what a request asks for.
type Op string

// Operations.
const (
	OpDial     Op = "dial"     // open a TCP connection and close it
	OpGet      Op = "get"      // GET / over a connection of its own; Text is the body
	OpDownload Op = "download" // GET /download, every byte checked
	OpHold     Op = "hold"     // GET /hold: an idle connection until one end, or the network, ends it
	OpGetTLS   Op = "gettls"   // get over https, the certificate verified by the container's roots
	OpUDP      Op = "udp"      // send a datagram and wait for its echo
	OpDescribe Op = "describe" // tell again what the ready event told
	OpStop     Op = "stop"     // end the request whose id is Target
)

// Request is one line to a container.
type Request struct {
	ID      uint64        `json:"id"`
	Op      Op            `json:"op"`
	Address string        `json:"address,omitempty"` // host:port
	Timeout time.Duration `json:"timeout,omitempty"` // to connect, or for an echo; ns

	// Until repeats a dial, get or udp until it comes to this outcome, or
	// Patience is over. Event.Attempts counts.
	Until    Outcome       `json:"until,omitempty"`
	Patience time.Duration `json:"patience,omitempty"`

	Bytes  int64         `json:"bytes,omitempty"`  // download: how many; udp: payload length
	Rate   int64         `json:"rate,omitempty"`   // download: bytes a second the server sends, 0 as fast as it can
	Mark   int64         `json:"mark,omitempty"`   // download: say EventMark once this many are there
	Limit  time.Duration `json:"limit,omitempty"`  // download: stop after this long, which is no failure
	Target uint64        `json:"target,omitempty"` // stop
}

// Kind tells what an event is about.
type Kind string

// Kinds of events.
const (
	EventReady Kind = "ready" // servers listen; the first line
	EventBegun Kind = "begun" // the far end has answered; download and hold
	EventMark  Kind = "mark"  // a download has reached Request.Mark
	EventDone  Kind = "done"  // a request's last event

	// Unasked, of the container's own server, with Path and Peer:
	EventServing Kind = "serving" // a download or a held connection began
	EventServed  Kind = "served"  // and ended
)

// Event is one line from a container.
type Event struct {
	ID       uint64        `json:"id,omitempty"` // of the request; 0: unasked
	Kind     Kind          `json:"kind"`
	At       time.Time     `json:"at"`
	Outcome  Outcome       `json:"outcome,omitempty"`
	Error    string        `json:"error,omitempty"`
	Took     time.Duration `json:"took,omitempty"` // of the attempt that decided, ns
	Attempts int           `json:"attempts,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"`
	Text     string        `json:"text,omitempty"`
	Path     string        `json:"path,omitempty"`
	Peer     string        `json:"peer,omitempty"`
	Local    string        `json:"local,omitempty"`
	Name     string        `json:"name,omitempty"` // ready
	*Self
}

// Self is what a container sees of itself: in a ready event, and in the end of a
// describe.
type Self struct {
	Addrs  []string `json:"addrs,omitempty"`  // its own, loopback left out
	Device string   `json:"device,omitempty"` // that has the first of them, with its index: "eth0#2"
	NetNS  string   `json:"netns,omitempty"`  // as /proc names it
	UID    int      `json:"uid"`
	CapEff string   `json:"cap_eff,omitempty"` // of /proc/self/status, as are the rest
	NNP    string   `json:"no_new_privs,omitempty"`
}

// Outcome is how an attempt, or a connection, ended.
type Outcome string

// Outcomes.
const (
	OK          Outcome = "ok"          // connected, echoed, or every byte there and right
	Refused     Outcome = "refused"     // answered at once with a refusal
	Reset       Outcome = "reset"       // was open, and was cut
	TimedOut    Outcome = "timeout"     // no answer
	Unreachable Outcome = "unreachable" // an ICMP error other than a refusal
	Closed      Outcome = "closed"      // the far end ended it in order
	Stopped     Outcome = "stopped"     // by OpStop, Limit or the container's end
	Corrupt     Outcome = "corrupt"     // bytes came that were never sent
	Failed      Outcome = "failed"      // none of these; see Error
)

var errCorrupt = errors.New("bytes differ from what was sent")

// outcome maps the error a connection or attempt ended with.
func outcome(err error) Outcome {
	var timeout net.Error
	switch {
	case err == nil:
		return OK
	case errors.Is(err, errCorrupt):
		return Corrupt
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	// EPIPE: the reset was there before the write, and another call took it.
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		return Unreachable
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
		return Stopped
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, syscall.ETIMEDOUT), errors.As(err, &timeout) && timeout.Timeout():
		return TimedOut
	}
	return Failed
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
