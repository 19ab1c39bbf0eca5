package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/ca"
	"tulle/policy/store"
)

// bodyTimeout is how long a cell may take to send a request body.
const bodyTimeout = 30 * time.Second

func (in *Internal) putLease(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	var req api.LeaseRequest
	if err := in.readBody(w, r, cell, maxLeaseBody, &req); err != nil {
		return err
	}
	if err := checkLease(req); err != nil {
		return badRequest(err.Error())
	}
	lease, err := in.store.Lease(r.Context(), cell.Name, req)
	if err != nil {
		return fmt.Errorf("lease of cell %s: %w", cell.Name, err)
	}
	in.hub.Seen(cell.Name)
	in.hub.Tell(cell.Name, lease.Revision)
	return answerCell(w, lease)
}

func checkLease(r api.LeaseRequest) error {
	switch {
	case !r.Underlay.IsValid() || r.Underlay.IsUnspecified() || r.Underlay.IsMulticast():
		return fmt.Errorf("underlay %q is not an address of a host", r.Underlay)
	case r.Port == 0:
		return errors.New("port is missing")
	case r.Mode != api.ModeVXLAN && r.Mode != api.ModeWireGuard:
		return fmt.Errorf("mode %q is neither %s nor %s", r.Mode, api.ModeVXLAN, api.ModeWireGuard)
	case r.Mode == api.ModeWireGuard && r.Key.IsZero():
		return errors.New("key is missing")
	case r.Mode == api.ModeWireGuard && r.WireGuardPort == 0:
		return errors.New("wireguard_port is missing")
	case r.EncapsulationKey != "" && r.Mode != api.ModeWireGuard:
		return errors.New("encapsulation_key is of mode wireguard alone")
	case !r.NextKey.IsZero() && (r.Mode != api.ModeWireGuard || r.NextKey == r.Key):
		return errors.New("next_key is not a second key of mode wireguard")
	}
	return nil
}

// putSecrets passes on what the cell tells its peers to have secrets with them.
func (in *Internal) putSecrets(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	var req api.SecretsRequest
	if err := in.readBody(w, r, cell, maxSecretsBody, &req); err != nil {
		return err
	}
	if err := in.store.PutSecrets(r.Context(), cell.Name, req); err != nil {
		return fmt.Errorf("secrets of cell %s: %w", cell.Name, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (in *Internal) deleteLease(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	if err := in.store.ReleaseLease(r.Context(), cell.Name); err != nil {
		return fmt.Errorf("release lease of cell %s: %w", cell.Name, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// putEndpoints stores the cell's list without the endpoints that its
// certificate does not let it host. The answer's revision is told on the cell's
// watch as well, once it is in force there.
func (in *Internal) putEndpoints(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	var req api.EndpointsRequest
	if err := in.readBody(w, r, cell, maxEndpointsBody, &req); err != nil {
		return err
	}
	allowed, refused, err := in.allowed(r.Context(), cell, req.Endpoints)
	if err != nil {
		return err
	}
	req.Endpoints = allowed
	answer, err := in.store.SetEndpoints(r.Context(), cell.Name, req)
	if err != nil {
		return fmt.Errorf("endpoints of cell %s: %w", cell.Name, err)
	}
	if len(refused) > 0 {
		if answer.Refused == nil {
			answer.Refused = make(map[string]string)
		}
		maps.Copy(answer.Refused, refused)
	}
	in.hub.Seen(cell.Name)
	in.hub.Tell(cell.Name, answer.Revision)
	return answerCell(w, answer)
}

// allowed keeps the endpoints whose application lies in one of the cell's
// spaces. Where the registry knows the application's GUID, its word counts and
// not the cell's.
func (in *Internal) allowed(ctx context.Context, cell ca.Peer, list []api.EndpointRegistration) ([]api.EndpointRegistration, map[string]string, error) {
	if cell.HostsAny() {
		return list, nil, nil
	}
	apps, err := in.store.Apps(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the registry: %w", err)
	}
	byGUID := make(map[policy.AppID]store.App, len(apps))
	spaces := make(map[[2]string]string) // GUID by org and space
	for _, a := range apps {
		byGUID[a.GUID] = a
		spaces[[2]string{a.Org, a.Space}] = a.SpaceGUID
	}
	var kept []api.EndpointRegistration
	refused := make(map[string]string)
	for _, e := range list {
		org, space := orDefault(e.App.Org), orDefault(e.App.Space)
		if e.App.GUID != "" {
			// An app that nobody named yet is in no space, whatever the cell says:
			// policies may name it already, and the first to claim it would be it.
			a, known := byGUID[e.App.GUID]
			if !known || a.Space == "" {
				refused[e.Container] = fmt.Sprintf("cell %s may not host app %s: its space is not known", cell.Name, e.App.GUID)
				continue
			}
			org, space = a.Org, a.Space
		}
		if !cell.MayHost(org, space, spaces[[2]string{org, space}]) {
			refused[e.Container] = fmt.Sprintf("cell %s may not host apps of %s/%s", cell.Name, org, space)
			continue
		}
		kept = append(kept, e)
	}
	// A container that is in the list twice is refused as a whole.
	for i := 0; i < len(kept); {
		if _, no := refused[kept[i].Container]; no {
			kept = append(kept[:i], kept[i+1:]...)
			continue
		}
		i++
	}
	return kept, refused, nil
}

// orDefault is the org or space of an app that was named without one, as the
// registry has it.
func orDefault(name string) string {
	if name == "" {
		return "default"
	}
	return name
}

func (in *Internal) postAck(w http.ResponseWriter, r *http.Request, cell ca.Peer) error {
	var ack api.Ack
	if err := in.readBody(w, r, cell, maxAckBody, &ack); err != nil {
		return err
	}
	if err := in.hub.Ack(cell.Name, ack); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readBody is the function of that name for a cell. A body may take its time, and a
// revocation come meanwhile.
func (in *Internal) readBody(w http.ResponseWriter, r *http.Request, cell ca.Peer, limit int64, into any) error {
	if err := readBody(w, r, limit, into); err != nil {
		return err
	}
	return in.admit(cell)
}

// readBody reads a body of at most limit bytes that holds one JSON value.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return fmt.Errorf("bound the reading of a request body: %w", err)
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	err := dec.Decode(into)
	if err == nil && dec.More() {
		err = errors.New("something follows the JSON value")
	}
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return &httpStatus{code: http.StatusRequestEntityTooLarge, text: fmt.Sprintf("request body is larger than %d bytes", limit)}
	}
	if err != nil {
		return badRequest("request body: " + err.Error())
	}
	return nil
}

// answerCell writes a JSON answer of status 200. What the handler was given as its
// content type stays.
func answerCell(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	// The client that is gone cannot be told so.
	w.Write(body)
	return nil
}
