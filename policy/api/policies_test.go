package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tulle/policy"
)

// body is a request of one policy, web to db, with its destination's rest.
func body(rest string) string {
	return `{"policies":[{"source":{"id":"web"},"destination":{"id":"db",` + rest + `}}]}`
}

const (
	unmarshal = "mapper: unmarshal json: "
	validate  = "mapper: validate policies: "
)

func TestDecodePolicies(t *testing.T) {
	one := func(proto policy.Protocol, start, end uint16) []policy.Policy {
		return []policy.Policy{{Source: "web", Destination: "db", Protocol: proto, Ports: policy.PortRange{Start: start, End: end}}}
	}
	for _, c := range []struct {
		name    string
		version Version
		body    string
		want    []policy.Policy
		err     string // exact, or its beginning where it ends with "…"
	}{
		{"one port", V1, body(`"protocol":"tcp","ports":{"start":80,"end":80}`), one(policy.TCP, 80, 80), ""},
		{"a range", V1, body(`"protocol":"udp","ports":{"start":1,"end":65535}`), one(policy.UDP, 1, 65535), ""},
		{"a total is ignored", V1, strings.Replace(body(`"protocol":"tcp","ports":{"start":80,"end":80}`), "{", `{"total_policies":77,`, 1), one(policy.TCP, 80, 80), ""},
		{"unknown fields are ignored", V1, body(`"type":"app","ips":[],"protocol":"tcp","ports":{"start":80,"end":80,"x":1}`), one(policy.TCP, 80, 80), ""},
		{"field names in any case", V1, `{"Policies":[{"SOURCE":{"ID":"web"},"Destination":{"Id":"db","protocol":"tcp","ports":{"Start":80,"End":80}}}]}`, one(policy.TCP, 80, 80), ""},
		{"an app to itself", V1, `{"policies":[{"source":{"id":"a"},"destination":{"id":"a","protocol":"tcp","ports":{"start":1,"end":1}}}]}`,
			[]policy.Policy{{Source: "a", Destination: "a", Protocol: policy.TCP, Ports: policy.PortRange{Start: 1, End: 1}}}, ""},
		{"an empty tag is no tag", V1, body(`"tag":"","protocol":"tcp","ports":{"start":80,"end":80}`), one(policy.TCP, 80, 80), ""},

		{"no json", V1, `hello`, nil, unmarshal + "invalid character 'h' looking for beginning of value"},
		{"nothing", V1, ``, nil, unmarshal + "unexpected end of JSON input"},
		{"cut off", V1, `{"policies":[`, nil, unmarshal + "unexpected end of JSON input"},
		{"two values", V1, `{} {}`, nil, unmarshal + "invalid character '{' after top-level value"},
		{"a list", V1, `[]`, nil, unmarshal + "json: cannot unmarshal array into Go value of type api.Policies"},
		{"port as text", V1, body(`"protocol":"tcp","ports":{"start":"80","end":80}`), nil, unmarshal + "json: cannot unmarshal string into Go struct field …"},
		{"a fraction of a port", V1, body(`"protocol":"tcp","ports":{"start":80.5,"end":81}`), nil, unmarshal + "json: cannot unmarshal number 80.5 into Go struct field …"},
		{"a port beyond all integers", V1, body(`"protocol":"tcp","ports":{"start":80,"end":99999999999999999999}`), nil, unmarshal + "json: cannot unmarshal number 99999999999999999999 into …"},

		{"null", V1, `null`, nil, validate + "missing policies"},
		{"no list", V1, `{}`, nil, validate + "missing policies"},
		{"null list", V1, `{"policies":null}`, nil, validate + "missing policies"},
		{"empty list", V1, `{"policies":[]}`, nil, validate + "missing policies"},
		{"null policy", V1, `{"policies":[null]}`, nil, validate + "missing source id"},
		{"no source", V1, `{"policies":[{"destination":{"id":"db"}}]}`, nil, validate + "missing source id"},
		{"no destination", V1, `{"policies":[{"source":{"id":"web"}}]}`, nil, validate + "missing destination id"},
		{"no protocol", V1, body(`"ports":{"start":80,"end":80}`), nil, validate + "invalid destination protocol, specify either udp or tcp"},
		{"upper case", V1, body(`"protocol":"TCP","ports":{"start":80,"end":80}`), nil, validate + "invalid destination protocol, specify either udp or tcp"},
		{"icmp", V1, body(`"protocol":"icmp","ports":{"start":80,"end":80}`), nil, validate + "invalid destination protocol, specify either udp or tcp"},
		{"the protocol comes before the ports", V1, body(`"protocol":"all","ports":{"start":90,"end":80}`), nil, validate + "invalid destination protocol, specify either udp or tcp"},
		{"backwards", V1, body(`"protocol":"tcp","ports":{"start":90,"end":80}`), nil, validate + "invalid port range 90-80, start must be less than or equal to end"},
		{"start without end", V1, body(`"protocol":"tcp","ports":{"start":90}`), nil, validate + "invalid port range 90-0, start must be less than or equal to end"},
		{"backwards comes before too high", V1, body(`"protocol":"tcp","ports":{"start":70001,"end":70000}`), nil, validate + "invalid port range 70001-70000, start must be less than or equal to end"},
		{"below zero", V1, body(`"protocol":"tcp","ports":{"start":-1,"end":80}`), nil, validate + "invalid start port -1, must be in range 1-65535"},
		{"no ports", V1, body(`"protocol":"tcp"`), nil, validate + "missing start port"},
		{"from zero", V1, body(`"protocol":"tcp","ports":{"start":0,"end":70000}`), nil, validate + "missing start port"},
		{"too high", V1, body(`"protocol":"tcp","ports":{"start":80,"end":65536}`), nil, validate + "invalid end port 65536, must be in range 1-65535"},
		{"tag of a source", V1, `{"policies":[{"source":{"id":"web","tag":"0001"},"destination":{"id":"db","protocol":"tcp","ports":{"start":80,"end":80}}}]}`, nil, validate + "tags may not be specified"},
		{"tag of a destination", V1, body(`"tag":"0001","protocol":"tcp","ports":{"start":80,"end":80}`), nil, validate + "tags may not be specified"},
		{"tags come last", V1, body(`"tag":"0001","protocol":"tcp","ports":{"start":80,"end":65536}`), nil, validate + "invalid end port 65536, must be in range 1-65535"},
		{"the first bad policy wins", V1, `{"policies":[{"source":{"id":"a"},"destination":{"id":"b","protocol":"tcp","ports":{"start":1,"end":1}}},{"source":{"id":"a"}},{}]}`, nil, validate + "missing destination id"},

		{"v0", V0, body(`"protocol":"udp","port":7000`), one(policy.UDP, 7000, 7000), ""},
		{"v0 does not know ranges", V0, body(`"protocol":"udp","ports":{"start":80,"end":80}`), nil, validate + "missing port"},
		{"v0 port 0", V0, body(`"protocol":"tcp","port":0`), nil, validate + "missing port"},
		{"v0 below zero", V0, body(`"protocol":"tcp","port":-5`), nil, validate + "invalid port -5, must be in range 1-65535"},
		{"v0 too high", V0, body(`"protocol":"tcp","port":70000`), nil, validate + "invalid port 70000, must be in range 1-65535"},
		{"v0 no protocol", V0, body(`"port":70000`), nil, validate + "invalid destination protocol, specify either udp or tcp"},
		{"v0 tag", V0, body(`"tag":"1","protocol":"tcp","port":80`), nil, validate + "tags may not be specified"},
		{"v0 empty", V0, `{}`, nil, validate + "missing policies"},
		{"v0 no json", V0, `{`, nil, unmarshal + "unexpected end of JSON input"},
	} {
		got, err := c.version.DecodePolicies([]byte(c.body))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if start, cut := strings.CutSuffix(c.err, "…"); text != c.err && !(cut && strings.HasPrefix(text, start)) {
			t.Errorf("%s: error %q, want %q", c.name, text, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestEncodePolicies(t *testing.T) {
	ps := []policy.Policy{
		{Source: "a", Destination: "b", Protocol: policy.TCP, Ports: policy.PortRange{Start: 7000, End: 7010}},
		{Source: "b", Destination: "c", Protocol: policy.UDP, Ports: policy.PortRange{Start: 53, End: 53}},
	}
	for _, c := range []struct {
		name    string
		version Version
		ps      []policy.Policy
		want    string
	}{
		{"v1", V1, ps, `{"total_policies":2,"policies":[` +
			`{"source":{"id":"a"},"destination":{"id":"b","protocol":"tcp","ports":{"start":7000,"end":7010}}},` +
			`{"source":{"id":"b"},"destination":{"id":"c","protocol":"udp","ports":{"start":53,"end":53}}}]}`},
		{"v0 leaves ranges out", V0, ps, `{"total_policies":1,"policies":[{"source":{"id":"b"},"destination":{"id":"c","protocol":"udp","port":53}}]}`},
		{"v1 empty", V1, nil, `{"total_policies":0,"policies":[]}`},
		{"v0 empty", V0, ps[:1], `{"total_policies":0,"policies":[]}`},
	} {
		got, err := c.version.EncodePolicies(c.ps)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %s, %v\nwant %s", c.name, got, err, c.want)
		}
	}
}

// The lists are arrays, never null: clients of the original range over them.
func TestListsAreNeverNull(t *testing.T) {
	for want, v := range map[string]any{
		`{"total_policies":0,"policies":[]}`: Policies{},
		`{"tags":[]}`:                        Tags{},
		`{"apps":[]}`:                        Apps{},
		`{"cells":[]}`:                       &Cells{},
		`{"endpoints":[],"revision":7}`:      Endpoints{Revision: 7},
	} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("%T: got %s, %v, want %s", v, got, err, want)
		}
	}
}

func TestTags(t *testing.T) {
	got, err := json.Marshal(NewTags([]AppTag{{App: "a", Tag: 1}, {App: "b", Tag: 0xABC}}))
	want := `{"tags":[{"id":"a","tag":"0001","type":"app"},{"id":"b","tag":"0ABC","type":"app"}]}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

func TestParseVersion(t *testing.T) {
	for _, good := range []Version{V0, V1} {
		if got, err := ParseVersion(string(good)); got != good || err != nil {
			t.Errorf("%s: got %q, %v", good, got, err)
		}
	}
	if _, err := ParseVersion("v7"); err == nil || err.Error() != "api version 'v7' not supported" {
		t.Errorf("v7: got %v", err)
	}
}

func TestErrorBody(t *testing.T) {
	for text, want := range map[string]string{
		"policy quota exceeded": `{"error": "policy quota exceeded"}`,
		`a "quoted" \ word`:     `{"error": "a \"quoted\" \\ word"}`,
		"a <b> & c":             `{"error": "a <b> & c"}`,
		"":                      `{"error": ""}`,
		"two\nlines":            `{"error": "two\nlines"}`,
	} {
		got := ErrorBody(text)
		if string(got) != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if back, ok := ParseError(got); !ok || back != text {
			t.Errorf("%s is read as %q, %v", got, back, ok)
		}
	}
	for _, bad := range []string{"", "404 page not found", "{}", `{"error":7}`, `[]`} {
		if text, ok := ParseError([]byte(bad)); ok {
			t.Errorf("%q is read as the error %q", bad, text)
		}
	}
}

// FuzzDecodePolicies: the body comes from anybody with a token. Each version
// gives policies exactly when it gives no error; they are valid, and written and
// read again they are the same. An error makes an error body that is JSON.
func FuzzDecodePolicies(f *testing.F) {
	f.Add([]byte(body(`"protocol":"tcp","ports":{"start":80,"end":90}`)))
	f.Add([]byte(body(`"protocol":"udp","port":7000`)))
	f.Add([]byte(body(`"tag":"0001","protocol":"tcp","ports":{"start":80,"end":65536}`)))
	f.Add([]byte(`{"policies":null}`))
	f.Add([]byte(`{"policies":[{"source":{"id":"\ud800"},"destination":{"id":"\u0000","protocol":"tcp","port":1,"ports":{"start":1,"end":1}}}]}`))
	f.Add([]byte(`{"a\"b`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, v := range []Version{V0, V1} {
			ps, err := v.DecodePolicies(text)
			if (err == nil) != (len(ps) > 0) {
				t.Fatalf("%s: %d policies with error %v", v, len(ps), err)
			}
			if err != nil {
				if b := ErrorBody(err.Error()); !json.Valid(b) {
					t.Fatalf("%s: error body %s", v, b)
				}
				continue
			}
			for _, p := range ps {
				if err := p.Validate(); err != nil {
					t.Fatalf("%s: %v: %v", v, p, err)
				}
			}
			written, err := v.EncodePolicies(ps)
			if err != nil {
				t.Fatal(err)
			}
			again, err := v.DecodePolicies(written)
			if diff := cmp.Diff(ps, again); err != nil || diff != "" {
				t.Fatalf("%s: read again: %v\n%s", v, err, diff)
			}
		}
	})
}

