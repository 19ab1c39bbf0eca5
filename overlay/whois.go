package overlay

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tulle/overlay/control"
	"tulle/overlay/datapath"
	"tulle/overlay/fib"
	"tulle/overlay/whois"
	"tulle/policy"
)

// Of questions that name no port of the asker's: all its ports are looked at, a few
// milliseconds, unless it is one that had an answer lately.
const (
	recentPorts     = 8
	searches        = 20 // a second and container
	lowestPort      = 1
	highestPort     = 65535
	searchesRefresh = time.Second
)

// askers is what is kept of containers that asked whois.
type askers struct {
	mu sync.Mutex // guards of
	of map[netip.Addr]*whoAsked
}

type whoAsked struct {
	ports []uint16 // the last on top
	left  int      // searches until again
	again time.Duration
}

// guesses are the ports to look at first.
func (a *askers) guesses(of netip.Addr) []uint16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := []uint16{control.TLSPort, control.DefaultTLSBackend}
	if w := a.of[of]; w != nil {
		first = append(slices.Clone(w.ports), first...)
	}
	return first
}

// search takes one of a container's searches.
func (a *askers) search(of netip.Addr, now time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.getLocked(of)
	if now >= w.again {
		w.left, w.again = searches, now+searchesRefresh
	}
	w.left--
	return w.left >= 0
}

func (a *askers) found(of netip.Addr, port uint16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.getLocked(of)
	w.ports = slices.DeleteFunc(w.ports, func(p uint16) bool { return p == port })
	w.ports = append([]uint16{port}, w.ports...)
	w.ports = w.ports[:min(len(w.ports), recentPorts)]
}

func (a *askers) getLocked(of netip.Addr) *whoAsked {
	if a.of == nil {
		a.of = map[netip.Addr]*whoAsked{}
	}
	if a.of[of] == nil {
		a.of[of] = &whoAsked{}
	}
	return a.of[of]
}

func (a *askers) forget(of netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.of, of)
}

// whois implements whois.Lookup.
func (l *life) whois(ctx context.Context, q whois.Question) (whois.Answer, error) {
	local := q.Asker
	if q.Peer.Addr().Is6() {
		local = fib.Twin(local)
	}
	port, err := l.connected(q, local)
	if err != nil {
		return whois.Answer{}, err
	}
	c, err := l.caller(netip.AddrPortFrom(local, port), q.Peer)
	if err != nil {
		return whois.Answer{}, err
	}
	c = l.named(ctx, c)
	return whois.Answer{AppGUID: string(c.App), AppName: c.AppName, SpaceGUID: c.SpaceGUID, SpaceName: c.Space, OrgGUID: c.OrgGUID, OrgName: c.Org}, nil
}

// connected is the asker's port of a connection with that peer. There is at most
// one app at the other end of all of them.
func (l *life) connected(q whois.Question, local netip.Addr) (uint16, error) {
	if q.Port != 0 {
		return q.Port, nil
	}
	has := func(port uint16) bool {
		_, err := l.path.Caller(netip.AddrPortFrom(local, port), q.Peer)
		return err == nil
	}
	for _, port := range l.askers.guesses(q.Asker) {
		if has(port) {
			return port, nil
		}
	}
	if !l.askers.search(q.Asker, l.d.cfg.Clock.Boot()) {
		return 0, whois.ErrBusy
	}
	for port := lowestPort; port <= highestPort; port++ {
		if has(uint16(port)) {
			l.askers.found(q.Asker, uint16(port))
			return uint16(port), nil
		}
	}
	return 0, datapath.ErrNoFlow
}

// Names of apps that the policy server told.
const (
	nameLives   = 5 * time.Minute
	nameFailed  = 10 * time.Second // after it did not
	nameWithin  = time.Second
	namesAtMost = 4096
)

// appNames is what is known of other cells' apps beside their GUIDs.
type appNames struct {
	mu sync.Mutex // guards of
	of map[policy.AppID]appName
}

type appName struct {
	control.Caller
	until time.Duration
}

// named completes who is at the other end, as far as it is known.
func (l *life) named(ctx context.Context, c control.Caller) control.Caller {
	now := l.d.cfg.Clock.Boot()
	l.appNames.mu.Lock()
	known, there := l.appNames.of[c.App]
	l.appNames.mu.Unlock()
	if !there || now >= known.until {
		ctx, cancel := context.WithTimeout(ctx, nameWithin)
		defer cancel()
		got, err := l.d.client.AppName(ctx, c.App)
		switch {
		case err == nil:
			known = appName{control.Caller{AppName: got.Name, Space: got.Space, SpaceGUID: got.SpaceGUID, Org: got.Org, OrgGUID: got.OrgGUID}, now + nameLives}
		default: // what was known stays
			known.until = now + nameFailed
			l.d.log.Debug("name of a caller's app", "app", c.App, "err", err)
		}
		l.appNames.put(c.App, known)
	}
	if known.AppName != "" {
		c.AppName, c.Space, c.SpaceGUID, c.Org, c.OrgGUID = known.AppName, known.Space, known.SpaceGUID, known.Org, known.OrgGUID
	}
	return c
}

func (n *appNames) put(app policy.AppID, a appName) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of == nil || len(n.of) >= namesAtMost {
		n.of = map[policy.AppID]appName{}
	}
	n.of[app] = a
}
