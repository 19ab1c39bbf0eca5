package cli

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/overlay/control"
	"tulle/policy/api"
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

// cell is the daemon of this host as its socket shows it.
type cell struct{ status control.Status }

func (cell) Attach(context.Context, control.AttachRequest) (control.Attached, error) {
	return control.Attached{}, errors.New("nothing is attached here")
}
func (cell) Detach(context.Context, control.Peer, control.Detach) error { return nil }
func (cell) GC(context.Context, control.Peer, control.GC) (control.Collected, error) {
	return control.Collected{}, nil
}
func (c cell) List(context.Context) ([]control.Endpoint, error) { return c.status.Endpoints, nil }
func (c cell) Status(context.Context) (control.Status, error)   { return c.status, nil }

// serveCell answers as a daemon on a socket until the test ends.
func serveCell(t *testing.T, status control.Status) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", "celld.sock")
	l, err := control.Listen(socket, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := &control.Server{Handler: cell{status}, Authorizer: control.NewAuthorizer(uint32(os.Geteuid()), nil), Log: slog.New(slog.DiscardHandler)}
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestStatus(t *testing.T) {
	status := control.Status{
		Cell: "cell-1", Lease: netip.MustParsePrefix("10.255.7.0/24"), Underlay: netip.MustParseAddrPort("192.0.2.1:4789"), PID: 42, Mode: api.ModeWireGuard,
		Epoch: "e", Revision: 9, Connected: true, Policies: 3, Flows: 2,
		Peers:  []api.Peer{{Name: "cell-2"}},
		Remote: []api.Endpoint{},
		Endpoints: []control.Endpoint{
			{Container: "run-1", Address: netip.MustParseAddr("10.255.7.1"), App: web, AppName: "web", Instance: "0", Tag: 10, Lifeline: control.LifelineConnection},
			{Container: "c\x1b[2J", Address: netip.MustParseAddr("10.255.7.2"), App: db, Lifeline: control.LifelineNone, Waiting: true},
		},
	}
	s := newServer(t)
	socket := serveCell(t, status)
	got := s.tulle("status --socket " + socket)
	want := `cell:               cell-1
lease:              10.255.7.0/24
mode:               wireguard
underlay:           192.0.2.1:4789
pid:                42
policy server:      connected
revision:           9
policies:           3
flows:              2
peers:              1
remote endpoints:   0

address      app                                    instance   container   tag    lifeline
10.255.7.1   web                                    0          run-1       000A   connection
10.255.7.2   22222222-aaaa-4bbb-8ccc-000000000002              c?[2J       0000   none (waiting for its attacher)
`
	if diff := cmp.Diff(want, got.out); diff != "" || got.status != 0 {
		t.Errorf("status %d, %s (-want +got):\n%s", got.status, got.err, diff)
	}
	got = s.tulle("status --output json --socket " + socket)
	var read control.Status
	if err := json.Unmarshal([]byte(got.out), &read); err != nil || got.status != 0 {
		t.Fatalf("%+v: %v", got, err)
	}
	if !reflect.DeepEqual(read, status) {
		t.Errorf("as JSON it is %+v, want %+v", read, status)
	}
	status.Connected, status.Endpoints = false, nil
	if got := s.tulle("status --socket " + serveCell(t, status)); !strings.Contains(got.out, "not connected, the last table stands\n") || strings.Contains(got.out, "address") {
		t.Errorf("without a server and containers: %s", got.out)
	}
	status.Plain = []string{"cell-3", "silk-1"}
	if got := s.tulle("status --socket " + serveCell(t, status)); !strings.HasPrefix(got.out, "PLAIN TEXT: ") || !strings.Contains(got.out, ": cell-3, silk-1\n\ncell:") {
		t.Errorf("with plain peers: %s", got.out)
	}
	status.Mode, status.Plain = api.ModeVXLAN, nil
	if got := s.tulle("status --socket " + serveCell(t, status)); !strings.Contains(got.out, "vxlan, PLAIN TEXT to every peer\n") {
		t.Errorf("in mode vxlan: %s", got.out)
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
