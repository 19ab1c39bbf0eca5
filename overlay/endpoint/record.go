package endpoint

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"tulle/overlay/control"
	"tulle/policy"
	"tulle/policy/api"
)

// version of the journal's format; it stands in every snapshot record.
const version = 1

// Endpoint is a container as the journal has it.
type Endpoint struct {
	Container string            `json:"container"`
	Address   netip.Addr        `json:"address"`
	Counter   uint32            `json:"counter"` // the incarnation's low half; never used twice under one lease generation
	App       api.AppRef        `json:"app"`     // as the attacher named it
	AppID     policy.AppID      `json:"app_id,omitempty"`
	Instance  string            `json:"instance,omitempty"`
	Device    string            `json:"device"`
	Lifeline  control.Lifeline  `json:"lifeline"`
	UID       uint32            `json:"uid"`
	Network   string            `json:"network,omitempty"` // the runtime's name; for its GC
	Bandwidth control.Bandwidth `json:"bandwidth,omitzero"`
	TLS       *control.TLS      `json:"tls,omitempty"`

	// What it may reach outside the overlay, and which ports of the host lead to it.
	Workload policy.Workload       `json:"workload,omitempty"`
	Rules    []policy.SecurityRule `json:"rules,omitempty"`
	Ports    []control.Port        `json:"ports,omitempty"`
}

// Lease is the cell's lease and when it ends, by two clocks: CLOCK_BOOTTIME
// while the boot id is the same, wall time for a boot without a server.
type Lease struct {
	api.Lease
	BootID  string        `json:"boot_id"`
	Expires time.Duration `json:"expires"` // CLOCK_BOOTTIME
	Wall    time.Time     `json:"wall"`
	// Ports of VXLAN and of WireGuard: peers go on sending there while the daemon
	// restarts.
	Port      uint16 `json:"port,omitempty"`
	WireGuard uint16 `json:"wireguard,omitempty"`
}

// record is one line. Exactly one pointer or number is set.
type record struct {
	Snapshot *snapshot    `json:"snapshot,omitempty"`
	Lease    *Lease       `json:"lease,omitempty"`
	Attach   *Endpoint    `json:"attach,omitempty"`
	App      *appRecord   `json:"app,omitempty"`
	Ports    *portsRecord `json:"ports,omitempty"`
	Rules    *rulesRecord `json:"rules,omitempty"`
	Detach   string       `json:"detach,omitempty"`
	Sequence uint64       `json:"sequence,omitempty"` // all below may have been used
}

type appRecord struct {
	Container string       `json:"container"`
	AppID     policy.AppID `json:"app_id"`
}

// portsRecord is all ports that lead to a container.
type portsRecord struct {
	Container string         `json:"container"`
	Ports     []control.Port `json:"ports"`
}

// rulesRecord is all rules of a container's own.
type rulesRecord struct {
	Container string                `json:"container"`
	Rules     []policy.SecurityRule `json:"rules"`
}

// snapshot is everything; it stands first in a journal.
type snapshot struct {
	Version   int          `json:"version"`
	Lease     *Lease       `json:"lease,omitempty"`
	Counter   uint32       `json:"counter"` // the last one used
	Sequence  uint64       `json:"sequence"`
	Endpoints []Endpoint   `json:"endpoints"`
	Queue     []netip.Addr `json:"queue"` // what is free, in order
	Used      int          `json:"used"`  // so many at the queue's end rest after use
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sumLen = 9 // eight hex digits and a space

// appendRecord appends r's line: checksum, space, JSON, newline.
func appendRecord(b []byte, r *record) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("journal record: %w", err)
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(text, castagnoli))
	b = append(b, text...)
	return append(b, '\n'), nil
}

var (
	errLine = errors.New("the line is no record")
	errSum  = errors.New("the checksum does not fit")
)

// decodeRecord reads a line without its newline.
func decodeRecord(line []byte) (*record, error) {
	if len(line) <= sumLen || line[sumLen-1] != ' ' {
		return nil, errLine
	}
	text := line[sumLen:]
	if want := fmt.Appendf(nil, "%08x", crc32.Checksum(text, castagnoli)); !bytes.Equal(line[:sumLen-1], want) {
		return nil, errSum
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errLine, err)
	}
	kinds := 0
	for _, is := range []bool{r.Snapshot != nil, r.Lease != nil, r.Attach != nil, r.App != nil, r.Ports != nil, r.Rules != nil, r.Detach != "", r.Sequence != 0} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, fmt.Errorf("%w: it says %d things", errLine, kinds)
	}
	return &r, nil
}

// decodeJournal reads a whole journal. good is how many bytes of b are valid
// records; what follows was torn off by a crash and says nothing. A bad line
// that a valid one follows is no such tear but corruption, an error that names
// the line.
func decodeJournal(b []byte) (records []*record, good int, err error) {
	bad, badErr := 0, error(nil)
	for n, at := 1, 0; at < len(b); n++ {
		line, end := b[at:], len(b)
		cut := bytes.IndexByte(line, '\n')
		if cut >= 0 {
			line, end = line[:cut], at+cut+1
		}
		r, err := decodeRecord(line)
		switch {
		case err == nil && bad != 0:
			return nil, 0, fmt.Errorf("line %d is corrupt: %w", bad, badErr)
		case err == nil && cut >= 0:
			records, good = append(records, r), end
		case bad == 0:
			bad, badErr = n, cmp.Or(err, errLine)
		}
		at = end
	}
	if good == 0 && len(b) > 0 {
		// The first line is synced before it gets the journal's name: no crash tears it.
		return nil, 0, fmt.Errorf("line 1 is corrupt: %w", badErr)
	}
	return records, good, nil
}
