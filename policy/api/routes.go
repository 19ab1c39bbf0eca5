package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"tulle/policy"
)

// Paths of internal routes, in the external API. Scopes network.admin or
// network.write; domains are changed by network.admin alone.
const (
	PathRoutes       = "/v1/routes"                  // GET [?app=GUID&name=NAME] -> Routes; POST RoutesRequest[?wait=5s] -> Changed
	PathRoutesDelete = "/v1/routes/delete"           // POST RoutesRequest[?wait=5s] -> Changed
	PathDomains      = "/v1/routes/domains"          // GET -> Domains
	PathDomain       = "/v1/routes/domains/{domain}" // PUT, DELETE [?wait=5s] -> Changed
)

// Routes is the answer of GET /v1/routes, by name and then by age.
type Routes struct {
	Routes []policy.Route `json:"routes"`
}

// MarshalJSON writes an empty list as [], never null.
func (r Routes) MarshalJSON() ([]byte, error) {
	type plain Routes
	r.Routes = orEmpty(r.Routes)
	return json.Marshal(plain(r))
}

// RoutesRequest maps or unmaps apps: each of the routes has a name and an app.
type RoutesRequest struct {
	Routes []policy.Route `json:"routes"`
}

// Domains is the answer of GET /v1/routes/domains.
type Domains struct {
	Domains []policy.Hostname `json:"domains"`
}

// MarshalJSON writes an empty list as [], never null.
func (d Domains) MarshalJSON() ([]byte, error) {
	type plain Domains
	d.Domains = orEmpty(d.Domains)
	return json.Marshal(plain(d))
}

// DecodeRoutes reads a RoutesRequest and checks it. Names may be written in any
// case and with a dot at their end. The error names the first fault's place.
func DecodeRoutes(body []byte) ([]policy.Route, error) {
	var in RoutesRequest
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("routes: something follows the JSON value")
	}
	if len(in.Routes) == 0 {
		return nil, errors.New("routes: there are none")
	}
	for i := range in.Routes {
		r := &in.Routes[i]
		name, err := policy.ParseHostname(string(r.Name))
		if err != nil {
			return nil, fmt.Errorf("routes[%d]: name: %w", i, err)
		}
		r.Name = name
		switch {
		case r.Address.IsValid():
			return nil, fmt.Errorf("routes[%d]: address: a name is mapped to an app; addresses are registered over NATS", i)
		case !isText(string(r.App)):
			return nil, fmt.Errorf("routes[%d]: app %q: is empty or no text", i, r.App)
		}
		if err := r.Validate(); err != nil {
			return nil, fmt.Errorf("routes[%d]: %w", i, err)
		}
	}
	return in.Routes, nil
}

// Instance is a live container of an app that has a name, as resolvers know it.
type Instance struct {
	App     policy.AppID `json:"app"`
	Cell    string       `json:"cell"`
	Address netip.Addr   `json:"address"`
	Index   string       `json:"index,omitempty"` // the instance's number, where its cell said one
}

// Liveness names the cells whose containers are not to be found by name now: no
// sign of life came of them for three heartbeats. It is the whole list, no part
// of any revision, and holds until the next one.
type Liveness struct {
	Lost []string `json:"lost"`
}

// MarshalJSON writes an empty list as [], never null.
func (l Liveness) MarshalJSON() ([]byte, error) {
	type plain Liveness
	l.Lost = orEmpty(l.Lost)
	return json.Marshal(plain(l))
}
