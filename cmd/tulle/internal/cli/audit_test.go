package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
)

func TestAudit(t *testing.T) {
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	answer := api.Audit{Next: 7, Entries: []api.AuditEntry{
		{ID: 8, At: at.Add(time.Second), Who: "cell one", From: "192.0.2.1", Action: api.LeaseGrant, Subject: "one", Revision: 41, After: json.RawMessage(`{"name":"one"}`)},
		{ID: 7, At: at, Who: "ev\x1b[2Jil", From: "192.0.2.9", Action: api.PolicyCreate, Subject: "web -> db tcp 80", Revision: 40},
	}}
	var asked string
	s := &server{Server: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RequestURI()
		_ = json.NewEncoder(w).Encode(answer)
	}))}
	defer s.Close()
	want := `id   time                   who        from        revision   action          subject
7    2026-11-20T10:00:00Z   ev?[2Jil   192.0.2.9   40         policy.create   web -> db tcp 80
8    2026-11-20T10:00:01Z   cell one   192.0.2.1   41         lease.grant     one

There are older ones: tulle audit --before 7
`
	if got := s.tulle("audit"); got != (result{0, want, ""}) || asked != "/v1/audit?limit=100" {
		t.Errorf("asked %s, got %+v", asked, got)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.tulle("audit --limit 2 --before 9 --output json"); got.status != 0 || !equalJSON(t, got.out, string(text)) || asked != "/v1/audit?before=9&limit=2" {
		t.Errorf("asked %s, got %+v", asked, got)
	}
	answer = api.Audit{}
	if got := s.tulle("audit"); got.status != 0 || strings.Count(got.out, "\n") != 1 {
		t.Errorf("no entries: %+v", got)
	}
	asked = ""
	for _, line := range []string{"audit --limit 0", "audit --limit 1001", "audit x"} {
		if got := s.tulle(line); got.status != 1 || !strings.HasPrefix(got.err, "Incorrect Usage: ") || asked != "" {
			t.Errorf("%s: asked %q, %+v", line, asked, got)
		}
	}
}
