package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tulle/policy/api"
	"tulle/policy/hub"
	"tulle/policy/server"
	"tulle/policy/store"
)

// strict decodes one JSON value that has no field but v's.
func strict(body string, v any) error {
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// sinceWait takes out of a receipt what differs from run to run.
func sinceWait(e api.Enforced) api.Enforced { e.Milliseconds = 0; return e }

// web on one, db on two and three, another app on four: a change is answered
// when the three have it in force, each over its own mutual-TLS connection.
func TestChangeIsAnsweredWithItsReceipt(t *testing.T) {
	w := start(t)
	cells := []*watcher{w.cell("one", "web"), w.cell("two", "db"), w.cell("three", "db"), w.cell("four", "other")}
	cells[3].hold() // is concerned by nothing, and may sleep

	got := ask[api.Changed](w, "POST", "/v1/policies?wait=20s", w.write, body("web db tcp 5432 5432"))
	want := api.Enforced{Revision: got.Revision, Cells: "3/3", Silent: []api.SilentCell{}}
	if got.Enforced == nil {
		t.Fatalf("no receipt: %+v", got)
	}
	if diff := cmp.Diff(want, sinceWait(*got.Enforced)); diff != "" {
		t.Errorf("create (-want +got):\n%s", diff)
	}
	for _, c := range cells[:3] {
		c.mu.Lock()
		if len(c.policies) != 1 {
			t.Errorf("%s was counted and has %v in force", c.Cell(), c.policies)
		}
		c.mu.Unlock()
	}

	// Again, which changes nothing: whom the policies concern is counted.
	again := ask[api.Changed](w, "POST", "/v1/policies?wait=20s", w.write, body("web db tcp 5432 5432"))
	if again.Revision != got.Revision || again.Enforced.Cells != "3/3" {
		t.Errorf("the same again: %+v %+v, want revision %d and 3/3", again, again.Enforced, got.Revision)
	}
	if e := ask[api.Enforced](w, "GET", fmt.Sprintf("/v1/enforced?revision=%d", got.Revision), w.write, ""); e.Cells != "3/3" {
		t.Errorf("asked for by its revision: %+v", e)
	}

	// One that does not come along is late, and waited for.
	cells[1].hold()
	gone := ask[api.Changed](w, "POST", "/v1/policies/delete?wait=200ms", w.write, body("web db tcp 5432 5432"))
	want = api.Enforced{Revision: gone.Revision, Cells: "2/3", Silent: []api.SilentCell{}, Late: []string{"two"}}
	if diff := cmp.Diff(want, sinceWait(*gone.Enforced)); diff != "" {
		t.Errorf("delete, two being late (-want +got):\n%s", diff)
	}
	if gone.Enforced.Milliseconds < 200 {
		t.Errorf("waited %d ms of 200 for a cell that is late", gone.Enforced.Milliseconds)
	}
	answered := make(chan api.Enforced, 1)
	go func() {
		answered <- ask[api.Enforced](w, "GET", fmt.Sprintf("/v1/enforced?revision=%d&wait=20s", gone.Revision), w.write, "")
	}()
	cells[1].release()
	if e := <-answered; e.Cells != "3/3" || e.Late != nil {
		t.Errorf("once two came along: %+v", e)
	}

	// Without a wait there is the revision alone.
	plain := ask[api.Changed](w, "POST", "/v1/policies", w.write, body("web other tcp 1 1"))
	if plain.Enforced != nil || plain.Revision <= gone.Revision {
		t.Errorf("without wait: %+v", plain)
	}
	// Without a revision everyone counts, at the present one; four still sleeps.
	everyone := ask[api.Enforced](w, "GET", "/v1/enforced?wait=300ms", w.write, "")
	want = api.Enforced{Revision: plain.Revision, Cells: "3/4", Silent: []api.SilentCell{}, Late: []string{"four"}}
	if diff := cmp.Diff(want, sinceWait(everyone)); diff != "" {
		t.Errorf("everyone (-want +got):\n%s", diff)
	}
}

// A cell that says nothing is named, with its last sign of life, and is not
// waited for.
func TestSilentCellIsNamed(t *testing.T) {
	w := start(t, func(o *server.Options) { o.InternalOptions.Hub = hub.Options{SilentAfter: 2 * time.Second} })
	w.cell("one", "web")
	dead := w.cell("two", "db")
	dead.stop()
	got := ask[api.Changed](w, "POST", "/v1/policies?wait=1m", w.admin, body("web db tcp 1 1"))
	e := got.Enforced
	if e == nil || e.Cells != "1/2" || len(e.Silent) != 1 || e.Silent[0].Cell != "two" || e.Late != nil {
		t.Fatalf("with a dead cell: %+v", e)
	}
	if silent := time.Since(e.Silent[0].Since); silent < 2*time.Second || silent > time.Minute {
		t.Errorf("silent for %s", silent)
	}
	if e.Milliseconds > 20_000 {
		t.Errorf("waited %d ms for a silent cell", e.Milliseconds)
	}
}

func TestReceiptRefusals(t *testing.T) {
	w := start(t)
	w.cell("one", "web")
	ok := body("web db tcp 1 1")
	for _, c := range []struct {
		method, path, token, body string
		status                    int
		text                      string
	}{
		{"GET", "/v1/enforced", "", "", 401, "missing authorization header"},
		{"POST", "/v1/policies?wait=1s", "", ok, 401, "missing authorization header"},
		{"GET", "/v1/enforced?revision=x", w.write, "", 400, `revision "x" is not a number`},
		{"GET", "/v1/enforced?revision=-1", w.write, "", 400, `revision "-1" is not a number`},
		{"GET", "/v1/enforced?revision=99", w.write, "", 404, "revision 99 does not exist, the present one is 2"},
		{"GET", "/v1/enforced?wait=5", w.write, "", 400, `wait "5" is not a time from 0s to 10m0s`},
		{"GET", "/v1/enforced?wait=-1s", w.write, "", 400, `wait "-1s" is not a time from 0s to 10m0s`},
		{"GET", "/v1/enforced?wait=601s", w.write, "", 400, `wait "601s" is not a time from 0s to 10m0s`},
		{"POST", "/v1/policies?wait=x", w.write, ok, 400, `wait "x" is not a time from 0s to 10m0s`},
		{"POST", "/v1/policies/delete?wait=x", w.write, ok, 400, `wait "x" is not a time from 0s to 10m0s`},
		{"POST", "/v1/policies", w.write, `{"policies":[]}`, 400, "mapper: validate policies: missing policies"},
		{"POST", "/v1/policies/delete", w.write, `{}`, 400, "mapper: validate policies: missing policies"},
	} {
		got := w.call(c.method, c.path, c.token, c.body)
		if want := string(api.ErrorBody(c.text)); got.Status != c.status || got.Body != want {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, got.Status, got.Body, c.status, want)
		}
	}
	ps, err := w.store.Policies(t.Context(), store.Filter{})
	w.must(err)
	if len(ps) != 0 {
		t.Errorf("refused requests left %v", ps)
	}
}
