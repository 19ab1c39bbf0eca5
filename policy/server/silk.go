package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/gorilla/mux"

	"tulle/policy/api"
	"tulle/policy/lease"
	"tulle/policy/store"
)

// maxSilkBody is the largest body of the lease API, in bytes.
const maxSilkBody = 64 << 10

// Silk is silk-controller's lease API, as silk-daemons know it: paths, statuses
// and texts are its own (reference: silk-controller, 1.2 to 1.5). It differs in
// that a connection leases for its own address alone, and that a renewal of what
// is not known is held against the pool. It serves only requests over mutual TLS
// under the legacy root; safe for concurrent use.
type Silk struct {
	store  store.SilkStore
	router *mux.Router
	log    *slog.Logger
}

// NewSilk makes the lease API over a store.
func NewSilk(s store.SilkStore, log *slog.Logger) *Silk {
	k := &Silk{store: s, router: mux.NewRouter().SkipClean(true), log: log}
	handle := func(method, path string, h handler) {
		k.router.Methods(method).Path(path).HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			nameRequest(w.Header(), r)
			if time.Now().After(r.TLS.PeerCertificates[0].NotAfter) { // a connection may outlive it
				writeError(w, r, k.log, refuse(http.StatusForbidden, "the certificate has expired", nil))
				return
			}
			who := store.Actor{Who: "legacy " + r.TLS.PeerCertificates[0].Subject.CommonName, From: from(r)}
			if err := h(w, r.WithContext(store.WithActor(r.Context(), who))); err != nil {
				writeError(w, r, k.log, err)
			}
		})
		k.router.Path(path).Handler(notAllowed([]string{method}))
	}
	handle(http.MethodGet, api.PathSilkLeases, k.list)
	handle(http.MethodPut, api.PathSilkAcquire, k.acquire)
	handle(http.MethodPut, api.PathSilkRenew, k.renew)
	handle(http.MethodPut, api.PathSilkRelease, k.release)
	return k
}

func (k *Silk) ServeHTTP(w http.ResponseWriter, r *http.Request) { k.router.ServeHTTP(w, r) }

func (k *Silk) list(w http.ResponseWriter, r *http.Request) error {
	held, err := k.store.SilkLeases(r.Context())
	if err != nil {
		return refuse(http.StatusInternalServerError, "all-routable-leases: database read failed", err)
	}
	answer := api.SilkLeases{}
	for _, l := range held {
		answer.Leases = append(answer.Leases, silkLease(l))
	}
	return writeMarshalled(w, answer)
}

func (k *Silk) acquire(w http.ResponseWriter, r *http.Request) error {
	var req api.SilkAcquire
	if err := readSilk(w, r, &req); err != nil {
		return err
	}
	underlay, err := parseUnderlay(req.UnderlayIP)
	if err != nil {
		return refuse(http.StatusInternalServerError, err.Error(), nil)
	}
	if err := ownAddress(r, underlay); err != nil {
		return err
	}
	l, err := k.store.AcquireSilk(r.Context(), underlay, req.SingleOverlayIP)
	switch {
	case errors.Is(err, store.ErrNoLease):
		return refuse(http.StatusConflict, "no lease available", nil)
	case errors.Is(err, store.ErrConflict):
		return refuse(http.StatusConflict, err.Error(), nil)
	case err != nil:
		return refuse(http.StatusInternalServerError, "adding lease entry: database write failed", err)
	}
	k.log.Info("lease acquired", "underlay", l.Underlay, "subnet", l.Subnet)
	return writeMarshalled(w, silkLease(l))
}

