package egress_test

import (
	"net"
	"sync"
	"testing"
	"time"
)

// BenchmarkConnections opens connections from a container to a server in another
// namespace, a byte to and fro on each, 16 at once.
func BenchmarkConnections(b *testing.B) {
	r := newRig(b)
	var l net.Listener
	if err := r.world.Do(func() (err error) { l, err = net.Listen("tcp4", "192.0.2.2:0"); return err }); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 1)
				if _, err := c.Read(buf); err == nil {
					c.Write(buf)
					c.Read(buf)
				}
				c.Close()
			}()
		}
	}()
	c := r.container(1, anything(b))
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			_ = c.Do(func() error {
				buf := make([]byte, 1)
				for range work {
					d, err := net.DialTimeout("tcp4", l.Addr().String(), 10*time.Second)
					if err != nil {
						b.Error(err)
						continue
					}
					if _, err = d.Write(buf); err == nil {
						_, err = d.Read(buf)
					}
					if err != nil {
						b.Error(err)
					}
					d.(*net.TCPConn).SetLinger(0)
					d.Close()
				}
				return nil
			})
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}
