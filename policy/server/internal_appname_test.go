package server_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// A cell is told the names of apps whose endpoints it is told of, and of no others.
func TestNamesOfAppsThatConcernACell(t *testing.T) {
	r := newCellsRig(t)
	one, two := r.cell("one", "*"), r.cell("two", "*")
	place := func(c *http.Client, name string, port uint16, app string, guid policy.AppID) policy.AppID {
		t.Helper()
		request := leaseRequest
		request.Port = port
		var l api.Lease
		r.put(c, cellPath+name+"/lease", request, &l)
		var got api.EndpointsResponse
		r.put(c, cellPath+name+"/endpoints", api.EndpointsRequest{Generation: l.Generation, Sequence: 1, Endpoints: []api.EndpointRegistration{
			{Container: app, Address: l.Subnet.Addr().Next(), App: api.AppRef{GUID: guid, Name: app, Space: "prod", Org: "acme"}}}}, &got)
		return got.Apps[app]
	}
	web, db := place(one, "one", 4789, "web", ""), place(two, "two", 4790, "db", "team/db")
	ask := func(c *http.Client, cell string, app policy.AppID) (int, api.AppName) {
		t.Helper()
		resp, text := r.do(c, http.MethodGet, cellPath+cell+"/apps/"+url.PathEscape(string(app)), nil)
		var got api.AppName
		if resp.StatusCode == http.StatusOK {
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
		}
		return resp.StatusCode, got
	}
	eventually := func(what string, ok func() bool) { // the hub hears of changes a little later
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not told", what)
			}
		}
	}
	eventually("its own app", func() bool {
		status, got := ask(one, "one", web)
		return status == http.StatusOK && got.GUID == web && got.Name == "web" && got.Space == "prod" && got.Org == "acme" && got.SpaceGUID != "" && got.OrgGUID != ""
	})
	for app, cell := range map[policy.AppID]*http.Client{db: one, "nobody": one} {
		if status, _ := ask(cell, "one", app); status != http.StatusNotFound {
			t.Errorf("%s, which is nothing to the cell: status %d", app, status)
		}
	}
	if status, _ := ask(two, "one", web); status != http.StatusForbidden {
		t.Errorf("under another cell's name: status %d", status)
	}
	if _, err := r.store.AddPolicies(t.Context(), []policy.Policy{{Source: web, Destination: db, Protocol: policy.TCP, Ports: policy.PortRange{Start: 5432, End: 5432}}}); err != nil {
		t.Fatal(err)
	}
	for app, at := range map[policy.AppID]struct {
		c    *http.Client
		cell string
	}{db: {one, "one"}, web: {two, "two"}} {
		eventually("the name of an app with a policy", func() bool {
			status, got := ask(at.c, at.cell, app)
			return status == http.StatusOK && got.GUID == app
		})
	}
}
