package server_test

import (
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/server"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// FuzzAdmin sends anything to what the admin socket reads. Commands of our own are
// at the other end, and whoever else may open the socket. Whatever comes is done, or
// refused with a text; it is never a fault of the server.
func FuzzAdmin(f *testing.F) {
	db, err := sqlite.Open(f.Context(), filepath.Join(f.TempDir(), "fuzz.db"), sqlite.Options{Audit: 100, History: 100,
		Lease: store.LeaseConfig{Network: netip.MustParsePrefix("10.255.0.0/16"), Bits: 24, Lifetime: time.Hour}})
	if err != nil {
		f.Fatal(err)
	}
	roots, err := ca.Create(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	srv, err := server.New(f.Context(), server.Options{Store: db, Auth: everybody{}, Log: slog.New(slog.DiscardHandler),
		ExternalAddress: "127.0.0.1:0", InternalAddress: "127.0.0.1:0", InternalTLS: ca.ServerTLS(roots.Cells, certificate)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		srv.Close()
		db.Close()
	})
	admin := server.Admin(srv)
	targets := []struct{ method, path string }{{"POST", "/v1/peers"}, {"POST", "/v1/join-tokens"}}
	for n := range targets {
		for _, body := range []string{
			`{"name":"rack-7","underlay":"192.0.2.7","subnet":"10.255.9.0/24"}`,
			`{"name":"","underlay":"::","subnet":"10.0.0.0/33"}`,
			`{"name":"rack 7/silk","underlay":"10.255.1.1","subnet":"10.255.9.1/24","mode":"wireguard"}`,
			`{"Cell":"cell-1","Expires":"2026-01-01T00:00:00Z"}`, `{"Cell":"../x"}`,
			`{"name":"\u0000"}`, `{}`, `[]`, `null`, `{"unknown":1}`, "", "{", `{"name":"a"}{"name":"b"}`,
		} {
			f.Add(uint8(n), body)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, body string) {
		to := targets[int(n)%len(targets)]
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, httptest.NewRequest(to.method, to.path, strings.NewReader(body)))
		switch text, said := api.ParseError(w.Body.Bytes()); {
		case w.Code == 204 && w.Body.Len() == 0:
		case w.Code >= 400 && w.Code < 500 && said && text != "":
		default:
			t.Errorf("%s %s %q: %d %q", to.method, to.path, body, w.Code, w.Body)
		}
	})
}
