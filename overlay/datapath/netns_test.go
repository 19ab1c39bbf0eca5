package datapath

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"tulle/overlay/fib"
	"tulle/overlay/netcfg"
	"tulle/overlay/netcfg/nstest"
	"tulle/overlay/shape"
	"tulle/overlay/tun"
	"tulle/overlay/udp/udptest"
	"tulle/policy"
)

// kernels are two cells with a container each whose stack is the kernel's, in a
// namespace of its own, behind a real TUN device. Between the cells lies the network
// in memory, so that a test may lose, repeat, hold and change what it likes.
//
//	namespace ── TUN ── Path ── network in memory ── Path ── TUN ── namespace
type kernels struct {
	*live
	web, db *kernelContainer
	mtu     int
}

type kernelContainer struct {
	ns   *nstest.Namespace
	addr netip.Addr
}

// newKernels has both tunnel modes; the policies are web → db tcp 80 and udp 53.
func newKernels(t *testing.T, mode fib.Mode, mtu int) *kernels {
	nstest.NeedTUN(t)
	k := &kernels{mtu: mtu}
	options := func(_ *live, _ int, o *Options) { o.MTU, o.Ticks = mtu, nil }
	if mode == fib.WireGuard {
		k.live = newTunnelled(t, options).live
	} else {
		k.live = newLive(t, options)
	}
	for _, c := range k.cells {
		c.policies.Add(rule("web db udp 53"))
		c.policies.Add(rule("web db tcp 80"))
	}
	k.web, k.db = k.attach(0, "web", 2, mtu, shape.Limits{}), k.attach(1, "db", 3, mtu, shape.Limits{})
	k.start()
	return k
}

func (k *kernels) attach(cell int, app policy.AppID, host byte, mtu int, limits shape.Limits) *kernelContainer {
	k.t.Helper()
	c := k.cells[cell]
	a := c.subnet.Addr().As4()
	a[3] = host
	n := &kernelContainer{ns: nstest.New(k.t), addr: netip.AddrFrom4(a)}
	dev, err := tun.FromFile(n.ns.TUN(k.t, "eth0", netip.PrefixFrom(n.addr, 32), mtu))
	if err != nil {
		k.t.Fatal(err)
	}
	err = n.ns.Do(func() error {
		return netcfg.Configure(netcfg.Device{Name: "eth0", Address: netip.PrefixFrom(n.addr, 32), Address6: netip.PrefixFrom(fib.Twin(n.addr), 128), MTU: mtu})
	})
	if err != nil {
		k.t.Fatal(err)
	}
	if err := c.path.Attach(fib.Local{Addr: n.addr, App: app, Tag: tags[app], Incarnation: 1<<32 | uint64(host)}, shape.Wrap(dev, limits)); err != nil {
		k.t.Fatal(err)
	}
	k.cells[1-cell].fib.Update(func(b *fib.Builder) {
		b.PutRemote(fib.Remote{Addr: n.addr, App: app, Tag: tags[app], Incarnation: 1<<32 | uint64(host)})
	})
	return n
}

// serve accepts in the container, and answers each connection with the sum of what
// came and then as many bytes again.
func (n *kernelContainer) serve(t testing.TB, at netip.Addr, port uint16) {
	t.Helper()
	var l net.Listener
	err := n.ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				h := sha256.New()
				size, err := io.Copy(h, c)
				if err == nil {
					c.Write(h.Sum(nil))
					io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
				}
			}()
		}
	}()
}

func (n *kernelContainer) dial(ctx context.Context, network, to string) (c net.Conn, err error) {
	err = n.ns.Do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, to)
		return err
	})
	return c, err
}

