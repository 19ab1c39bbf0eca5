package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tulle/policy/api"
)

// TestPolicyWait shows what is asked, what is said, and the status, for each way
// a wait can end.
func TestPolicyWait(t *testing.T) {
	silent := api.SilentCell{Cell: "cell-7", Since: time.Now().Add(-200 * time.Second)}
	for _, c := range []struct {
		line, asked string
		answer      api.Enforced
		status      int
		out, err    string
	}{
		{"policy wait", "wait=30s", api.Enforced{Revision: 57, Cells: "41/41", Milliseconds: 180},
			0, "revision 57: 41/41 (180 ms)\n", ""},
		{"policy wait --revision 57 --timeout 2m", "revision=57&wait=2m0s", api.Enforced{Revision: 57, Cells: "0/0"},
			0, "revision 57: 0/0 (0 ms)\n", ""},
		{"policy wait --revision 0 --timeout 0s", "revision=0&wait=0s", api.Enforced{Cells: "1/1"},
			0, "revision 0: 1/1 (0 ms)\n", ""},
		{"policy wait", "wait=30s", api.Enforced{Revision: 57, Cells: "40/41", Milliseconds: 9, Silent: []api.SilentCell{silent}},
			2, "revision 57: 40/41, cell-7 silent 3 min (9 ms)\nFAILED\n", "revision 57 may not be in force on cells that are silent\n"},
		{"policy wait --timeout 1s", "wait=1s", api.Enforced{Revision: 57, Cells: "39/41", Milliseconds: 1000, Silent: []api.SilentCell{silent}, Late: []string{"cell-8"}},
			1, "revision 57: 39/41, cell-7 silent 3 min, cell-8 late (1000 ms)\nFAILED\n", "revision 57 is not in force everywhere after 1s\n"},
	} {
		var asked string
		s := &server{Server: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = r.URL.RequestURI()
			_ = json.NewEncoder(w).Encode(c.answer)
		}))}
		if got := s.tulle(c.line); got != (result{c.status, c.out, c.err}) {
			t.Errorf("%s: got %+v", c.line, got)
		}
		if want := "/v1/enforced?" + c.asked; asked != want {
			t.Errorf("%s: asked %s, want %s", c.line, asked, want)
		}
		got := s.tulle(c.line + " --output json")
		if want, _ := json.Marshal(c.answer); got.status != c.status || !equalJSON(t, got.out, string(want)) {
			t.Errorf("%s as JSON: %+v", c.line, got)
		}
		s.Close()
	}
}

func equalJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var va, vb any
	for text, v := range map[string]*any{a: &va, b: &vb} {
		if err := json.NewDecoder(strings.NewReader(text)).Decode(v); err != nil && err != io.EOF {
			t.Errorf("%v: %s", err, text)
		}
	}
	return fmt.Sprint(va) == fmt.Sprint(vb)
}

func TestPolicyWaitWrongUsage(t *testing.T) {
	s := newServer(t)
	for line, want := range map[string]string{
		"policy frob":                 `"frob" is no command of tulle policy`,
		"policy wait 5":               `unexpected argument "5"`,
		"policy wait --timeout 11m":   "--timeout 11m0s: must be from 0s to 10m0s",
		"policy wait --timeout=-1s":   "--timeout -1s: must be from 0s to 10m0s",
		"policy wait --revision -1":   `invalid argument "-1" for "--revision" flag: strconv.ParseUint: parsing "-1": invalid syntax`,
		"policy wait --revision next": `invalid argument "next" for "--revision" flag: strconv.ParseUint: parsing "next": invalid syntax`,
	} {
		if got := s.tulle(line); got.status != 1 || !strings.HasPrefix(got.err, "Incorrect Usage: "+want+"\n") {
			t.Errorf("%s: %+v", line, got)
		}
	}
	if len(s.asked) != 0 {
		t.Errorf("the server was asked %v", s.asked)
	}
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 31 * time.Second: "31 s", 119 * time.Second: "119 s", 3 * time.Minute: "3 min",
		119 * time.Minute: "119 min", 50 * time.Hour: "50 h",
	} {
		if got := roughly(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
