package foundationtest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tulle/policy/api"
	"tulle/policy/lease"
)

// Controller is silk-controller (reference: silk-controller, 1.2 to 1.5).
type Controller struct {
	server
	network netip.Prefix
	pool    lease.Pool
	rows    []row
	// Lifetime is how long a lease lives that is not renewed.
	lifetime time.Duration
	ahead    time.Duration // of its clock
}

type row struct {
	api.SilkLease
	renewed time.Time
}

func newController(t testing.TB, c *certs, network netip.Prefix) *Controller {
	t.Helper()
	pool, err := lease.NewPool(network, 24)
	if err != nil {
		t.Fatal(err)
	}
	k := &Controller{network: network, pool: pool, lifetime: 168 * time.Hour}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /leases", k.list)
	mux.HandleFunc("PUT /leases/acquire", k.acquire)
	mux.HandleFunc("PUT /leases/renew", k.renew)
	mux.HandleFunc("PUT /leases/release", k.release)
	k.init(t, c, mux)
	return k
}

// Advance lets time pass at the controller: leases may expire.
func (k *Controller) Advance(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ahead += d
}

// Put stores a lease unchecked, in the place of that of its underlay address.
func (k *Controller) Put(l api.SilkLease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(l.UnderlayIP)
	k.rows = append(k.rows, row{l, k.now()})
}

// Drop removes the lease of an underlay address.
func (k *Controller) Drop(underlay string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(underlay)
}

// Lose forgets all leases.
func (k *Controller) Lose() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rows = nil
}

// Of is the lease of an underlay address, expired or not; "": none.
func (k *Controller) Of(underlay string) (subnet string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := k.find(underlay); r != nil {
		return r.OverlaySubnet
	}
	return ""
}

// Entry is a lease as it should be.
func Entry(underlay string, subnet netip.Prefix) api.SilkLease {
	return api.SilkLease{UnderlayIP: underlay, OverlaySubnet: subnet.String(), OverlayHardwareAddr: lease.Hardware(subnet)}
}

func (k *Controller) now() time.Time { return time.Now().Add(k.ahead) }

func (k *Controller) alive(r row) bool { return r.renewed.Add(k.lifetime).After(k.now()) }

func (k *Controller) find(underlay string) *row {
	for i := range k.rows {
		if k.rows[i].UnderlayIP == underlay {
			return &k.rows[i]
		}
	}
	return nil
}

func (k *Controller) drop(underlay string) {
	k.rows = slices.DeleteFunc(k.rows, func(r row) bool { return r.UnderlayIP == underlay })
}

func (k *Controller) list(w http.ResponseWriter, _ *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	answer := api.SilkLeases{}
	for _, r := range k.rows {
		if k.alive(r) {
			answer.Leases = append(answer.Leases, r.SilkLease)
		}
	}
	rand.Shuffle(len(answer.Leases), func(i, j int) { answer.Leases[i], answer.Leases[j] = answer.Leases[j], answer.Leases[i] })
	k.write(w, answer)
}

func (k *Controller) acquire(w http.ResponseWriter, r *http.Request) {
	var q api.SilkAcquire
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, "unmarshal-request: "+err.Error())
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if ip := net.ParseIP(q.UnderlayIP); ip == nil || ip.To4() == nil {
		refuse(w, http.StatusInternalServerError, "invalid ipv4 address: "+q.UnderlayIP)
		return
	}
	if row := k.find(q.UnderlayIP); row != nil {
		if p, err := netip.ParsePrefix(row.OverlaySubnet); err == nil && (k.pool.Contains(p) || k.pool.ContainsSingle(p)) {
			k.write(w, row.SilkLease)
			return
		}
		k.drop(q.UnderlayIP)
	}
	var held, expired []netip.Prefix
	oldest := slices.Clone(k.rows)
	slices.SortFunc(oldest, func(a, b row) int { return a.renewed.Compare(b.renewed) })
	for _, row := range oldest {
		if p, err := netip.ParsePrefix(row.OverlaySubnet); err == nil {
			if k.alive(row) {
				held = append(held, p)
			} else {
				expired = append(expired, p)
			}
		}
	}
	subnet, err := k.pool.ChooseSilk(q.SingleOverlayIP, held, expired, rand.IntN)
	if err != nil {
		refuse(w, http.StatusConflict, "no lease available")
		return
	}
	k.rows = slices.DeleteFunc(k.rows, func(r row) bool { return r.OverlaySubnet == subnet.String() })
	k.rows = append(k.rows, row{Entry(q.UnderlayIP, subnet), k.now()})
	k.write(w, k.rows[len(k.rows)-1].SilkLease)
}

func (k *Controller) renew(w http.ResponseWriter, r *http.Request) {
	var q api.SilkLease
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, "unmarshal-request: "+err.Error())
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if net.ParseIP(q.UnderlayIP) == nil {
		refuse(w, http.StatusConflict, "renew-subnet-lease: invalid ipv4 address: "+q.UnderlayIP)
		return
	}
	held := k.find(q.UnderlayIP)
	switch {
	case held != nil && held.SilkLease != q:
		refuse(w, http.StatusConflict, "renew-subnet-lease: lease mismatch")
		return
	case held == nil && slices.ContainsFunc(k.rows, func(r row) bool { return r.OverlaySubnet == q.OverlaySubnet }):
		refuse(w, http.StatusConflict, `renew-subnet-lease: pq: duplicate key value violates unique constraint "subnets_overlay_subnet_key"`)
		return
	case held == nil:
		k.rows = append(k.rows, row{q, k.now()}) // as given: so it comes back after a loss of data
	default:
		held.renewed = k.now()
	}
	fmt.Fprint(w, "{}")
}

func (k *Controller) release(w http.ResponseWriter, r *http.Request) {
	var q api.SilkRelease
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, "unmarshal-request: "+err.Error())
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(q.UnderlayIP)
	fmt.Fprint(w, "{}")
}

func (k *Controller) write(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		k.t.Logf("silk-controller: %v", err)
	}
}
