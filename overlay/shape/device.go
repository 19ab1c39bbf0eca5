package shape

import (
	"slices"
	"sync"
	"time"

	"tulle/overlay/tun"
)

// Device is a container's device with limits around it.
type Device struct {
	tun.Device
	start  time.Time
	egress *bucket // the reader's; nil: no limit
	closed chan struct{}
	once   sync.Once
	err    error // of Close
	ended  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	ingress *bucket    // nil: no limit
	queue   [][]byte
	queued  int // bytes
	room    int
	some    chan struct{} // capacity 1: the queue is not empty any more
}

// Wrap puts limits around a device, which is the returned one's from now on. Without
// limits that is dev itself.
func Wrap(dev tun.Device, l Limits) tun.Device {
	if l == (Limits{}) {
		return dev
	}
	d := &Device{Device: dev, start: time.Now(), closed: make(chan struct{}), some: make(chan struct{}, 1)}
	if l.Egress != (Rate{}) {
		d.egress = newBucket(l.Egress, 0)
	}
	if l.Ingress != (Rate{}) {
		d.ingress, d.room = newBucket(l.Ingress, 0), l.Ingress.room()
		d.ended.Go(d.drain)
	}
	return d
}

func (d *Device) now() time.Duration { return time.Since(d.start) }

// UDPOffload says what the device around which this is says.
func (d *Device) UDPOffload() bool {
	o, ok := d.Device.(interface{ UDPOffload() bool })
	return ok && o.UDPOffload()
}

// Read implements tun.Device. It keeps what it read until it may go on; meanwhile
// the container's stack queues, and then its senders wait.
func (d *Device) Read(b []byte) (int, error) {
	n, err := d.Device.Read(b)
	if err != nil || d.egress == nil {
		return n, err
	}
	if !d.sleep(d.egress.wait(d.now())) {
		return 0, tun.ErrClosed
	}
	d.egress.wait(d.now()) // what the sleep brought in
	d.egress.spend(n - tun.HeaderLen)
	return n, nil
}

// Write implements tun.Device.
func (d *Device) Write(pieces ...[]byte) error {
	if d.ingress == nil {
		return d.Device.Write(pieces...)
	}
	n := -tun.HeaderLen
	for _, p := range pieces {
		n += len(p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 && d.ingress.wait(d.now()) == 0 {
		d.ingress.spend(n)
		return d.Device.Write(pieces...)
	}
	if d.queued+n > d.room {
		return ErrQueue
	}
	d.queue = append(d.queue, slices.Concat(pieces...))
	d.queued += n
	select {
	case d.some <- struct{}{}:
	default:
	}
	return nil
}

// drain writes what waits, each when it may. An entry stays in the queue until it is
// written, so that Write does not overtake it.
func (d *Device) drain() {
	for {
		d.mu.Lock()
		if len(d.queue) == 0 {
			d.queue = nil
			d.mu.Unlock()
			select {
			case <-d.some:
				continue
			case <-d.closed:
				return
			}
		}
		if wait := d.ingress.wait(d.now()); wait > 0 {
			d.mu.Unlock()
			if !d.sleep(wait) {
				return
			}
			continue
		}
		b := d.queue[0]
		n := len(b) - tun.HeaderLen
		d.queue[0] = nil
		d.queue = d.queue[1:]
		d.queued -= n
		d.ingress.spend(n)
		// Under the lock, for order's sake. Nobody is there to be told of an error;
		// a device that is down or gone tells the next Write.
		_ = d.Device.Write(b)
		d.mu.Unlock()
	}
}

// sleep is false if the device is closed meanwhile.
func (d *Device) sleep(t time.Duration) bool {
	if t <= 0 {
		return true
	}
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.closed:
		return false
	}
}

// Close implements tun.Device; it waits for the goroutine that writes what waited.
func (d *Device) Close() error {
	d.once.Do(func() {
		close(d.closed)
		d.err = d.Device.Close()
		d.ended.Wait()
	})
	return d.err
}
