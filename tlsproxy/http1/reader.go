package http1

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
)

// Reader reads a client's requests and gives them as the app gets them: it is an
// io.Reader whose io.EOF is the client's, between two requests. An error that is a
// *Refusal is the client's fault; what was read before it is whole requests, and
// perhaps a part of the body of the one that is refused.
type Reader struct {
	from        io.Reader
	name, value string
	up          *Upgrade // nil: none is to be had

	// Timed, if it is set, is told when a header has begun that is not whole, and
	// when it is. A read that then fails with os.ErrDeadlineExceeded is a Refusal.
	Timed   func(on bool)
	ticking bool

	in     []byte // read and not looked at yet
	buf    []byte // in's room
	out    []byte // for the app, before anything else
	outBuf []byte // out's room

	state    state
	left     int64 // of the body, or of a chunk
	requests int
	failed   error
}

type state int

const (
	stateHead state = iota
	stateBody
	stateChunkSize
	stateChunk
	stateChunkEnd
	stateTrailer
	stateUpgrade // until the app has answered
	stateOpaque
)

// NewReader sets header name to value in each request.
func NewReader(from io.Reader, name, value string, up *Upgrade) *Reader {
	return &Reader{from: from, name: name, value: value, up: up}
}

// Requests is how many requests have begun to be given, and whether the last of
// them is whole.
func (r *Reader) Requests() (n int, whole bool) { return r.requests, r.state == stateHead }

// Read gives what there is, and waits for at least a byte of it.
func (r *Reader) Read(p []byte) (int, error) {
	for {
		if len(r.out) > 0 {
			n := copy(p, r.out)
			r.out = r.out[n:]
			return n, nil
		}
		if r.failed != nil {
			return 0, r.failed
		}
		if n, done, err := r.body(p); done || err != nil {
			return n, r.fail(err)
		}
		if err := r.step(); err != nil {
			r.fail(err)
		}
	}
}

func (r *Reader) fail(err error) error {
	if err != nil {
		r.failed = err
	}
	return err
}

// body gives bytes that are not looked at: of a body, or after an upgrade.
func (r *Reader) body(p []byte) (n int, done bool, err error) {
	if r.state != stateBody && r.state != stateChunk && r.state != stateOpaque {
		return 0, false, nil
	}
	if r.state != stateOpaque && int64(len(p)) > r.left {
		p = p[:r.left]
	}
	if len(r.in) > 0 {
		n = copy(p, r.in)
		r.in = r.in[n:]
	} else if n, err = r.from.Read(p); n > 0 {
		err = nil // it comes again
	}
	if r.state == stateOpaque {
		return n, true, err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if r.left -= int64(n); r.left == 0 {
		if r.state == stateBody {
			r.state = stateHead
		} else {
			r.state = stateChunkEnd
		}
	}
	return n, true, err
}

// step takes the next piece of framing.
func (r *Reader) step() error {
	switch r.state {
	case stateHead:
		return r.head()
	case stateChunkSize:
		return r.chunkSize()
	case stateChunkEnd:
		line, err := r.line(maxChunkLine)
		if err != nil {
			return err
		}
		if len(line) > 0 {
			return refuse("a chunk is longer than its size")
		}
		r.emit("\r\n")
		r.state = stateChunkSize
		return nil
	case stateTrailer:
		return r.trailer()
	}
	// stateUpgrade: what the client sends now is a WebSocket's, or the next request.
	switched, err := r.up.wait()
	if err != nil {
		return err
	}
	r.state = stateHead
	if switched {
		r.state = stateOpaque
	}
	return nil
}

func (r *Reader) head() error {
	b, err := r.section(true)
	if err != nil {
		return err
	}
	// Which answer is the one to a later request, nobody here knows.
	out, f, err := head(r.outBuf[:0], b, r.name, r.value, r.up != nil && r.requests == 0)
	if err != nil {
		return err
	}
	r.requests++
	r.out, r.outBuf = out, out
	switch {
	case f.upgrade:
		r.state = stateUpgrade
	case f.chunked:
		r.state = stateChunkSize
	case f.length > 0:
		r.state, r.left = stateBody, f.length
	}
	return nil
}

const maxChunkLine = 4 << 10

// chunkSize is "HEX[;extension]" (RFC 9112, 7.1). Extensions are dropped: hardly
// anybody reads them, and not all in the same way.
func (r *Reader) chunkSize() error {
	line, err := r.line(maxChunkLine)
	if err != nil {
		return err
	}
	size, _, _ := bytes.Cut(line, []byte(";"))
	size = bytes.TrimRight(size, " \t")
	if len(size) == 0 || len(size) > 15 {
		return refuse("a chunk's size has %d digits", len(size))
	}
	var n int64
	for _, c := range size {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return refuse("a chunk's size is no number")
		}
		n = n<<4 | int64(d)
	}
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return refuse("a control character in a chunk's size")
		}
	}
	r.emit(string(size) + "\r\n")
	r.left, r.state = n, stateChunk
	if n == 0 {
		r.state = stateTrailer
	}
	return nil
}

