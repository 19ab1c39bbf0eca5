package overlay

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"tulle/overlay/control"
	"tulle/overlay/endpoint"
	"tulle/overlay/identity"
	"tulle/overlay/netcfg"
	"tulle/overlay/wireguard"
	"tulle/policy/api"
)

// Daemon is one cell. Make it with New, start it with Run, once.
type Daemon struct {
	cfg    Config
	log    *slog.Logger
	client controlPlane
	auth   *control.Authorizer
	bootID string
	ledger *endpoint.Ledger // open while Run runs

	leasing sync.Mutex     // held while the lease is asked for: what is asked last is stored last
	keyring sync.Mutex     // guards what follows
	keys    wireguard.Keys // of mode wireguard; read by Run

	secrets *secrets // of mode wireguard

	identity *identity.Keeper // likewise: the containers' certificates

	// nextLease is what the server gave in the place of a life's lease. The
	// life's goroutines have ended when the next reads it.
	nextLease *endpoint.Lease

	metrics *metrics
	life    atomic.Pointer[life] // the present one; nil between two
}

// New checks the configuration and reads the credential. It touches nothing.
func New(cfg Config) (*Daemon, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	bootID, err := cfg.Clock.BootID()
	if err != nil {
		return nil, err
	}
	c, err := cfg.controlPlane()
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		cfg: cfg, log: cfg.Log, client: c, bootID: bootID,
		auth: control.NewAuthorizer(uint32(os.Geteuid()), cfg.Allow),
	}
	d.metrics = newMetrics(d)
	return d, nil
}

// Run is the daemon's whole work, until ctx ends or it cannot go on. Endpoints
// stay journalled, and their devices with whoever keeps duplicates, so that the
// next start resumes them.
func (d *Daemon) Run(ctx context.Context) (err error) {
	defer d.client.Close()
	defer func() { err = errors.Join(err, d.cfg.Holder.Close()) }()
	d.ledger, err = endpoint.Open(endpoint.Options{Dir: d.cfg.StateDir, Now: d.cfg.Clock.Boot, Log: d.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.ledger.Close()) }()
	if d.identity, err = identity.Open(identity.Options{Dir: filepath.Join(d.cfg.StateDir, "certificates"),
		Clock: d.cfg.Clock, Issuer: d.client, Log: d.log, Renewed: d.renewed}); err != nil {
		return err
	}
	if d.cfg.Mode == api.ModeWireGuard {
		// Behind the ledger's lock: no other daemon makes one at the same time.
		if d.keys, err = wireguard.LoadKeys(d.cfg.StateDir); err != nil {
			return err
		}
		if d.secrets, err = openSecrets(d.cfg.PostQuantum, d.client.Cell(), d.cfg.StateDir, d.log, d.cfg.Clock.Boot); err != nil {
			return err
		}
	}

	served, address, err := d.metrics.serve(ctx, d.cfg.Metrics, d.log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if served != nil {
		wg.Go(func() {
			if err := served(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Go(func() { d.identity.Run(ctx) })
	wg.Go(func() { d.identity.KeepBundle(ctx, d.cfg.TrustBundle) })
	for {
		err := d.live(ctx, address)
		switch {
		case errors.Is(err, errFenced) || errors.Is(err, errLeaseChanged):
			d.log.Error("nothing passes until there is a lease again", "err", err)
		case errors.Is(err, netcfg.ErrClash) && d.moved(ctx):
			d.log.Error("the overlay network was another when this cell got its lease", "err", err, "lease", d.nextLease.Subnet)
		case err != nil:
			return err
		default: // the end was asked for, or the metrics failed
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
				return cause
			}
			return nil
		}
	}
}

// renewed is called when a container has another certificate.
func (d *Daemon) renewed(container string) {
	if l := d.life.Load(); l != nil {
		l.terminals.renewed(container)
	}
}

// Names in the holder. A container id begins with a letter or digit and the
// prefixes are of one length, so the two never meet.
const (
	keptTUN   = "tun-"
	keptPidfd = "pid-"
)

// keptTLS are the prefixes of mint.Sockets.Files, in their order.
var keptTLS = []string{"pub-", "prv-", "spr-"}

// forget takes a container out of journal and holder.
func (d *Daemon) forget(container string) error {
	_, err := d.ledger.Detach(container)
	if errors.Is(err, endpoint.ErrNotFound) {
		err = nil
	}
	d.identity.Remove(container)
	return errors.Join(err, d.drop(container))
}

func (d *Daemon) drop(container string) error {
	var err error
	for _, prefix := range append([]string{keptTUN, keptPidfd}, keptTLS...) {
		err = errors.Join(err, d.cfg.Holder.Drop(prefix+container))
	}
	return err
}

// keep gives duplicates of an attach's descriptors to the holder, where its
// attacher keeps none itself.
func (d *Daemon) keep(r control.AttachRequest) error {
	if r.Lifeline == control.LifelineConnection {
		return nil
	}
	if err := d.cfg.Holder.Put(keptTUN+r.Container, r.TUN); err != nil {
		return err
	}
	if r.Sockets != nil {
		for i, f := range r.Sockets.Files() {
			if err := d.cfg.Holder.Put(keptTLS[i]+r.Container, f); err != nil {
				return err
			}
		}
	}
	if r.Pidfd != nil {
		return d.cfg.Holder.Put(keptPidfd+r.Container, r.Pidfd)
	}
	return nil
}

// incarnationUnder is an endpoint's incarnation under a lease.
func incarnationUnder(l endpoint.Lease, e endpoint.Endpoint) uint64 {
	return incarnation(l.Generation, uint64(e.Counter))
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
