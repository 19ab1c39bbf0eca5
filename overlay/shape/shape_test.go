package shape

import (
	"context"
	"errors"
	"testing"
	"time"

	"tulle/overlay/tun"
	"tulle/overlay/tun/tuntest"
)

func TestLimitsAreChecked(t *testing.T) {
	good := Rate{1 << 20, 1 << 16}
	for _, c := range []struct {
		name string
		l    Limits
		ok   bool
	}{
		{"none", Limits{}, true},
		{"both", Limits{good, good}, true},
		{"one", Limits{Egress: good}, true},
		{"rate alone", Limits{Ingress: Rate{Rate: 1 << 20}}, false},
		{"burst alone", Limits{Egress: Rate{Burst: 1 << 20}}, false},
		{"less than a packet", Limits{Egress: Rate{1 << 20, 1499 * 8}}, false},
		{"overflow", Limits{Egress: Rate{1 << 60, 1 << 20}}, false},
	} {
		if err := c.l.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrLimits) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Over any time the bucket passes no more than burst, rate and one packet, and, with
// enough to send, no less than the rate.
func TestBucketHoldsItsRate(t *testing.T) {
	for _, packet := range []int{100, 1450, 65000} {
		b := newBucket(Rate{Rate: 8_000_000, Burst: 8 * 20_000}, 0)
		sent, now := 0, time.Duration(0)
		for now < 10*time.Second {
			if w := b.wait(now); w > 0 {
				now += w + time.Microsecond
				continue
			}
			b.spend(packet)
			sent += packet
			if most := 20_000 + int(now.Seconds()*1e6) + packet; sent > most {
				t.Fatalf("packets of %d: %d bytes after %s, at most %d", packet, sent, now, most)
			}
		}
		if sent < 9_900_000 {
			t.Errorf("packets of %d: %d bytes in 10 s at 1 MB/s", packet, sent)
		}
	}
}

func TestIdleBucketSavesNoMoreThanItsBurst(t *testing.T) {
	b := newBucket(Rate{Rate: 8_000_000, Burst: 8 * 20_000}, 0)
	b.wait(time.Hour)
	b.spend(20_001)
	if b.wait(time.Hour) == 0 {
		t.Error("an hour's worth was saved")
	}
}

func TestWithoutLimitsThereIsNothingAround(t *testing.T) {
	dev, _ := tuntest.New()
	if Wrap(dev, Limits{}) != dev {
		t.Error("something is")
	}
}

// What a container is sent keeps its order, whether it waited or not, and beyond the
// queue it is dropped.
func TestIngressQueuesInOrder(t *testing.T) {
	dev, far := tuntest.New()
	d := Wrap(dev, Limits{Ingress: Rate{Rate: 80_000_000, Burst: 8 * 1500}})
	defer d.Close()
	if !d.(*Device).UDPOffload() {
		t.Error("the device's offload is hidden")
	}
	accepted := make([]byte, 0, 1000)
	full := 0
	for i := range 1000 {
		switch err := d.Write(make([]byte, tun.HeaderLen), append([]byte{byte(i)}, make([]byte, 999)...)); err {
		case nil:
			accepted = append(accepted, byte(i))
		case ErrQueue:
			full++
		default:
			t.Fatal(err)
		}
	}
	if full == 0 {
		t.Error("a queue without end")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i, want := range accepted {
		_, p, err := far.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if p[0] != want {
			t.Fatalf("packet %d is %d, want %d", i, p[0], want)
		}
	}
}

// Close wakes a reader that waits for its rate, and the queue.
func TestCloseWakes(t *testing.T) {
	dev, far := tuntest.New()
	d := Wrap(dev, Limits{Ingress: Rate{8, 8 * 1500}, Egress: Rate{8, 8 * 1500}})
	read := make(chan error)
	go func() {
		b := make([]byte, tun.MaxRead)
		for {
			if _, err := d.Read(b); err != nil {
				read <- err
				return
			}
		}
	}()
	for range 3 {
		far.Send(make([]byte, 1400))
		if err := d.Write(make([]byte, 1400)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; err != tun.ErrClosed {
		t.Errorf("the reader ends with %v", err)
	}
}
