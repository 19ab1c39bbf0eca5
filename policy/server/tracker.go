package server

import (
	"context"
	"net/http"
	"time"

	"tulle/policy/api"
	"tulle/policy/hub"
	"tulle/policy/route"
)

// Tracker knows what the cells on the other end of the internal API do. It is
// soft state: a server that has just started knows of nobody but whom the other
// servers on its store tell it of. Methods are safe for concurrent use and do not
// block.
type Tracker interface {
	// Cell is what is known of one cell; the zero value when nothing is.
	Cell(name string) CellStatus
	// Watchers is the number of open watch streams.
	Watchers() int
	// Lag is how many revisions the slowest open watch is behind the store, by
	// what its cell acknowledged. 0 without watchers.
	Lag() api.Revision
}

// CellStatus is a cell's part in the distribution of changes.
type CellStatus struct {
	Live         bool         // heard of within the heartbeat
	Watching     bool         // has a watch stream open, here or on another server of the store
	Acknowledged api.Revision // the newest revision it has in force
	LastSeen     time.Time    // zero: never
}

// InternalAPI is what the server's lifecycle needs of the internal API: its
// routes, and its hub, which runs until the context ends and then ends every
// open watch stream.
type InternalAPI interface {
	http.Handler
	Tracker
	// Enforced waits for the cells that the question is about; see hub.Enforced.
	Enforced(ctx context.Context, q hub.Question, wait time.Duration) (hub.Receipt, error)
	Run(ctx context.Context) error
	// Directory is what is known of internal names.
	Directory() route.Directory
}
