// Package natlog remembers whose each source port of this host was, and when: a
// complaint from outside names an address, a port and a time, and [Log.Who] names the
// container, app, space and org.
//
// What is noted goes to a file of JSON lines, and the file before it, each of a
// bounded size: the oldest is forgotten, never what is newest. A line is written when
// a conversation begins, so that a crash forgets none, and another when it ends.
package natlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"tulle/overlay/egress"
)

// flushEvery bounds how long the line of an end waits in memory.
const flushEvery = time.Second

// Options of a Log.
type Options struct {
	Dir   string
	Bytes int64 // of both files together; 0: 64 MiB
}

// Log is an egress.Recorder. Its methods may be called from any goroutine.
type Log struct {
	path string
	half int64

	mu   sync.Mutex // guards what follows
	f    *os.File
	w    *bufio.Writer
	size int64
	next uint64
	live map[uint64]entry // begun and not ended in this life
	run  string           // names this life: numbers begin anew in the next
	line []byte           // scratch
	// who is containers' identities as they are written: one is in many lines.
	who  map[egress.Identity][]byte
	err  error // of the last write
	torn bool  // it left the file without lines that it should have
	stop chan struct{}
	done chan struct{}
}

// entry is a line. One that ends a conversation has its number and an End.
type entry struct {
	Run      string          `json:"run"`
	ID       uint64          `json:"id"`
	Begin    time.Time       `json:"begin,omitzero"`
	End      time.Time       `json:"end,omitzero"`
	Protocol string          `json:"protocol,omitempty"`
	Source   netip.AddrPort  `json:"source,omitzero"`
	Remote   netip.AddrPort  `json:"remote,omitzero"`
	Who      egress.Identity `json:"who,omitzero"`
}

// Found is a conversation.
type Found struct {
	Protocol string          `json:"protocol"`
	Source   netip.AddrPort  `json:"source"`
	Remote   netip.AddrPort  `json:"remote"`
	Begin    time.Time       `json:"begin"`
	End      time.Time       `json:"end,omitzero"`   // zero: it lives
	Lost     bool            `json:"lost,omitempty"` // its daemon ended without saying when it did
	Who      egress.Identity `json:"who"`
}

// Open opens the log in a directory; run is a name that no other life of the daemon
// has.
func Open(o Options, run string) (*Log, error) {
	if o.Bytes <= 0 {
		o.Bytes = 64 << 20
	}
	l := &Log{path: filepath.Join(o.Dir, "nat.log"), half: o.Bytes / 2, live: map[uint64]entry{}, who: map[egress.Identity][]byte{}, run: run, stop: make(chan struct{}), done: make(chan struct{})}
	if err := l.open(); err != nil {
		return nil, err
	}
	go l.flusher()
	return l, nil
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("NAT log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("NAT log: %w", err), f.Close())
	}
	l.f, l.w, l.size = f, bufio.NewWriterSize(f, 64<<10), st.Size()
	if l.size > 0 {
		// A torn last line must not swallow the next one.
		return l.writeLocked([]byte("\n"))
	}
	return nil
}

// Begin implements egress.Recorder.
func (l *Log) Begin(m egress.Mapping) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	e := entry{Run: l.run, ID: l.next, Begin: m.At.UTC(), Protocol: m.Protocol, Source: m.Source, Remote: m.Remote, Who: m.Identity}
	l.live[e.ID] = e
	l.noteLocked(e)
	// In the kernel's hands: killing the daemon does not take it back.
	_ = l.flushLocked()
	return e.ID
}

// End implements egress.Recorder.
func (l *Log) End(id uint64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.live, id)
	l.noteLocked(entry{Run: l.run, ID: id, End: at.UTC()})
}

func (l *Log) noteLocked(e entry) {
	b, err := l.appendLocked(l.line[:0], &e)
	if err == nil {
		l.line = b
		err = l.writeLocked(b)
	}
	if err != nil {
		l.failedLocked(err)
	}
}

// failedLocked takes note of an error. A bufio.Writer never writes again after one, but
// there may be room again: what it holds is lost, and what lives is noted anew then.
func (l *Log) failedLocked(err error) {
	l.err, l.torn = err, true
	if st, err := l.f.Stat(); err == nil {
		l.size = st.Size()
	}
	l.w.Reset(l.f)
	_ = l.w.WriteByte('\n') // a part of a line must not swallow the next one
	l.size++
}

func (l *Log) flushLocked() error {
	err := l.w.Flush()
	if err != nil {
		l.failedLocked(err)
	}
	return err
}

// mendLocked tries again, after an error, to have in the file what lives.
func (l *Log) mendLocked() {
	if !l.torn {
		return
	}
	l.torn = false
	if err := l.noteLiveLocked(); err != nil {
		l.failedLocked(err)
	}
}

// maxWho is how many identities are kept in their written form.
const maxWho = 1024

