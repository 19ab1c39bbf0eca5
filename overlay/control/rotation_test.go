package control

import (
	"context"
	"log/slog"
	"testing"
)

// keys is a KeyHandler that has rotated.
type keys struct{}

func (keys) RotateKey(_ context.Context, r RotateKey) (Rotation, error) {
	return Rotation{Serial: r.Follow + 1, Step: RotationDone}, nil
}

// Only root and the daemon's own user change the cell's keys, whatever else a grant
// lets others do.
func TestRotateKeyIsForTheOperator(t *testing.T) {
	const self, user = 1000, 2000
	s := &Server{Keys: keys{}, Authorizer: NewAuthorizer(self, []Grant{AnyApp(user)}), Log: slog.New(slog.DiscardHandler)}
	for uid, ok := range map[uint32]bool{0: true, self: true, user: false, 3000: false} {
		got, _, err := s.handle(t.Context(), Peer{UID: uid}, received{payload: []byte(`{"op":"rotate-key","body":{"follow":6}}`)}, nil)
		if r, is := got.(Rotation); ok && (err != nil || !is || r.Serial != 7) || !ok && codeOf(err) != CodeNotAllowed {
			t.Errorf("uid %d: %+v, %v", uid, got, err)
		}
	}
	s.Keys = nil
	if _, _, err := s.handle(t.Context(), Peer{}, received{payload: []byte(`{"op":"rotate-key","body":{}}`)}, nil); codeOf(err) != CodeUnavailable {
		t.Errorf("a daemon without keys: %v", err)
	}
}
