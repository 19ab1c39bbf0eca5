package dataplane

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"tulle/cmd/tulle-bench/internal/bench"
	"tulle/cmd/tulle-bench/internal/netlab"
)

// wireguardRole plays wireguard-go as its own program is: a TUN device of the
// kernel's and its own sockets, configured by what stands on its input.
const wireguardRole = "wireguard-go"

const wg0 = "wg0"

// tunnelAddrs are the ends' addresses inside.
var tunnelAddrs = [2]netip.Addr{netip.MustParseAddr("10.66.0.1"), netip.MustParseAddr("10.66.0.2")}

// setWireGuard starts a wireguard-go on each host of an underlay, with generators
// right on their devices.
func (r *rig) setWireGuard(ctx context.Context, mtu int) error {
	u, err := r.underlay(false)
	if err != nil {
		return err
	}
	var private, public [2]string
	for i := range private {
		key := make([]byte, curve25519.ScalarSize)
		if _, err := rand.Read(key); err != nil {
			return err
		}
		point, err := curve25519.X25519(key, curve25519.Basepoint)
		if err != nil {
			return err
		}
		private[i], public[i] = hex.EncodeToString(key), hex.EncodeToString(point)
	}
	for i := range private {
		text := fmt.Sprintf("private_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s:51820\nallowed_ip=%s/32\n\n",
			private[i], public[1-i], u.Addrs[1-i], tunnelAddrs[1-i])
		w, err := startWireGuard(ctx, u.Hosts[i], mtu, text)
		if err != nil {
			return err
		}
		r.keep(w)
		if err := u.Hosts[i].Do(func() error { return tunnelUp(i) }); err != nil {
			return fmt.Errorf("%s: %w", wg0, err)
		}
	}
	if r.peer, err = newPair(ctx, u.Hosts[0], u.Hosts[1], tunnelAddrs[1]); err != nil {
		return err
	}
	r.keep(r.peer)
	return nil
}

func tunnelUp(i int) error {
	link, err := netlink.LinkByName(wg0)
	if err != nil {
		return err
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: tunnelAddrs[i].AsSlice(), Mask: net.CIDRMask(24, 32)}}
	return errors.Join(netlink.AddrAdd(link, own), netlink.LinkSetUp(link))
}

// wireguard is one such process.
type wireguard struct {
	cmd *exec.Cmd
	in  io.Closer
}

// Close ends it: the end of its input does.
func (w *wireguard) Close() error { return errors.Join(w.in.Close(), w.cmd.Wait()) }

func startWireGuard(ctx context.Context, host *netlab.Namespace, mtu int, config string) (*wireguard, error) {
	cmd, err := bench.Play(ctx, wireguardRole, strconv.Itoa(mtu))
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := host.Do(cmd.Start); err != nil {
		return nil, err
	}
	w := &wireguard{cmd, in}
	_, err = io.WriteString(in, config)
	if err == nil {
		_, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wireguard-go does not start: %w", err), w.Close())
	}
	return w, nil
}

func beWireGuard(_ context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("give the MTU")
	}
	mtu, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	dev, err := tun.CreateTUN(wg0, mtu)
	if err != nil {
		return err
	}
	d := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	lines := bufio.NewReader(in)
	var config string
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		if line == "\n" {
			break
		}
		config += line
	}
	if err := d.IpcSet(config); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, lines)
	return err
}
