package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tulle/cmd/internal/demo"
	"tulle/policy"
)

// Ports that both strangers use, for sending and for receiving.
const (
	strangerUDP = 5000
	strangerTCP = 5001
)

// meeting is what one side saw of the other.
type meeting struct {
	Sent      int `json:"sent"`      // datagrams
	Tries     int `json:"tries"`     // connects
	Datagrams int `json:"datagrams"` // received
	Connected int `json:"connected"`
}

// TestStrangersNeverMeet: two apps send to each other from fixed ports at the
// same time, so that each side's packets look like replies to the other's. On
// stateful rules that let "established" back in, both UDP and TCP (simultaneous
// open) get through. Here not one byte does, on one cell and across cells; and
// with policies the very same program does meet.
func TestStrangersNeverMeet(t *testing.T) {
	needHost(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w := newWorld(t)
	if _, err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	var cells []*demo.Cell
	for i, underlay := range []string{"127.0.0.1", "127.0.0.2"} {
		c, err := w.StartCell(ctx, fmt.Sprintf("cell-%d", i+1), netip.MustParseAddr(underlay))
		if err != nil {
			t.Fatal(err)
		}
		cells = append(cells, c)
	}
	left := newStranger(t, cells[0], "left", 0)
	near := newStranger(t, cells[0], "right", 0)
	far := newStranger(t, cells[1], "right", 1)

	const long, short = 3 * time.Second, time.Second
	for _, c := range []struct {
		name  string
		other *stranger
	}{{"same cell", near}, {"across cells", far}} {
		l, r := meet(t, left, c.other, long)
		t.Logf("%s, no policy: left %+v, right %+v", c.name, l, r)
		if l.Datagrams+r.Datagrams+l.Connected+r.Connected != 0 {
			t.Errorf("%s: strangers met: left %+v, right %+v", c.name, l, r)
		}
		if min(l.Sent, r.Sent) < 1000 || min(l.Tries, r.Tries) < 100 {
			t.Errorf("%s: too few attempts to mean anything: left %+v, right %+v", c.name, l, r)
		}
	}

	a := api(t, w)
	ids := make(map[string]policy.AppID)
	for _, name := range []string{"left", "right"} {
		id, err := a.AppID(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = id
	}
	for _, pair := range [][2]string{{"left", "right"}, {"right", "left"}} {
		for proto, port := range map[policy.Protocol]uint16{policy.UDP: strangerUDP, policy.TCP: strangerTCP} {
			p := policy.Policy{Source: ids[pair[0]], Destination: ids[pair[1]], Protocol: proto,
				Ports: policy.PortRange{Start: port, End: port}}
			if err := a.Create(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, other := range []*stranger{near, far} {
		l, r := meet(t, left, other, short)
		t.Logf("with policies: left %+v, right %+v", l, r)
		// A TCP connection needs two SYNs that cross on their way, which across cells
		// is a matter of luck.
		connected := other == far || l.Connected > 0 && r.Connected > 0
		if l.Datagrams == 0 || r.Datagrams == 0 || !connected {
			t.Errorf("with policies the same attempts must succeed: left %+v, right %+v", l, r)
		}
	}
}

// stranger is a container that runs this test binary (see TestMain).
type stranger struct {
	address string
	in      io.Writer
	out     *bufio.Reader
}

const strangerRole = "TULLE_E2E_STRANGER"

func newStranger(t *testing.T, cell *demo.Cell, app string, index int) *stranger {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin+"/tulle", "run", "--app", app, "--space", demo.Space, "--org", demo.Org,
		"--instance", strconv.Itoa(index), "--socket", cell.Socket, "--", bin+"/"+self)
	cmd.Env = append(os.Environ(), strangerRole+"=1")
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // the end of its input ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s/%d: %v", app, index, err)
		}
	})
	s := &stranger{in: in, out: bufio.NewReader(out)}
	if s.address, err = s.out.ReadString('\n'); err != nil {
		t.Fatalf("%s/%d did not start: %v", app, index, err)
	}
	s.address = s.address[:len(s.address)-1]
	return s
}

// meet lets both try for d, at the same time.
func meet(t *testing.T, left, right *stranger, d time.Duration) (l, r meeting) {
	t.Helper()
	for _, s := range []struct{ who, other *stranger }{{left, right}, {right, left}} {
		if _, err := fmt.Fprintf(s.who.in, "%s %d\n", s.other.address, d); err != nil {
			t.Fatal(err)
		}
	}
	for s, m := range map[*stranger]*meeting{left: &l, right: &r} {
		line, err := s.out.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, m)
		}
		if err != nil {
			t.Fatalf("no result: %v", err)
		}
	}
	return l, r
}

// beStranger is the program inside the container: it says its address, then
// tries to meet whom each line of its input names.
func beStranger() error {
	own, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	addrs, err := own.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP.To4(); ip != nil {
			fmt.Println(ip)
		}
	}
	for {
		var peer string
		var d time.Duration
		if _, err := fmt.Scanln(&peer, &d); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), d)
		m, err := tryToMeet(ctx, peer)
		cancel()
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(m); err != nil {
			return err
		}
	}
}

func reuse(_, _ string, c syscall.RawConn) (err error) {
	control := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	if control != nil {
		return control
	}
	return err
}

func tryToMeet(ctx context.Context, peer string) (meeting, error) {
	u, err := net.ListenUDP("udp4", &net.UDPAddr{Port: strangerUDP})
	if err != nil {
		return meeting{}, err
	}
	to := &net.UDPAddr{IP: net.ParseIP(peer), Port: strangerUDP}
	var m meeting
	var received, sent atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 100)
		for {
			// ECONNREFUSED does not reach an unconnected socket; any error is its end.
			if _, _, err := u.ReadFrom(b); err != nil {
				return
			}
			received.Add(1)
		}
	})
	wg.Go(func() {
		// Paced, so that the other side's processor time is left to it.
		pace := time.NewTicker(500 * time.Microsecond)
		defer pace.Stop()
		for {
			select {
			case <-ctx.Done():
				u.Close()
				return
			case <-pace.C:
				if _, err := u.WriteTo([]byte("anybody?"), to); err == nil {
					sent.Add(1)
				}
			}
		}
	})
	d := net.Dialer{LocalAddr: &net.TCPAddr{Port: strangerTCP}, Control: reuse, Timeout: 20 * time.Millisecond}
	for ctx.Err() == nil {
		m.Tries++
		c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort(peer, strconv.Itoa(strangerTCP)))
		if err != nil {
			continue
		}
		m.Connected++
		c.(*net.TCPConn).SetLinger(0) // so that the port is free for the next
		c.Close()
	}
	wg.Wait()
	m.Datagrams, m.Sent = int(received.Load()), int(sent.Load())
	return m, nil
}