// transfer sends size bytes to a serve, and wants them, and as many back, whole.
func (n *kernelContainer) transfer(ctx context.Context, to string, size int64) error {
	c, err := n.dial(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		c.SetDeadline(d)
	}
	want := sha256.New()
	if _, err := io.Copy(io.MultiWriter(c, want), io.LimitReader(rand.NewChaCha8([32]byte{2}), size)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if !bytes.Equal(got, want.Sum(nil)) {
		return fmt.Errorf("other bytes arrived")
	}
	back, ref := sha256.New(), sha256.New()
	if n, err := io.Copy(back, c); err != nil || n != size {
		return fmt.Errorf("%d of %d bytes came back: %w", n, size, err)
	}
	io.Copy(ref, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
	if !bytes.Equal(back.Sum(nil), ref.Sum(nil)) {
		return fmt.Errorf("other bytes came back")
	}
	return nil
}

// datagrams makes the container answer every datagram with itself.
func (n *kernelContainer) datagrams(t testing.TB, at netip.Addr, port uint16) {
	t.Helper()
	var c net.PacketConn
	err := n.ns.Do(func() (err error) {
		c, err = net.ListenPacket("udp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	}()
}

// askUDP sends a datagram of size bytes until it comes back.
func (n *kernelContainer) askUDP(ctx context.Context, to string, size int) error {
	c, err := n.dial(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{3}).Read(sent)
	b := make([]byte, 65535)
	var last error
	for ctx.Err() == nil {
		if _, err := c.Write(sent); err != nil {
			last = err // "message too long" until the kernel has learned of the path
		}
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Read(b)
		if err == nil {
			if !bytes.Equal(b[:n], sent) {
				return fmt.Errorf("another datagram came back, of %d bytes", n)
			}
			return nil
		}
		if !os.IsTimeout(err) {
			last = err
		}
	}
	return fmt.Errorf("no datagram of %d bytes came back: %w", size, last)
}

// inModes runs f in both tunnel modes.
func inModes(t *testing.T, f func(t *testing.T, k *kernels)) {
	for mode, mtu := range map[fib.Mode]int{fib.VXLAN: 1450, fib.WireGuard: 1390} {
		t.Run(mode.String(), func(t *testing.T) { f(t, newKernels(t, mode, mtu)) })
	}
}

// A path of 1,296 bytes on which nobody says so: connections and large datagrams
// just work, both ways.
func TestSmallPathUnderRealStacks(t *testing.T) {
	inModes(t, func(t *testing.T, k *kernels) {
		lost := 0
		k.net.SetHook(func(d *udptest.Datagram) udptest.Fate {
			if len(d.Payload) > 1296-28 {
				lost++
				return udptest.Drop
			}
			return udptest.Deliver
		})
		k.db.serve(t, k.db.addr, 80)
		k.db.serve(t, fib.Twin(k.db.addr), 80)
		k.db.datagrams(t, k.db.addr, 53)
		k.db.datagrams(t, fib.Twin(k.db.addr), 53)
		for _, to := range []netip.Addr{k.db.addr, fib.Twin(k.db.addr)} {
			if err := k.web.transfer(k.ctx, netip.AddrPortFrom(to, 80).String(), 4<<20); err != nil {
				t.Error(err)
			}
		}
		for _, size := range []int{1400, 4000, 20000} {
			if err := k.web.askUDP(k.ctx, netip.AddrPortFrom(k.db.addr, 53).String(), size); err != nil {
				t.Error(err)
			}
		}
		// IPv6 promises its senders 1,280 bytes; a datagram that fits those ways it does.
		if err := k.web.askUDP(k.ctx, netip.AddrPortFrom(fib.Twin(k.db.addr), 53).String(), 1000); err != nil {
			t.Error(err)
		}
		k.net.SetHook(nil)
		if lost == 0 {
			t.Error("nothing was too big for the path: the test shows nothing")
		}
		t.Logf("%d datagrams were too big for the path", lost)
	})
}

// Loss, repetition, delay and reordering cost time, not bytes.
func TestBadNetworkUnderRealStacks(t *testing.T) {
	inModes(t, func(t *testing.T, k *kernels) {
		rnd := rand.New(rand.NewPCG(4, 2)) // the hook runs one at a time
		k.net.SetHook(func(*udptest.Datagram) udptest.Fate {
			switch n := rnd.IntN(1000); {
			case n < 10:
				return udptest.Drop
			case n < 30:
				return udptest.Duplicate
			case n < 60:
				return udptest.Hold
			}
			return udptest.Deliver
		})
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for tick := time.NewTicker(2 * time.Millisecond); ; {
				select {
				case <-tick.C:
					k.net.Release() // what was held is late, and out of order
				case <-stop:
					tick.Stop()
					return
				}
			}
		}()
		for _, to := range []netip.Addr{k.db.addr, fib.Twin(k.db.addr)} {
			k.db.serve(t, to, 80)
			k.db.datagrams(t, to, 53)
			if err := k.web.transfer(k.ctx, netip.AddrPortFrom(to, 80).String(), 1<<20); err != nil {
				t.Error(err)
			}
			for _, size := range []int{100, 4000, 20000} {
				if err := k.web.askUDP(k.ctx, netip.AddrPortFrom(to, 53).String(), size); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// A container's limits hold for real connections, each direction for itself, on its
// own cell and across: never more than the rate, and not much less.
func TestBandwidthUnderRealStacks(t *testing.T) {
	k := newKernels(t, fib.VXLAN, 1450)
	const burst = 8 * 64 << 10
	slow := k.attach(0, "web", 9, 1450, shape.Limits{
		Egress: shape.Rate{Rate: 20e6, Burst: burst}, Ingress: shape.Rate{Rate: 40e6, Burst: burst},
	})
	near := k.attach(0, "db", 10, 1450, shape.Limits{})
	for name, to := range map[string]*kernelContainer{"same cell": near, "across": k.db} {
		t.Run(name, func(t *testing.T) {
			to.serve(t, to.addr, 80)
			const size = 3 << 20
			begun := time.Now()
			if err := slow.transfer(k.ctx, netip.AddrPortFrom(to.addr, 80).String(), size); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begun).Seconds()
			// Nobody waits for the debt of the last super-packet.
			const last = 8 * 64 << 10
			least := (8*size-burst-last)/20e6 + (8*size-burst-last)/40e6
			if took < least || took > 4*least {
				t.Errorf("%d bytes there and back took %.2f s, want at least %.2f", size, took, least)
			}
			t.Logf("%.2f s, at full rate %.2f", took, least)
		})
	}
}

// Containers talk IPv6 to each other on one cell and across, in both modes, in bulk
// and in fragments; what no policy allows is refused at once; a removed policy resets
// an idle connection at both ends.
func TestIPv6UnderRealStacks(t *testing.T) {
	inModes(t, func(t *testing.T, k *kernels) {
		near := k.attach(0, "db", 10, k.mtu, shape.Limits{})
		for name, to := range map[string]*kernelContainer{"same cell": near, "across": k.db} {
			at := fib.Twin(to.addr)
			to.serve(t, at, 80)
			to.datagrams(t, at, 53)
			if err := k.web.transfer(k.ctx, netip.AddrPortFrom(at, 80).String(), 8<<20); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, size := range []int{10, 4000, 60000} {
				if err := k.web.askUDP(k.ctx, netip.AddrPortFrom(at, 53).String(), size); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, err := k.web.dial(k.ctx, "tcp", netip.AddrPortFrom(at, 81).String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: a port that no policy names: %v", name, err)
			}
		}
		c, err := k.web.dial(k.ctx, "tcp", netip.AddrPortFrom(fib.Twin(k.db.addr), 80).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r := rule("web db tcp 80")
		for _, cell := range k.cells {
			cell.policies.Remove(r)
			cell.path.Cut([]Pair{{r.Src, r.Dst}})
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an idle connection whose policy went: %v", err)
		}
	})
}
