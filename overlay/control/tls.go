package control

import (
	"encoding/json"
	"net/netip"
	"time"

	"tulle/overlay/mint"
	"tulle/policy"
)

// TLSPort is where a container's TLS is terminated.
const TLSPort = 61443

// DefaultTLSBackend is the app's port behind it, where none is named.
const DefaultTLSBackend = 8080

// Identity says how an app learns who its caller is.
type Identity string

// Identities.
const (
	IdentityNone  Identity = ""      // not at all: plain TCP inside
	IdentityProxy Identity = "proxy" // a PROXY protocol v2 header before the first byte
	IdentityXFCC  Identity = "xfcc"  // X-Forwarded-Client-Cert in each request; HTTP/1.1 alone
)

// TLS asks for termination of TLS on TLSPort, for an Attach. The descriptors of
// mint.Sockets, public socket bound to that port, follow the attach's others.
type TLS struct {
	Backend uint16 `json:"backend,omitempty"` // the app's port; 0: DefaultTLSBackend
	// ClientCertificate asks for one, and that it is the caller's own.
	ClientCertificate bool     `json:"client_certificate,omitempty"`
	Identity          Identity `json:"identity,omitempty"`
	// Off says why there is none although it was asked for, such as a port that
	// the platform's own proxy has. No descriptors come with it.
	Off string `json:"off,omitempty"`
}

// sockets is how many descriptors an attach brings for it.
func (t *TLS) sockets() int {
	if t == nil || t.Off != "" {
		return 0
	}
	return len((&mint.Sockets{}).Files())
}

func (t *TLS) check() error {
	if t == nil {
		return nil
	}
	switch t.Identity {
	case IdentityNone, IdentityProxy, IdentityXFCC:
	default:
		return Errorf(CodeBadRequest, "tls: identity %.32q is neither proxy, xfcc nor \"\"", t.Identity)
	}
	if t.Backend == TLSPort {
		return Errorf(CodeBadRequest, "tls: port %d is reserved for container networking, the app's own port is another", TLSPort)
	}
	if !printable(t.Off, maxName) {
		return Errorf(CodeBadRequest, "tls: off %.32q: at most %d printable bytes", t.Off, maxName)
	}
	return nil
}

// TLSList asks which containers have TLS to be terminated. The answer waits, for
// TLSWait at most, until it is another than Version's.
type TLSList struct {
	Version uint64 `json:"version"`
}

// TLSWait is well below what ends a silent connection.
const TLSWait = 20 * time.Second

// TLSContainers is the answer to TLSList: container and the version of its entry.
// What is in neither list has ended; what waits is journalled, and its attacher has
// not come back with the sockets yet after a restart of the daemon.
type TLSContainers struct {
	Version    uint64            `json:"version"`
	Containers map[string]uint64 `json:"containers"`
	Waiting    []string          `json:"waiting,omitempty"`
}

// TLSSockets asks for a container's sockets; they come beside the answer, a
// TLSContainer.
type TLSSockets struct {
	Container string `json:"container"`
}

// TLSContainer is what the proxy needs of a container beside its sockets.
type TLSContainer struct {
	TLS
	Container string       `json:"container"`
	Address   netip.Addr   `json:"address"`
	App       policy.AppID `json:"app"`
}

// TLSCertificate asks for a container's certificate. The answer waits for its
// first one. With Fresh it is to be renewed if the cell's clock says that it has
// expired.
type TLSCertificate struct {
	Container string `json:"container"`
	Fresh     bool   `json:"fresh,omitempty"`
}

// TLSPair is a certificate with its key, and whom to trust: PEM.
type TLSPair struct {
	Certificate string    `json:"certificate"` // leaf and chain
	Key         string    `json:"key"`
	Trust       string    `json:"trust"`
	NotAfter    time.Time `json:"not_after"`
	Renew       time.Time `json:"renew"` // when to ask again at the latest
}

// TLSCaller asks who is at the other end of a connection to a container's
// TLSPort. CodeNotFound: nobody known.
type TLSCaller struct {
	Container string         `json:"container"`
	Peer      netip.AddrPort `json:"peer"`
}

// Caller is an app at the other end of a live connection.
type Caller struct {
	App       policy.AppID `json:"app"`
	AppName   string       `json:"app_name,omitempty"`
	Space     string       `json:"space,omitempty"`
	SpaceGUID string       `json:"space_guid,omitempty"`
	Org       string       `json:"org,omitempty"`
	OrgGUID   string       `json:"org_guid,omitempty"`
	Container string       `json:"container,omitempty"`
}

// decodeTLS reads what only the proxy asks.
func decodeTLS(r request) (any, error) {
	read := func(into any) error {
		if err := json.Unmarshal(r.Body, into); err != nil {
			return Errorf(CodeBadRequest, "%s: %v", r.Op, err)
		}
		return nil
	}
	switch r.Op {
	case opTLSList:
		var q TLSList
		err := read(&q)
		return q, err
	case opTLSSockets:
		var q TLSSockets
		if err := read(&q); err != nil {
			return nil, err
		}
		return q, checkContainer(q.Container)
	case opTLSCertificate:
		var q TLSCertificate
		if err := read(&q); err != nil {
			return nil, err
		}
		return q, checkContainer(q.Container)
	case opTLSCaller:
		var q TLSCaller
		if err := read(&q); err != nil {
			return nil, err
		}
		if !q.Peer.IsValid() {
			return nil, Errorf(CodeBadRequest, "%s: the peer is no address and port", r.Op)
		}
		return q, checkContainer(q.Container)
	}
	return nil, Errorf(CodeBadRequest, "unknown operation %.32q", r.Op)
}
