package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
)

// getWatch streams the cell's events, one JSON value a line, each flushed. The
// stream ends when the cell goes, takes nothing any more, opens another watch,
// or its certificate expires.
func (in *Internal) getWatch(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	q := r.URL.Query()
	var after uint64
	if s := q.Get("revision"); s != "" {
		var err error
		if after, err = strconv.ParseUint(s, 10, 64); err != nil {
			return badRequest("revision " + strconv.Quote(s) + " is not a number")
		}
	}
	ctx, cancel := context.WithDeadline(r.Context(), r.TLS.PeerCertificates[0].NotAfter)
	defer cancel()

	watcher := in.hub.Watch(cell.Name, api.Epoch(q.Get("epoch")), api.Revision(after))
	defer watcher.Close()
	watcher.Groups(func(g *policy.SecurityGroup) bool { return concerns(cell, g) })
	// It was looked at before there was a watch for a revocation to end.
	if err := in.admit(cell); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	stream := http.NewResponseController(w)
	lines := json.NewEncoder(pieces{w})
	in.log.Info("cell watches", "cell", cell.Name, "from", r.RemoteAddr, "epoch", q.Get("epoch"), "revision", after)
	for {
		event, err := watcher.Next(ctx)
		if err == nil {
			if err = stream.SetWriteDeadline(time.Now().Add(in.writeTimeout)); err == nil {
				if err = lines.Encode(event); err == nil {
					err = stream.Flush()
				}
			}
		}
		if err != nil {
			// The answer has begun: ending the stream is all that can be said.
			in.log.Info("cell's watch ended", "cell", cell.Name, "reason", err)
			return nil
		}
	}
}

// concerns reports whether a security group may hold for a container of the cell.
// Where the credential names spaces by their names, groups may name them by GUID, and
// the cell is told of all.
func concerns(cell ca.Peer, g *policy.SecurityGroup) bool {
	if g.RunningDefault || g.StagingDefault {
		return true
	}
	for _, s := range cell.Spaces {
		if s.GUID == "" || slices.Contains(g.RunningSpaces, s.GUID) || slices.Contains(g.StagingSpaces, s.GUID) {
			return true
		}
	}
	return false
}

// pieceSize is what HTTP/2's server takes into one frame by itself.
const pieceSize = 4 << 10

// pieces writes in small pieces. The connection keeps a buffer of the largest
// frame that it ever wrote, for as long as it stands; with a thousand cells that
// is the difference between 4 and 16 MiB.
type pieces struct{ io.Writer }

func (p pieces) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = p.Writer.Write(b[n:min(n+pieceSize, len(b))])
		n += k
	}
	return n, err
}