func (k *Silk) renew(w http.ResponseWriter, r *http.Request) error {
	var req api.SilkLease
	if err := readSilk(w, r, &req); err != nil {
		return err
	}
	l, err := parseSilkLease(req)
	if err != nil {
		return refuse(http.StatusConflict, "renew-subnet-lease: "+err.Error(), nil)
	}
	if err := ownAddress(r, l.Underlay); err != nil {
		return err
	}
	err = k.store.RenewSilk(r.Context(), l)
	for _, why := range []error{store.ErrLeaseMismatch, store.ErrNotInPool, store.ErrSubnetTaken} {
		if errors.Is(err, why) {
			return refuse(http.StatusConflict, "renew-subnet-lease: "+why.Error(), nil)
		}
	}
	switch {
	case errors.Is(err, store.ErrConflict):
		return refuse(http.StatusConflict, "renew-subnet-lease: "+err.Error(), nil)
	case err != nil:
		return refuse(http.StatusInternalServerError, "renew-subnet-lease: database write failed", err)
	}
	return write(w, []byte("{}"))
}

func (k *Silk) release(w http.ResponseWriter, r *http.Request) error {
	var req api.SilkRelease
	if err := readSilk(w, r, &req); err != nil {
		return err
	}
	underlay, err := parseUnderlay(req.UnderlayIP)
	if err != nil {
		return write(w, []byte("{}")) // nobody has such a lease
	}
	if err := ownAddress(r, underlay); err != nil {
		return err
	}
	if err := k.store.ReleaseSilk(r.Context(), underlay); err != nil {
		return refuse(http.StatusInternalServerError, "release lease: database write failed", err)
	}
	k.log.Info("lease released", "underlay", underlay)
	return write(w, []byte("{}"))
}

func silkLease(l store.SilkLease) api.SilkLease {
	return api.SilkLease{UnderlayIP: l.Underlay.String(), OverlaySubnet: l.Subnet.String(), OverlayHardwareAddr: lease.Hardware(l.Subnet)}
}

// readSilk reads a body. What follows the JSON value is an error, too.
func readSilk(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := readAll(w, r, maxSilkBody)
	if err != nil {
		return refuse(http.StatusBadRequest, "read-body: "+err.Error(), nil)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return refuse(http.StatusBadRequest, "unmarshal-request: "+err.Error(), nil)
	}
	return nil
}

// readAll reads a body of at most limit bytes that comes within bodyTimeout.
func readAll(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return nil, fmt.Errorf("bound the reading of a request body: %w", err)
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
}

func parseUnderlay(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if a = a.Unmap(); err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("invalid ipv4 address: %s", text)
	}
	return a, nil
}

// parseSilkLease reads a lease that is renewed. A subnet with host bits is no
// lease that was ever given; neither is one with another's hardware address.
func parseSilkLease(req api.SilkLease) (store.SilkLease, error) {
	underlay, err := parseUnderlay(req.UnderlayIP)
	if err != nil {
		return store.SilkLease{}, err
	}
	subnet, err := netip.ParsePrefix(req.OverlaySubnet)
	if err != nil || !subnet.Addr().Is4() {
		return store.SilkLease{}, fmt.Errorf("invalid CIDR address: %s", req.OverlaySubnet)
	}
	hardware, err := net.ParseMAC(req.OverlayHardwareAddr)
	if err != nil {
		return store.SilkLease{}, fmt.Errorf("invalid MAC address: %s", req.OverlayHardwareAddr)
	}
	if subnet != subnet.Masked() || hardware.String() != lease.Hardware(subnet) {
		return store.SilkLease{}, errors.New("lease mismatch")
	}
	return store.SilkLease{Underlay: underlay, Subnet: subnet}, nil
}

// ownAddress refuses to lease for another host: a certificate of the legacy root
// names none, so the connection's address must do.
func ownAddress(r *http.Request, underlay netip.Addr) error {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return refuse(http.StatusInternalServerError, "internal error", err)
	}
	if from.Addr().Unmap() == underlay {
		return nil
	}
	return refuse(http.StatusForbidden,
		fmt.Sprintf("the connection comes from %s and may lease for that address alone, not for %s", from.Addr().Unmap(), underlay), nil)
}
