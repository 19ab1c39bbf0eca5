package identity

import (
	"hash/fnv"
	"time"
)

// Pair is a certificate with its key.
type Pair struct {
	Certificate string    `json:"certificate"` // PEM, leaf and chain
	Key         string    `json:"key"`         // PEM
	NotAfter    time.Time `json:"not_after"`

	// When it was signed, by a clock that does not jump, and how long it lives.
	BootID string        `json:"boot_id"`
	Issued time.Duration `json:"issued"` // CLOCK_BOOTTIME
	Life   time.Duration `json:"life"`
}

// moment is now, by every clock.
type moment struct {
	bootID string
	boot   time.Duration
	wall   time.Time
}

// spread is the part of a life over which the renewals of many containers that
// started together are spread.
const spread = 20

// due is when a pair is to be renewed, on CLOCK_BOOTTIME: at half of its life at
// the latest. After a boot its age is not known, and it is due at once.
func (p *Pair) due(container string, bootID string) time.Duration {
	if p.BootID != bootID {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(container))
	early := p.Life / spread * time.Duration(h.Sum32()%1000) / 1000
	return p.Issued + p.Life/2 - early
}

// expired reports whether the others see it so, as far as this host's wall clock
// is right. A boot clock of the same boot knows for sure.
func (p *Pair) expired(now moment) bool {
	if p.BootID == now.bootID && now.boot-p.Issued >= p.Life {
		return true
	}
	return !now.wall.Before(p.NotAfter)
}

// Backoff of a container whose certificate was not to be had.
const (
	firstPause = time.Second
	longPause  = time.Minute
)

func pause(failures int) time.Duration {
	d := firstPause
	for range min(failures-1, 8) {
		d *= 2
	}
	return min(d, longPause)
}
