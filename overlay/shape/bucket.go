package shape

import "time"

// bucket is a token bucket that may fall into debt: a packet passes when there is no
// debt, whatever its length, and the next one waits until the debt is paid. So a
// super-packet longer than the burst passes too, and the rate holds over time.
type bucket struct {
	rate   float64 // bytes a second
	burst  float64 // bytes
	tokens float64
	at     time.Duration
}

func newBucket(r Rate, now time.Duration) *bucket {
	burst := float64(r.Burst) / 8
	return &bucket{rate: float64(r.Rate) / 8, burst: burst, tokens: burst, at: now}
}

// wait is how long from now the next packet has to wait.
func (b *bucket) wait(now time.Duration) time.Duration {
	if now > b.at {
		b.tokens = min(b.burst, b.tokens+b.rate*(now-b.at).Seconds())
		b.at = now
	}
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}

// spend takes n bytes out; wait was called before.
func (b *bucket) spend(n int) { b.tokens -= float64(n) }
