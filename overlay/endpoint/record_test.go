package endpoint

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"tulle/overlay/control"
	"tulle/policy"
)

func journalText(t testing.TB, rs ...*record) []byte {
	t.Helper()
	var b []byte
	for _, r := range rs {
		var err error
		if b, err = appendRecord(b, r); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestRecordOnDisk(t *testing.T) {
	b := journalText(t, &record{Detach: "c1"})
	if got, want := string(b), "0cc72f8e {\"detach\":\"c1\"}\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A crash may leave any beginning of the last record.
func TestEveryCutOffTailIsDropped(t *testing.T) {
	keep := journalText(t, &record{Snapshot: &snapshot{Version: version}}, &record{Sequence: 7})
	last := journalText(t, &record{Detach: "c1"})
	for n := range last {
		rs, good, err := decodeJournal(append(bytes.Clone(keep), last[:n]...))
		if err != nil || len(rs) != 2 || good != len(keep) {
			t.Fatalf("%d bytes of it left: %d records, %d good bytes, %v", n, len(rs), good, err)
		}
	}
	zeros := append(bytes.Clone(keep), make([]byte, 4096)...)
	if rs, _, err := decodeJournal(zeros); err != nil || len(rs) != 2 {
		t.Errorf("a tail of zeros: %d records, %v", len(rs), err)
	}
}

func TestEveryChangedByteInTheMiddleIsFound(t *testing.T) {
	head := journalText(t, &record{Snapshot: &snapshot{Version: version}})
	mid := journalText(t, &record{Detach: "c1"})
	tail := journalText(t, &record{Sequence: 7})
	for i := range mid[:len(mid)-1] {
		b := append(append(bytes.Clone(head), mid...), tail...)
		b[len(head)+i] ^= 0x04
		_, _, err := decodeJournal(b)
		if err == nil || !strings.Contains(err.Error(), "line 2 is corrupt") {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	b := append(bytes.Clone(head), tail...)
	b[3] ^= 0x04
	if _, _, err := decodeJournal(b); err == nil || !strings.Contains(err.Error(), "line 1 is corrupt") {
		t.Errorf("first line changed: %v", err)
	}
	// Alone in the file it is no torn tail either: it had been synced.
	if _, _, err := decodeJournal(b[:len(head)]); err == nil {
		t.Error("a corrupt journal of one line was taken for a new one")
	}
}

// What is read is what a crash or a failing disk left of our own writing.
// Property: no panic; the good part reads again as the same records, and
// written again it gives records that read the same.
func FuzzDecodeJournal(f *testing.F) {
	full := journalText(f,
		&record{Snapshot: &snapshot{Version: version, Counter: 3, Sequence: 9, Endpoints: []Endpoint{{Container: "c0"}}}},
		&record{Lease: &Lease{BootID: "b"}},
		&record{Attach: &Endpoint{Container: "c1", Counter: 4}},
		&record{App: &appRecord{Container: "c1", AppID: "a"}},
		&record{Ports: &portsRecord{Container: "c1", Ports: []control.Port{{HostPort: 80, Port: 80}}}},
		&record{Rules: &rulesRecord{Container: "c1", Rules: []policy.SecurityRule{{Protocol: "all", Destination: "192.0.2.1"}}}},
		&record{Detach: "c1"}, &record{Sequence: 1033})
	f.Add(full)
	f.Add(full[:len(full)-5])
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, good, err := decodeJournal(b)
		if err != nil {
			if rs != nil || good != 0 {
				t.Fatal("an error with records")
			}
			return
		}
		if good > len(b) || good == 0 && len(b) > 0 {
			t.Fatalf("%d of %d bytes are good", good, len(b))
		}
		again, n, err := decodeJournal(b[:good])
		if err != nil || n != good || !reflect.DeepEqual(again, rs) {
			t.Fatalf("the good part reads as %d records, %d bytes, %v", len(again), n, err)
		}
		second, _, err := decodeJournal(journalText(t, rs...))
		if err != nil || len(second) != len(rs) {
			t.Fatalf("written again: %d records of %d, %v", len(second), len(rs), err)
		}
	})
}
