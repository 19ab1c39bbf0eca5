package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"tulle/overlay/netcfg"
	"tulle/policy"
	"tulle/policy/api"
)

// API speaks the external REST API with the admin's token, as any client would.
type API struct {
	base  string
	token string
	http  http.Client
}

// Client returns a client of the world's server.
func (w *World) Client() (*API, error) {
	token, err := os.ReadFile(w.Server.TokenFile())
	if err != nil {
		return nil, err
	}
	a := &API{base: "http://" + w.Server.External, token: strings.TrimSpace(string(token)), http: http.Client{Timeout: time.Minute}}
	if ns := w.Server.netns; ns != nil {
		a.http.Transport = &http.Transport{DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = netcfg.Do(ns, func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		}}
	}
	return a, nil
}

// Apps is the registry's list.
func (a *API) Apps(ctx context.Context) ([]api.App, error) {
	var got api.Apps
	err := a.do(ctx, http.MethodGet, api.PathApps, nil, &got)
	return got.Apps, err
}

// AppID is the GUID of an app of the world's space, by its name.
func (a *API) AppID(ctx context.Context, name string) (policy.AppID, error) {
	apps, err := a.Apps(ctx)
	if err != nil {
		return "", err
	}
	for _, app := range apps {
		if app.Name == name && app.Space == Space && app.Org == Org {
			return app.GUID, nil
		}
	}
	return "", fmt.Errorf("the server knows no app %q", name)
}

// Cells is the server's list of cells.
func (a *API) Cells(ctx context.Context) ([]api.Cell, error) {
	var got api.Cells
	err := a.do(ctx, http.MethodGet, api.PathCells, nil, &got)
	return got.Cells, err
}

// Policies is the list of all policies.
func (a *API) Policies(ctx context.Context) ([]api.Policy, error) {
	var got api.Policies
	err := a.do(ctx, http.MethodGet, v1(api.PathPolicies), nil, &got)
	return got.Policies, err
}

// Allow creates a policy between two apps of the world, by name.
func (a *API) Allow(ctx context.Context, source, destination string, protocol policy.Protocol, ports policy.PortRange) error {
	return a.change(ctx, api.PathPolicies, source, destination, protocol, ports)
}

// Forbid deletes one.
func (a *API) Forbid(ctx context.Context, source, destination string, protocol policy.Protocol, ports policy.PortRange) error {
	return a.change(ctx, api.PathDelete, source, destination, protocol, ports)
}

func (a *API) change(ctx context.Context, path, source, destination string, protocol policy.Protocol, ports policy.PortRange) error {
	src, err := a.AppID(ctx, source)
	if err != nil {
		return err
	}
	dst, err := a.AppID(ctx, destination)
	if err != nil {
		return err
	}
	return a.post(ctx, path, policy.Policy{Source: src, Destination: dst, Protocol: protocol, Ports: ports})
}

// Create stores policies between apps by GUID.
func (a *API) Create(ctx context.Context, ps ...policy.Policy) error {
	return a.post(ctx, api.PathPolicies, ps...)
}

// Delete removes them.
func (a *API) Delete(ctx context.Context, ps ...policy.Policy) error {
	return a.post(ctx, api.PathDelete, ps...)
}

// MapRoutes gives apps names, and waits until every cell has them in force.
func (a *API) MapRoutes(ctx context.Context, rs ...policy.Route) error {
	var changed api.Changed
	if err := a.do(ctx, http.MethodPost, api.PathRoutes+"?wait=30s", api.RoutesRequest{Routes: rs}, &changed); err != nil {
		return err
	}
	if e := changed.Enforced; e == nil || len(e.Late)+len(e.Silent) > 0 {
		return fmt.Errorf("routes are mapped, and not in force everywhere: %+v", changed)
	}
	return nil
}

func (a *API) post(ctx context.Context, path string, ps ...policy.Policy) error {
	var body api.Policies
	for _, p := range ps {
		body.Policies = append(body.Policies, api.FromDomain(p))
	}
	return a.do(ctx, http.MethodPost, v1(path), body, nil)
}

// PutGroup stores a security group under its GUID.
func (a *API) PutGroup(ctx context.Context, g policy.SecurityGroup) error {
	return a.do(ctx, http.MethodPut, strings.ReplaceAll(api.PathSecurityGroup, "{guid}", g.GUID), api.NewSecurityGroup(g), nil)
}

// Tags is the tag of each app that is in a policy.
func (a *API) Tags(ctx context.Context) (map[policy.AppID]policy.Tag, error) {
	var got api.Tags
	if err := a.do(ctx, http.MethodGet, v1(api.PathTags), nil, &got); err != nil {
		return nil, err
	}
	tags := make(map[policy.AppID]policy.Tag)
	for _, t := range got.Tags {
		tag, err := policy.ParseTag(t.Tag)
		if err != nil {
			return nil, err
		}
		tags[t.ID] = tag
	}
	return tags, nil
}

func v1(path string) string { return strings.ReplaceAll(path, "{version}", string(api.V1)) }

func (a *API) do(ctx context.Context, method, path string, body, into any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, send)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	answer, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, bytes.TrimSpace(b))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}
