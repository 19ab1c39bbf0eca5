package cli

import (
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestStatusWithoutADaemon(t *testing.T) {
	s := newServer(t)
	socket := filepath.Join(t.TempDir(), "none.sock")
	got := s.tulle("status --socket " + socket)
	if got.status != 1 || !strings.Contains(got.err, socket) || got.out != "FAILED\n" {
		t.Errorf("got %+v", got)
	}
	if len(s.asked) != 0 {
		t.Errorf("the policy server was asked %v", s.asked)
	}
}

func TestVersion(t *testing.T) {
	s := newServer(t)
	var b build
	if got := s.tulle("version --output json"); json.Unmarshal([]byte(got.out), &b) != nil || b.Version == "" || b.Go == "" {
		t.Errorf("got %+v", got)
	}
	if got := s.tulle("version"); !strings.HasPrefix(got.out, "tulle version ") {
		t.Errorf("got %+v", got)
	}
}
