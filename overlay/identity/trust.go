package identity

import (
	"context"
	"time"
)

// fetchTrust asks for the trust once after a start; later it comes with each
// certificate. It returns when to try again, 0: not any more.
func (k *Keeper) fetchTrust(ctx context.Context) time.Duration {
	k.mu.Lock()
	done := k.fetched
	k.mu.Unlock()
	if done {
		return 0
	}
	got, err := k.o.Issuer.Trust(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			k.o.Log.Debug("trust of containers", "err", err)
		}
		return longPause / 10
	}
	k.setTrustLocked(got.Trust)
	return 0
}

func (k *Keeper) setTrustLocked(trust string) {
	k.fetched = true
	if trust == k.trust {
		return
	}
	k.trust = trust
	close(k.trusted)
	k.trusted = make(chan struct{})
	if err := writeTrust(k.o.Dir, trust); err != nil {
		k.o.Log.Error("trust of containers is not kept for a start without a server", "err", err)
	}
}

// Trust is what containers trust each other by, PEM, and a channel that is closed
// when it changes. "" is: not known yet.
func (k *Keeper) Trust() (trust string, changed <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.trust, k.trusted
}
