package server_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/mux"

	"tulle/docs"
	"tulle/policy/api"
	"tulle/policy/server"
)

// description is docs/openapi.json, checked against OpenAPI 3.1 itself.
var description = sync.OnceValues(func() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(docs.OpenAPI)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(loader.Context, openapi3.IsOpenAPI31OrLater())
})

func described(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := description()
	if err != nil {
		t.Fatalf("docs/openapi.json: %v", err)
	}
	return doc
}

// TestEveryRouteIsDescribed compares the routers with the description, in both
// directions.
func TestEveryRouteIsDescribed(t *testing.T) {
	w := start(t)
	doc := described(t)
	var routes, operations []string
	for _, router := range server.Routers(w.server) {
		w.must(router.Walk(func(r *mux.Route, _ *mux.Router, _ []*mux.Route) error {
			path, err := r.GetPathTemplate()
			if err != nil {
				return err
			}
			path = strings.Replace(path, "{guid:(?s:.+)}", "{guid}", 1)
			methods, err := r.GetMethods()
			if err != nil { // what is left of a path: answered 405
				return nil
			}
			for _, m := range methods {
				routes = append(routes, m+" "+path)
			}
			return nil
		}))
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			operations = append(operations, method+" "+path)
		}
	}
	slices.Sort(routes)
	slices.Sort(operations)
	if diff := cmp.Diff(routes, operations); diff != "" {
		t.Errorf("routes and their description (-served +described):\n%s", diff)
	}
}

func TestDescriptionIsServed(t *testing.T) {
	w := start(t)
	got := w.call("GET", "/v1/openapi.json", "", "")
	w.expect("the description", got, 200, string(docs.OpenAPI))
	if ct := got.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("as %s", ct)
	}
}

// agrees holds an answer to the description. Every test of this package that
// sends a request comes by here.
func agrees(t *testing.T, method, path string, status int, header http.Header, body []byte) {
	t.Helper()
	if err := disagreement(described(t), method, path, status, header, body); err != nil {
		t.Errorf("%s %.80s: the answer %d %.200q is not as described: %v", method, path, status, body, err)
	}
}

func disagreement(doc *openapi3.T, method, path string, status int, header http.Header, body []byte) error {
	path, _, _ = strings.Cut(path, "?")
	item := find(doc, path)
	if item == nil {
		if status == http.StatusNotFound {
			return nil
		}
		return fmt.Errorf("the path is not described")
	}
	operation := item.GetOperation(method)
	if operation == nil {
		if status == http.StatusMethodNotAllowed {
			return nil
		}
		return fmt.Errorf("the method is not described")
	}
	response := operation.Responses.Status(status)
	if response == nil {
		return fmt.Errorf("the status is not described")
	}
	if len(response.Value.Content) == 0 {
		if len(body) > 0 {
			return fmt.Errorf("no body is described")
		}
		return nil
	}
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("content type %q: %w", header.Get("Content-Type"), err)
	}
	content := response.Value.Content[media]
	if content == nil {
		return fmt.Errorf("content type %s is not described", media)
	}
	schema := content.Schema.Value
	var value any = string(body)
	if !schema.Type.Is("string") {
		if err := json.Unmarshal(body, &value); err != nil {
			return err
		}
	}
	return schema.VisitJSON(value, openapi3.EnableJSONSchema2020(), openapi3.MultiErrors())
}

// find is the described path that a request's path is of: the one with the
// fewest parameters.
func find(doc *openapi3.T, path string) *openapi3.PathItem {
	var best *openapi3.PathItem
	fewest := 100
	segments := strings.Split(path, "/")
	for template, item := range doc.Paths.Map() {
		parts := strings.Split(template, "/")
		parameters := strings.Count(template, "{")
		if len(parts) != len(segments) || parameters >= fewest {
			continue
		}
		fits := true
		for i, part := range parts {
			fits = fits && (part == segments[i] || strings.HasPrefix(part, "{") && segments[i] != "")
		}
		if fits {
			best, fewest = item, parameters
		}
	}
	return best
}

// agrees would be content with anything if nothing were ever compared.
func TestDisagreementIsFound(t *testing.T) {
	doc := described(t)
	text := http.Header{"Content-Type": {"text/plain; charset=utf-8"}}
	jsonType := http.Header{"Content-Type": {"application/json"}}
	for _, c := range []struct {
		name, method, path string
		status             int
		header             http.Header
		body               string
		want               string // "": agrees
	}{
		{"as described", "GET", "/v1/apps", 200, jsonType, `{"apps":[]}`, ""},
		{"with a query", "GET", "/v1/audit?limit=1", 200, jsonType, `{"entries":[]}`, ""},
		{"a field too few", "GET", "/v1/apps", 200, jsonType, `{}`, "apps"},
		{"a field too many", "GET", "/v1/apps", 200, jsonType, `{"apps":[],"more":1}`, "more"},
		{"null for a list", "GET", "/v1/apps", 200, jsonType, `{"apps":null}`, "null"},
		{"deep inside", "GET", "/v1/enforced", 200, jsonType, `{"revision":1,"cells":"1/1","ms":0,"silent":[{"cell":"a"}]}`, "since"},
		{"a pattern", "GET", "/v1/enforced", 200, jsonType, `{"revision":1,"cells":"1 of 1","ms":0,"silent":[]}`, "pattern"},
		{"another type of content", "GET", "/v1/apps", 200, text, `{"apps":[]}`, "content type text/plain is not described"},
		{"another status", "GET", "/v1/apps", 418, jsonType, `{"apps":[]}`, "the status is not described"},
		{"another method", "PUT", "/v1/apps", 200, jsonType, `{"apps":[]}`, "the method is not described"},
		{"another path", "GET", "/v1/frob", 200, jsonType, `{}`, "the path is not described"},
		{"an error that is none", "GET", "/v1/apps", 401, text, `no`, "invalid character"},
		{"a body where none is", "GET", "/health", 200, text, `ok`, "no body is described"},
	} {
		err := disagreement(doc, c.method, c.path, c.status, c.header, []byte(c.body))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// The watch does not end, so its lines are held to the description one by one.
func TestWatchIsAsDescribed(t *testing.T) {
	r := newCellsRig(t)
	one := r.cell("one", "*")
	var lease api.Lease
	r.put(one, cellPath+"one/lease", leaseRequest, &lease)
	resp, err := one.Get(r.url + api.PathWatch)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	seen := map[string]bool{}
	for len(seen) < 2 && lines.Scan() {
		agrees(t, "GET", api.PathWatch, resp.StatusCode, resp.Header, bytes.Clone(lines.Bytes()))
		var e map[string]json.RawMessage
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if e["snapshot"] != nil {
			seen["snapshot"] = true
			var answer api.EndpointsResponse
			r.put(one, cellPath+"one/endpoints", api.EndpointsRequest{Generation: lease.Generation, Sequence: 1,
				Endpoints: []api.EndpointRegistration{{Container: "a", Address: lease.Subnet.Addr().Next(), App: api.AppRef{Name: "web"}, Incarnation: 1}}}, &answer)
		}
		if e["delta"] != nil || e["heartbeat"] != nil {
			seen["more"] = true
		}
	}
	if len(seen) < 2 {
		t.Errorf("the stream ended after %v: %v", seen, lines.Err())
	}
}
