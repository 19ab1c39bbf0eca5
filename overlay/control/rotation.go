package control

import (
	"context"
	"time"

	"tulle/policy/api"
)

// RotateKey asks for another tunnel key. It begins a rotation, or joins the one that
// is under way, and is answered at once. With Follow it changes nothing, and is
// answered when there is news after that Serial, or after some time without any.
type RotateKey struct {
	Follow uint64 `json:"follow,omitempty"`
}

// RotationStep is how far a rotation is.
type RotationStep string

// Steps, in their order.
const (
	RotationBegins    RotationStep = "begins"         // the next key is made and published beside the current one
	RotationTells     RotationStep = "peers are told" // until all have acknowledged it
	RotationMoves     RotationStep = "sessions move"  // the next key is the current one; sessions with it are made
	RotationPublishes RotationStep = "new key alone"  // is published, until all have acknowledged that
	RotationDone      RotationStep = "done"           // the old key is forgotten
	RotationFailed    RotationStep = "failed"         // nothing was changed; Error says why
)

// Ended says whether nothing follows. So it is before the first rotation, too.
func (s RotationStep) Ended() bool { return s == "" || s == RotationDone || s == RotationFailed }

// Rotation is a change of the cell's tunnel key as it stands. It goes on in the
// daemon whether anybody follows it or not.
type Rotation struct {
	Serial uint64        `json:"serial"` // grows with every news
	Step   RotationStep  `json:"step"`
	Joined bool          `json:"joined,omitempty"` // it was under way already
	Since  time.Time     `json:"since,omitzero"`
	Old    api.TunnelKey `json:"old,omitzero"`
	New    api.TunnelKey `json:"new,omitzero"`
	// Waiting are peers whose session is still the old key's. They are waited for
	// until Until, and so are cells that have not acknowledged.
	Waiting []string  `json:"waiting,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	// Static are the peers that were entered by hand: nobody tells them of the new
	// key, their own configuration must be changed.
	Static []string `json:"static,omitempty"`
	Error  string   `json:"error,omitempty"`
}

// KeyHandler changes the cell's own keys. Only the daemon's own user and root may
// ask. The rest is as of Handler.
type KeyHandler interface {
	RotateKey(ctx context.Context, r RotateKey) (Rotation, error)
}

// RotateKey begins, joins or follows a rotation of the cell's tunnel key.
func (c *Client) RotateKey(ctx context.Context, r RotateKey) (Rotation, error) {
	var got Rotation
	err := c.do(ctx, opRotateKey, r, &got)
	return got, err
}

func (s *Server) rotateKey(ctx context.Context, p Peer, r RotateKey) (Rotation, error) {
	if err := s.Authorizer.Rotate(p); err != nil {
		return Rotation{}, err
	}
	if s.Keys == nil {
		return Rotation{}, Errorf(CodeUnavailable, "this daemon has no keys to be rotated")
	}
	return s.Keys.RotateKey(ctx, r)
}