// FuzzParseError: an error body comes from whatever answers at the server's
// address. What is read survives being written.
func FuzzParseError(f *testing.F) {
	f.Add([]byte(`{"error": "policy quota exceeded"}`))
	f.Add([]byte(`{"Error":"x","metadata":{}}`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, ok := ParseError(b)
		if !ok {
			return
		}
		if again, ok := ParseError(ErrorBody(text)); !ok || again != text {
			t.Errorf("%q is %q when read again, %v", text, again, ok)
		}
	})
}

// FuzzRegistry: the registry's answers come from the server to the command line.
// What is read is written and read again as the same.
func FuzzRegistry(f *testing.F) {
	f.Add([]byte(`{"apps":[{"guid":"g","name":"web","space":"s","space_guid":"sg","org":"o","org_guid":"og","instances":3}]}`))
	f.Add([]byte(`{"cells":[{"name":"c","kind":"silk","mode":"vxlan","underlay":"10.0.0.1","port":4789,"subnet":"10.255.1.0/24","renewed":"2026-01-02T03:04:05Z","alive":true}]}`))
	f.Add([]byte(`{"endpoints":[{"cell":"c","container":"x","address":"10.255.1.2","app":"g","generation":1,"incarnation":2}],"revision":9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, new(Apps), new(Apps))
		again(t, b, new(Cells), new(Cells))
		again(t, b, new(Endpoints), new(Endpoints))
	})
}

func again[T any](t *testing.T, text []byte, first, second *T) {
	if json.Unmarshal(text, first) != nil {
		return
	}
	written, err := json.Marshal(first)
	if err != nil {
		t.Fatalf("%T does not encode: %v", first, err)
	}
	if err := json.Unmarshal(written, second); err != nil {
		t.Fatalf("%s: %v", written, err)
	}
	rewritten, err := json.Marshal(second)
	if err != nil || string(rewritten) != string(written) {
		t.Fatalf("%s\nbecomes\n%s, %v", written, rewritten, err)
	}
}

// What a decoder cuts off must not pass: every proper beginning of a good body
// is refused.
func TestEveryCutOffBodyIsRefused(t *testing.T) {
	whole := body(`"protocol":"tcp","ports":{"start":80,"end":90}`)
	for n := range len(whole) {
		if ps, err := V1.DecodePolicies([]byte(whole[:n])); err == nil {
			t.Errorf("%q is read as %v", whole[:n], ps)
		}
	}
}
