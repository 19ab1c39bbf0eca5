package cli

import (
	"strings"
	"testing"
)

func TestAppsByHand(t *testing.T) {
	s := newServer(t)
	if got := s.tulle("apps add api --space prod --org acme"); got.status != 0 || got.out != "new-guid\n" || s.sent != `{"name":"api","space":"prod","org":"acme"}` {
		t.Errorf("add: %+v, sent %s", got, s.sent)
	}
	if got := s.tulle("apps add api --guid "+stray, "TULLE_SPACE=stage"); got.status != 0 || s.sent != `{"guid":"`+stray+`","name":"api","space":"stage"}` {
		t.Errorf("add in the environment's space: %+v, sent %s", got, s.sent)
	}
	if got := s.tulle("apps add api --output json"); got.status != 0 || !strings.Contains(got.out, `"guid": "new-guid"`) {
		t.Errorf("add, as JSON: %+v", got)
	}
	for _, name := range []string{"cache", cache, "cache --space shared --org infra"} {
		if got := s.tulle("apps remove " + name); got.status != 0 || got.out != "OK\n" {
			t.Errorf("remove %s: %+v", name, got)
		}
	}
	for call, want := range map[string]string{
		"apps remove web":             "app has 2 containers",
		"apps remove db":              "App 'db' is ambiguous",
		"apps remove cache --space x": "App 'cache' not found",
		"apps remove":                 "the required argument `APP` was not provided",
		"apps add":                    "the required argument `NAME` was not provided",
		"apps fly":                    `unexpected argument "fly"`,
	} {
		if got := s.tulle(call); got.status != 1 || !strings.Contains(got.err, want) {
			t.Errorf("%s: %+v; want %q", call, got, want)
		}
	}
}
