package control

import (
	"slices"

	"tulle/policy/api"
)

// Peer is the process at the other end, as the kernel tells (SO_PEERCRED): the
// credentials it had when it connected, in the daemon's user namespace.
type Peer struct {
	UID, GID uint32
	PID      int32
}

// Any in a Grant's list matches everything.
const Any = "*"

// Grant is what one uid may attach. An application named by name must match
// every list that is not empty. One named by GUID must have that GUID in Apps,
// since nothing here could tell which org or space a GUID belongs to, and a space
// or an org beside it in its list: security groups go by what is said. Only a
// grant of any app (Apps is "*", no other list) does without.
type Grant struct {
	UID    uint32
	Orgs   []string
	Spaces []string
	Apps   []string // names or GUIDs
}

// AnyApp is the grant of everything.
func AnyApp(uid uint32) Grant { return Grant{UID: uid, Apps: []string{Any}} }

// allows reports whether ref is within g. A grant without any list allows nothing.
func (g Grant) allows(ref api.AppRef) bool {
	if g.unlimited() {
		return true
	}
	if ref.GUID != "" {
		return slices.Contains(g.Apps, string(ref.GUID)) && named(g.Spaces, ref.Space) && named(g.Orgs, ref.Org)
	}
	if len(g.Orgs)+len(g.Spaces)+len(g.Apps) == 0 {
		return false
	}
	return within(g.Orgs, ref.Org) && within(g.Spaces, ref.Space) && within(g.Apps, ref.Name)
}

func (g Grant) unlimited() bool {
	return slices.Contains(g.Apps, Any) && !limits(g.Orgs) && !limits(g.Spaces)
}

func limits(list []string) bool { return len(list) > 0 && !slices.Contains(list, Any) }

func within(list []string, name string) bool { return !limits(list) || slices.Contains(list, name) }

// named reports whether a list has what is said; nothing said is in every list.
func named(list []string, name string) bool {
	return name == "" || slices.Contains(list, name) || slices.Contains(list, Any)
}

// Authorizer says what a peer may do. It never changes after NewAuthorizer.
type Authorizer struct {
	self   uint32
	grants map[uint32][]Grant
}

// NewAuthorizer knows the daemon's own uid and root, who may attach any app
// unless a grant of theirs says otherwise, and the uids that grants name. All
// others may do nothing.
func NewAuthorizer(self uint32, grants []Grant) *Authorizer {
	a := &Authorizer{self: self, grants: map[uint32][]Grant{}}
	for _, g := range grants {
		a.grants[g.UID] = append(a.grants[g.UID], g)
	}
	for _, uid := range []uint32{0, self} {
		if _, said := a.grants[uid]; !said {
			a.grants[uid] = []Grant{AnyApp(uid)}
		}
	}
	return a
}

// Known refuses a peer that no grant names: it may not even list.
func (a *Authorizer) Known(p Peer) error {
	if len(a.grants[p.UID]) == 0 {
		return Errorf(CodeNotAllowed, "uid %d may not use this cell; its operator can allow it (key allow)", p.UID)
	}
	return nil
}

// Terminate refuses whoever is neither root nor the daemon's own user: the proxy
// gets the keys of every container.
func (a *Authorizer) Terminate(p Peer) error {
	if p.UID == 0 || p.UID == a.self {
		return nil
	}
	return Errorf(CodeNotAllowed, "uid %d may not terminate the containers' TLS; run the proxy as the daemon's user", p.UID)
}

// Rotate refuses whoever is neither root nor the daemon's own user.
func (a *Authorizer) Rotate(p Peer) error {
	if p.UID == 0 || p.UID == a.self {
		return nil
	}
	return Errorf(CodeNotAllowed, "uid %d may not change the cell's keys; do it as root or as the daemon's user", p.UID)
}

// Operate refuses whoever is neither root nor the daemon's own user.
func (a *Authorizer) Operate(p Peer) error {
	if p.UID == 0 || p.UID == a.self {
		return nil
	}
	return Errorf(CodeNotAllowed, "uid %d may not change what this cell does; ask as root or as the daemon's user", p.UID)
}

// Attach refuses an app that the peer's grants do not cover.
func (a *Authorizer) Attach(p Peer, ref api.AppRef) error {
	if err := a.Known(p); err != nil {
		return err
	}
	for _, g := range a.grants[p.UID] {
		if g.allows(ref) {
			return nil
		}
	}
	return Errorf(CodeNotAllowed, "uid %d may not attach %s on this cell", p.UID, describe(ref))
}

// Detach refuses a peer that neither attached the endpoint (owner) nor may
// attach its app.
func (a *Authorizer) Detach(p Peer, owner uint32, ref api.AppRef) error {
	if err := a.Known(p); err != nil {
		return err
	}
	if p.UID == owner || a.Attach(p, ref) == nil {
		return nil
	}
	return Errorf(CodeNotAllowed, "uid %d may not detach a container of %s", p.UID, describe(ref))
}

func describe(ref api.AppRef) string {
	if ref.GUID != "" {
		return "app " + string(ref.GUID)
	}
	s := "app " + ref.Name
	if ref.Space != "" {
		s += " in space " + ref.Space
	}
	if ref.Org != "" {
		s += " of org " + ref.Org
	}
	return s
}