// trailer is the lines after the last chunk; an app may count them as headers.
func (r *Reader) trailer() error {
	b, err := r.section(false)
	if err != nil {
		return err
	}
	out := r.outBuf[:0]
	for fields := 0; ; fields++ {
		line, rest, err := cutLine(b)
		if err != nil {
			return err
		}
		if b = rest; len(line) == 0 {
			break
		}
		if fields == maxFields {
			return refuse("more than %d trailer lines", maxFields)
		}
		name, _, err := cutField(line)
		if err != nil {
			return err
		}
		switch canonical(name) {
		case canonical(r.name):
			continue
		case "content-length", "transfer-encoding", "host":
			return refuse("%s in a trailer", name)
		}
		out = append(append(out, line...), "\r\n"...)
	}
	out = append(out, "\r\n"...)
	r.out, r.outBuf, r.state = out, out, stateHead
	return nil
}

func (r *Reader) emit(s string) {
	r.out = append(r.outBuf[:0], s...)
	r.outBuf = r.out
}

// section reads up to an empty line, and looks at no more than the ends of lines.
// Before a request, empty lines are passed over (RFC 9112, 2.2), and the client's
// end is one.
func (r *Reader) section(request bool) ([]byte, error) {
	start, looked := 0, 0 // of the line under way; up to where there is no end of it
	for {
		if i := bytes.IndexByte(r.in[looked:], '\n'); i >= 0 {
			end := looked + i
			switch {
			case end == start || r.in[end-1] != '\r':
				return nil, refuse("a line ends with a bare line feed")
			case end-1 > start:
				start, looked = end+1, end+1
			case request && start == 0:
				r.in, looked = r.in[2:], 0
			default:
				r.timed(false)
				return r.take(end + 1), nil
			}
			continue
		}
		if looked = len(r.in); looked >= MaxHead {
			return nil, refuse("more than %d bytes of header", MaxHead)
		}
		if looked > 0 {
			r.timed(true)
		}
		if err := r.more(); err != nil {
			switch {
			case err == io.EOF && (!request || len(r.in) > 0):
				err = io.ErrUnexpectedEOF
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = refuse("a header that is not whole in time")
			}
			return nil, err
		}
	}
}

// timed says that a header has begun, and that it is whole.
func (r *Reader) timed(on bool) {
	if r.Timed != nil && r.ticking != on {
		r.ticking = on
		r.Timed(on)
	}
}

// line reads one line, without its end.
func (r *Reader) line(limit int) ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.in, '\n'); i >= 0 && i <= limit {
			line, _, err := cutLine(r.take(i + 1))
			return line, err
		}
		if len(r.in) > limit {
			return nil, refuse("a line of the body's framing is longer than %d bytes", limit)
		}
		if err := r.more(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// take is the first n bytes; they are good until the next read.
func (r *Reader) take(n int) []byte {
	b := r.in[:n]
	r.in = r.in[n:]
	return b
}

const firstBuffer = 2 << 10

// more reads what comes, into a buffer that grows up to MaxHead.
func (r *Reader) more() error {
	if len(r.in) == 0 {
		r.in = r.buf[:0]
	}
	if cap(r.in) == len(r.in) {
		room := r.buf
		if cap(room) < 2*len(r.in) || cap(room) == 0 {
			room = make([]byte, 0, min(max(firstBuffer, 2*len(r.in)), MaxHead))
		}
		r.in, r.buf = append(room[:0], r.in...), room
	}
	for range 100 {
		n, err := r.from.Read(r.in[len(r.in):cap(r.in)])
		r.in = r.in[:len(r.in)+n]
		if n > 0 {
			return nil // an error comes again
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}
