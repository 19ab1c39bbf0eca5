package foundationtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tulle/policy"
	"tulle/policy/api"
)

// PolicyServer is policy-server-internal: GET policies and policies_last_updated.
type PolicyServer struct {
	server
	policies []policy.Policy
	tags     map[policy.AppID]policy.Tag
	updated  time.Time
	raw      *string
}

func newPolicyServer(t testing.TB, c *certs) *PolicyServer {
	t.Helper()
	p := &PolicyServer{tags: map[policy.AppID]policy.Tag{}, updated: time.Now().Truncate(time.Microsecond)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /networking/{version}/internal/policies_last_updated", p.lastUpdated)
	mux.HandleFunc("GET /networking/{version}/internal/policies", p.list)
	p.init(t, c, mux)
	return p
}

// Allow creates policies, as the external API does; what is there stays.
func (p *PolicyServer) Allow(ps ...policy.Policy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range ps {
		if !slices.Contains(p.policies, one) {
			p.policies = append(p.policies, one)
		}
	}
	p.changed()
}

// Deny deletes policies.
func (p *PolicyServer) Deny(ps ...policy.Policy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.policies = slices.DeleteFunc(p.policies, func(one policy.Policy) bool { return slices.Contains(ps, one) })
	p.changed()
}

// Answer is what policies are answered with from now on, whatever is asked; ""
// ends that.
func (p *PolicyServer) Answer(body string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raw = &body; body == "" {
		p.raw = nil
	}
	p.changed()
}

// Restore puts the last update back in time, as a database from a backup does.
func (p *PolicyServer) Restore(ps ...policy.Policy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.policies = slices.Clone(ps)
	p.changed()
	p.updated = p.updated.Add(-24 * time.Hour)
}

// Tag is an app's, or 0. A tag is freed with its app's last policy, and the lowest
// that is free is the next given.
func (p *PolicyServer) Tag(app policy.AppID) policy.Tag {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tags[app]
}

// changed gives tags and takes them; mu is held.
func (p *PolicyServer) changed() {
	used := map[policy.AppID]bool{}
	for _, one := range p.policies {
		used[one.Source], used[one.Destination] = true, true
	}
	taken := map[policy.Tag]bool{}
	for app, tag := range p.tags {
		if !used[app] {
			delete(p.tags, app)
			continue
		}
		taken[tag] = true
	}
	for _, one := range p.policies {
		for _, app := range []policy.AppID{one.Source, one.Destination} {
			if p.tags[app] != policy.NoTag {
				continue
			}
			tag := policy.Tag(1)
			for taken[tag] {
				tag++
			}
			p.tags[app], taken[tag] = tag, true
		}
	}
	p.updated = p.updated.Add(time.Millisecond)
}

func (p *PolicyServer) lastUpdated(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(w, "%d", p.updated.UnixNano())
}

func (p *PolicyServer) list(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raw != nil {
		_, _ = io.WriteString(w, *p.raw)
		return
	}
	all := !r.URL.Query().Has("id")
	ids := strings.Split(r.URL.Query().Get("id"), ",")
	answer := api.Policies{}
	for _, one := range p.policies {
		if !all && !slices.Contains(ids, string(one.Source)) && !slices.Contains(ids, string(one.Destination)) {
			continue
		}
		v1 := api.FromDomain(one)
		v1.Source.Tag, v1.Destination.Tag = p.tags[one.Source].String(), p.tags[one.Destination].String()
		answer.Policies = append(answer.Policies, v1)
	}
	answer.Total = len(answer.Policies)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		p.t.Logf("policy server: %v", err)
	}
}
