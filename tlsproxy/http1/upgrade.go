package http1

import (
	"bytes"
	"io"
	"sync"
)

// Upgrade is the app's answers. It looks for the first that is none of the 1xx, or
// is 101: that is the one to a Reader's first request.
type Upgrade struct {
	from     io.Reader
	once     sync.Once
	decided  chan struct{} // closed when what follows is good
	switched bool
	err      error

	done   bool   // Read looks no more
	line   []byte // the beginning of the one under way, up to maxStatus
	length int    // of it, in all
	inHead bool   // of a 1xx answer
}

// maxStatus is as much of a status line as has the status in it.
const maxStatus = len("HTTP/1.1 101")

// NewUpgrade reads answers from what the app writes.
func NewUpgrade(from io.Reader) *Upgrade { return &Upgrade{from: from, decided: make(chan struct{})} }

// Read gives what the app wrote as it is.
func (u *Upgrade) Read(p []byte) (int, error) {
	n, err := u.from.Read(p)
	if !u.done {
		u.look(p[:n])
		if err != nil {
			u.decide(false, err)
		}
	}
	return n, err
}

func (u *Upgrade) look(b []byte) {
	for len(b) > 0 && !u.done {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		u.line = append(u.line, part[:min(len(part), maxStatus-len(u.line))]...)
		u.length += len(part)
		if !u.inHead && len(u.line) == maxStatus {
			u.status()
		}
		if i < 0 {
			return
		}
		switch empty := u.length == 0 || u.length == 1 && u.line[0] == '\r'; {
		case u.inHead && empty:
			u.inHead = false
		case !u.inHead && len(u.line) == maxStatus:
			u.inHead = true
		case !u.inHead && !u.done:
			u.decide(false, nil) // no answer of HTTP
		}
		u.line, u.length, b = u.line[:0], 0, b[i+1:]
	}
}

// status judges a status line: what ends with it is decided.
func (u *Upgrade) status() {
	switch {
	case !bytes.HasPrefix(u.line, []byte("HTTP/1.")):
		u.decide(false, nil)
	case bytes.HasSuffix(u.line, []byte(" 101")):
		u.decide(true, nil)
	case u.line[len(u.line)-3] != '1':
		u.decide(false, nil)
	}
}

func (u *Upgrade) decide(switched bool, err error) {
	u.done, u.line = true, nil
	u.once.Do(func() {
		u.switched, u.err = switched, err
		close(u.decided)
	})
}

// wait is whether the app has taken the upgrade, when it has said so.
func (u *Upgrade) wait() (bool, error) {
	<-u.decided
	return u.switched, u.err
}
