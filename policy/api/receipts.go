package api

import (
	"encoding/json"
	"time"
)

// Paths of receipts and of changes that are answered with one. Scope
// network.admin or network.write; the bodies of the two changes are those of
// version v1 of the networking API.
const (
	PathChange       = "/v1/policies"        // POST Policies[?wait=5s] -> Changed
	PathChangeDelete = "/v1/policies/delete" // POST Policies[?wait=5s] -> Changed
	PathEnforced     = "/v1/enforced"        // GET [?revision=N&wait=5s] -> Enforced
)

// MaxWait is the longest wait that may be asked for.
const MaxWait = 10 * time.Minute

// Changed is the answer to a change: the revision it is stored at and, where
// waiting was asked for, how far the cells are.
type Changed struct {
	Revision Revision  `json:"revision"`
	Enforced *Enforced `json:"enforced,omitempty"`
}

// Enforced says on how many of the cells that a revision concerns it is in
// force: their tables published, the flows that it forbids cut.
type Enforced struct {
	Revision     Revision     `json:"revision"`
	Cells        string       `json:"cells"`          // "40/41": in force on 40 of 41
	Milliseconds int64        `json:"ms"`             // how long the request waited for them
	Silent       []SilentCell `json:"silent"`         // cells that say nothing, and are not waited for
	Late         []string     `json:"late,omitempty"` // cells that had not answered when the wait ended
}

// MarshalJSON writes no silent cells as [], never null.
func (e Enforced) MarshalJSON() ([]byte, error) {
	type plain Enforced
	e.Silent = orEmpty(e.Silent)
	return json.Marshal(plain(e))
}

// SilentCell is a cell that has not reached the revision and is not heard of.
type SilentCell struct {
	Cell  string    `json:"cell"`
	Since time.Time `json:"since"` // its last sign of life, or the server's start
}
