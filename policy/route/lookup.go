package route

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"tulle/policy"
)

// Directory is what is known of names; the watch hub is one. Safe for concurrent
// use.
type Directory interface {
	// Addresses are those that a name stands for, live ones only, oldest route first.
	Addresses(name policy.Hostname) []netip.Addr
	// Names lists every name that has a route.
	Names() []policy.Hostname
}

// DefaultWarm is how long a server that hears NATS and had nothing stored lets
// clients ask another one.
const DefaultWarm = DefaultInterval

// Lookup answers the lookup API of the original: GET /v1/registration/<name> and
// GET /routes. Before warm a lookup is refused with 500, so that clients ask
// another server; a zero time is warm.
func Lookup(d Directory, warm time.Time, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/registration/", func(w http.ResponseWriter, r *http.Request) {
		if now().Before(warm) {
			http.Error(w, "address table is not warm", http.StatusInternalServerError)
			return
		}
		answer := registration{Hosts: []host{}}
		// What is no name is nobody's, as everything that is not registered.
		if name, err := policy.ParseHostname(path.Base(r.URL.Path)); err == nil {
			for _, a := range d.Addresses(name) {
				answer.Hosts = append(answer.Hosts, host{IPAddress: a.String(), Tags: struct{}{}})
			}
		}
		writeJSON(w, answer)
	})
	mux.HandleFunc("/routes", func(w http.ResponseWriter, _ *http.Request) {
		answer := routes{Addresses: []address{}}
		for _, name := range d.Names() {
			ips := []string{}
			for _, a := range d.Addresses(name) {
				ips = append(ips, a.String())
			}
			answer.Addresses = append(answer.Addresses, address{string(name) + ".", ips})
		}
		slices.SortFunc(answer.Addresses, func(a, b address) int { return cmp.Compare(a.Hostname, b.Hostname) })
		writeJSON(w, answer)
	})
	return mux
}

// registration and host have the original's keys, most of which it leaves empty.
type registration struct {
	Hosts   []host `json:"hosts"`
	Env     string `json:"env"`
	Service string `json:"service"`
}

type host struct {
	IPAddress       string   `json:"ip_address"`
	LastCheckIn     string   `json:"last_check_in"`
	Port            int32    `json:"port"`
	Revision        string   `json:"revision"`
	Service         string   `json:"service"`
	ServiceRepoName string   `json:"service_repo_name"`
	Tags            struct{} `json:"tags"`
}

type routes struct {
	Addresses []address `json:"addresses"`
}

type address struct {
	Hostname string   `json:"hostname"` // with the dot at its end
	IPs      []string `json:"ips"`
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// Whoever is gone cannot be told so.
	_, _ = w.Write(b)
}

// IsLookup reports whether a request's path is one of the API's, and its name for
// the metrics.
func IsLookup(p string) string {
	switch {
	case p == "/routes":
		return "routes"
	case strings.HasPrefix(p, "/v1/registration/"):
		return "registration"
	}
	return "not_found"
}