// appendLocked appends the line as encoding/json writes it, without asking each time
// what the fields are: there are two lines a connection.
func (l *Log) appendLocked(b []byte, e *entry) ([]byte, error) {
	b = append(b, `{"run":`...)
	b = strconv.AppendQuote(b, e.Run)
	b = strconv.AppendUint(append(b, `,"id":`...), e.ID, 10)
	at := func(name string, t time.Time) {
		if !t.IsZero() {
			b = append(t.AppendFormat(append(b, name...), time.RFC3339Nano), '"')
		}
	}
	at(`,"begin":"`, e.Begin)
	at(`,"end":"`, e.End)
	if e.Protocol != "" {
		b = strconv.AppendQuote(append(b, `,"protocol":`...), e.Protocol)
	}
	to := func(name string, a netip.AddrPort) {
		if a.IsValid() {
			b = append(a.AppendTo(append(b, name...)), '"')
		}
	}
	to(`,"source":"`, e.Source)
	to(`,"remote":"`, e.Remote)
	if e.Who != (egress.Identity{}) {
		who, there := l.who[e.Who]
		if !there {
			var err error
			if who, err = json.Marshal(e.Who); err != nil {
				return nil, err
			}
			if len(l.who) >= maxWho {
				clear(l.who)
			}
			l.who[e.Who] = who
		}
		b = append(append(b, `,"who":`...), who...)
	}
	return append(b, '}', '\n'), nil
}

func (l *Log) writeLocked(b []byte) error {
	if l.size+int64(len(b)) > l.half && l.size > 1 {
		if err := l.rotateLocked(); err != nil {
			return err
		}
	}
	n, err := l.w.Write(b)
	l.size += int64(n)
	return err
}

// rotateLocked makes the file the one before, and notes again what lives: the file
// that told of its beginning will be forgotten.
func (l *Log) rotateLocked() error {
	// Lines that find no room are lost; the file before this one, which goes, makes some.
	_ = l.flushLocked()
	// Renamed already where it could not be opened anew the last time.
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old := l.f
	err := l.open()
	if l.f != old {
		err = errors.Join(err, old.Close())
	}
	if err != nil {
		return err
	}
	return l.noteLiveLocked()
}

// noteLiveLocked notes again what lives.
func (l *Log) noteLiveLocked() error {
	var b []byte // not l.line: that waits for its place behind these
	for _, e := range l.live {
		var err error
		if b, err = l.appendLocked(b[:0], &e); err != nil {
			return err
		}
		n, err := l.w.Write(b)
		if l.size += int64(n); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) flusher() {
	defer close(l.done)
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-t.C:
			l.mu.Lock()
			l.mendLocked()
			_ = l.flushLocked()
			l.mu.Unlock()
		}
	}
}

// Err is the error of the last write that had one, and forgets it.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.err
	l.err = nil
	return err
}

// Close writes what is left. Conversations that live are ended by their own ends.
func (l *Log) Close() error {
	close(l.stop)
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.w.Flush(), l.f.Close())
}

// Who lists the conversations that had the source address, of any protocol, at that
// time; at the zero time, all that the log knows. source's address may be unspecified:
// any of the host's.
func (l *Log) Who(source netip.AddrPort, at time.Time) ([]Found, error) {
	l.mu.Lock()
	l.mendLocked()
	if err := l.flushLocked(); err != nil {
		l.mu.Unlock()
		return nil, fmt.Errorf("NAT log: %w", err)
	}
	live := make(map[uint64]bool, len(l.live))
	for id := range l.live {
		live[id] = true
	}
	run := l.run
	l.mu.Unlock()

	type key struct {
		run string
		id  uint64
	}
	var order []key
	all := map[key]*Found{}
	for _, path := range []string{l.path + ".1", l.path} {
		err := each(path, func(e entry) {
			k := key{e.Run, e.ID}
			if !e.End.IsZero() {
				if f := all[k]; f != nil {
					f.End, f.Lost = e.End, false
				}
				return
			}
			same := e.Source == source || source.Addr().IsUnspecified() && e.Source.Port() == source.Port()
			if !same || all[k] != nil || !at.IsZero() && e.Begin.After(at) {
				return
			}
			all[k] = &Found{Protocol: e.Protocol, Source: e.Source, Remote: e.Remote, Begin: e.Begin, Who: e.Who, Lost: e.Run != run || !live[e.ID]}
			order = append(order, k)
		})
		if err != nil {
			return nil, err
		}
	}
	found := []Found{}
	for _, k := range order {
		if f := all[k]; at.IsZero() || f.End.IsZero() || !f.End.Before(at) {
			found = append(found, *f)
		}
	}
	return found, nil
}

// each reads a file's whole lines; those that are none, which a crash leaves, are
// passed over. A file that is not there has none.
func each(path string, f func(entry)) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("NAT log: %w", err)
	}
	defer file.Close()
	r := bufio.NewReaderSize(file, 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		if err == nil {
			var e entry
			if json.Unmarshal(line, &e) == nil && e.ID != 0 {
				f(e)
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("NAT log: %w", err)
		}
	}
}
