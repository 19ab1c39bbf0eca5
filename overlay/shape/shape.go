// Package shape bounds what one container sends and receives, in bits a second, by
// a token bucket for each direction, as the CNI's bandwidth plugin does with a qdisc.
//
// [Wrap] puts the bounds around a container's device; the data path reads and writes
// that one and knows of nothing. What the container sends waits in its own stack,
// which sees a slow link. What it is sent waits in a bounded queue, and what finds
// that full is dropped. A container without limits has no such device around its own.
package shape

import (
	"errors"
	"fmt"
	"math"
)

// ErrQueue is returned by Write when the container is sent more than its limit, and
// enough waits already.
var ErrQueue = errors.New("container is sent more than its bandwidth")

// ErrLimits is the kind of every error about limits.
var ErrLimits = errors.New("bandwidth limit")

// Rate is the limit of one direction; the zero Rate is none.
type Rate struct {
	Rate  uint64 // bits a second
	Burst uint64 // bits
}

// Limits are a container's: ingress is what it is sent, egress what it sends.
type Limits struct{ Ingress, Egress Rate }

// minBurst is a packet of the largest MTU that tunnels leave, in bits: with less,
// even a slow conversation would wait for each of its packets.
const minBurst = 1500 * 8

// maxBits keeps sums of bytes and nanoseconds exact.
const maxBits = 1 << 50

// Check says what of the limits cannot be held.
func (l Limits) Check() error {
	return errors.Join(l.Ingress.check("ingress"), l.Egress.check("egress"))
}

func (r Rate) check(direction string) error {
	switch {
	case r == Rate{}:
		return nil
	case r.Rate == 0 || r.Burst == 0:
		return fmt.Errorf("%w: %s has a rate of %d bits a second and a burst of %d bits: give both, or neither", ErrLimits, direction, r.Rate, r.Burst)
	case r.Burst < minBurst:
		return fmt.Errorf("%w: %s burst of %d bits: give at least %d, one packet", ErrLimits, direction, r.Burst, minBurst)
	case r.Rate > maxBits || r.Burst > maxBits:
		return fmt.Errorf("%w: %s rate and burst are at most %d bits", ErrLimits, direction, uint64(maxBits))
	}
	return nil
}

// room is how many bytes may wait to go in: what the burst allows or the rate passes
// in 50 ms, and at least two super-packets.
func (r Rate) room() int {
	return int(max(float64(r.Burst)/8, float64(r.Rate)/8/20, 2*math.MaxUint16))
}
