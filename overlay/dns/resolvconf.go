package dns

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/miekg/dns"
)

// upstreams is the list of resolvers to ask, in order.
type upstreams struct {
	fixed   []netip.AddrPort // asked instead of the file's, if not nil
	path    string
	overlay netip.Prefix
	log     *slog.Logger
	moved   func() // called when others are to be asked than before; may be nil

	mu     sync.Mutex // guards what follows
	last   reading
	unread bool // the file is there, and could not be read the last time
}

// reading is one reading of the file.
type reading struct {
	info    fs.FileInfo      // nil: it was not there
	servers []netip.AddrPort // nil: not read yet
}

func newUpstreams(o Options) *upstreams {
	u := &upstreams{path: o.ResolvConf, overlay: o.Overlay, log: o.Log}
	if o.Upstreams != nil {
		u.fixed = u.usable(o.Upstreams)
	}
	return u
}

// list is who is to be asked now. The file is looked at each time, which costs
// a stat beside the round trip of a query and needs no watcher: a laptop
// changes networks, and the next query knows it.
func (u *upstreams) list() []netip.AddrPort {
	if u.fixed != nil {
		return u.fixed
	}
	info, err := os.Stat(u.path)
	if err != nil {
		info = nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last.servers != nil && sameFile(u.last.info, info) {
		return u.last.servers
	}
	servers, err := ReadResolvConf(u.path)
	if err != nil && info != nil {
		// It is there, and what keeps it from being read may pass: no descriptor is free.
		if !u.unread {
			u.unread = true
			u.log.Warn("resolvers cannot be read; it is tried again", "path", u.path, "error", err, "resolvers", u.last.servers)
		}
		return u.last.servers
	}
	u.unread = false
	if u.last.servers != nil && u.moved != nil {
		u.moved()
	}
	u.last.info, u.last.servers = info, []netip.AddrPort{}
	if err != nil {
		u.log.Warn("no resolvers", "path", u.path, "error", err)
		return u.last.servers
	}
	u.last.servers = u.usable(servers)
	u.log.Info("resolvers read", "path", u.path, "resolvers", u.last.servers)
	return u.last.servers
}

func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// usable leaves out who must not be asked.
func (u *upstreams) usable(servers []netip.AddrPort) []netip.AddrPort {
	kept := make([]netip.AddrPort, 0, len(servers))
	for _, s := range servers {
		addr := s.Addr().Unmap()
		if addr == Address.Addr() || addr == Address6.Addr() || u.overlay.IsValid() && u.overlay.Contains(addr) {
			u.log.Warn("resolver refused: it is one of the containers' own", "resolver", addr)
			continue
		}
		kept = append(kept, netip.AddrPortFrom(addr, s.Port()))
	}
	return kept
}

// ReadResolvConf is the file's nameserver lines; one that holds no address is
// passed over, as the C library does.
func ReadResolvConf(path string) ([]netip.AddrPort, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var servers []netip.AddrPort
	for _, s := range conf.Servers {
		if addr, err := netip.ParseAddr(s); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, 53))
		}
	}
	return servers, nil
}
