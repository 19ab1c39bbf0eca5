package control

import (
	"encoding/json"
	"strings"
	"unicode"

	"tulle/policy/api"
)

// Operations.
const (
	opAttach = "attach"
	opDetach = "detach"
	opGC     = "gc"
	opList   = "list"
	opStatus = "status"

	opTLSList        = "tls_list"
	opTLSSockets     = "tls_sockets"
	opTLSCertificate = "tls_certificate"
	opTLSCaller      = "tls_caller"

	opPortAdd    = "port-add"
	opPortRemove = "port-remove"
	opPortList   = "port-list"
	opNATWho     = "nat-who"

	opRotateKey  = "rotate-key"
	opRulesAdd   = "rules-add"
	opTrafficLog = "traffic-log"
)

const (
	maxContainer = 128
	maxName      = 255
	maxDevice    = 15 // IFNAMSIZ less its terminator
)

// decodeRequest turns a payload with n descriptors beside it into one of
// the requests, checked. The sender is any
// local process that may open the socket; every refusal is a bad_request.
func decodeRequest(payload []byte, n int) (any, error) {
	var r request
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, Errorf(CodeBadRequest, "message is not a request: %v", err)
	}
	if r.Op != opAttach && n > 0 {
		return nil, Errorf(CodeBadRequest, "%s takes no descriptor, %d came with it", r.Op, n)
	}
	switch r.Op {
	case opAttach:
		var a Attach
		if err := json.Unmarshal(r.Body, &a); err != nil {
			return nil, Errorf(CodeBadRequest, "attach: %v", err)
		}
		return a, a.check(n)
	case opDetach:
		var d Detach
		if err := json.Unmarshal(r.Body, &d); err != nil {
			return nil, Errorf(CodeBadRequest, "detach: %v", err)
		}
		return d, checkContainer(d.Container)
	case opGC:
		var g GC
		if err := json.Unmarshal(r.Body, &g); err != nil {
			return nil, Errorf(CodeBadRequest, "gc: %v", err)
		}
		return g, g.check()
	case opPortAdd, opPortRemove:
		var p PortAdd
		if err := json.Unmarshal(r.Body, &p); err != nil {
			return nil, Errorf(CodeBadRequest, "%s: %v", r.Op, err)
		}
		if err := checkContainer(p.Container); err != nil {
			return nil, err
		}
		if r.Op == opPortRemove {
			return PortRemove(p), p.check()
		}
		return p, p.check()
	case opRulesAdd:
		var a RulesAdd
		if err := json.Unmarshal(r.Body, &a); err != nil {
			return nil, Errorf(CodeBadRequest, "%s: %v", r.Op, err)
		}
		return a, a.check()
	case opTrafficLog:
		var s TrafficLogSet
		if err := json.Unmarshal(r.Body, &s); err != nil {
			return nil, Errorf(CodeBadRequest, "%s: %v", r.Op, err)
		}
		return s, nil
	case opPortList:
		return portListRequest{}, nil
	case opNATWho:
		var q NATWho
		if err := json.Unmarshal(r.Body, &q); err != nil {
			return nil, Errorf(CodeBadRequest, "nat-who: %v", err)
		}
		if !q.Source.IsValid() || q.Source.Port() == 0 {
			return nil, Errorf(CodeBadRequest, "nat-who: %v is no address with a port", q.Source)
		}
		return q, nil
	case opRotateKey:
		var q RotateKey
		if err := json.Unmarshal(r.Body, &q); err != nil {
			return nil, Errorf(CodeBadRequest, "rotate-key: %v", err)
		}
		return q, nil
	case opList:
		return listRequest{}, nil
	case opStatus:
		return statusRequest{}, nil
	}
	return decodeTLS(r)
}

type (
	listRequest   struct{}
	statusRequest struct{}

	portListRequest struct{}
)

func (a Attach) check(files int) error {
	if err := checkContainer(a.Container); err != nil {
		return err
	}
	if err := checkApp(a.App); err != nil {
		return err
	}
	if err := a.checkOutside(); err != nil {
		return err
	}
	if !printable(a.Instance, maxName) {
		return Errorf(CodeBadRequest, "instance %.32q: at most %d printable bytes", a.Instance, maxName)
	}
	if a.Device == "" || !printable(a.Device, maxDevice) || strings.ContainsAny(a.Device, "/ ") {
		return Errorf(CodeBadRequest, "device %.32q is no name of a network device", a.Device)
	}
	if !printable(a.Network, maxName) {
		return Errorf(CodeBadRequest, "network %.32q: at most %d printable bytes", a.Network, maxName)
	}
	if a.Address.IsValid() && !a.Address.Is4() {
		return Errorf(CodeBadRequest, "address %s: containers have IPv4 addresses", a.Address)
	}
	want := 1
	switch a.Lifeline {
	case LifelineConnection, LifelineNone:
	case LifelinePidfd:
		want = 2
	default:
		return Errorf(CodeBadRequest, "unknown lifeline %.32q", a.Lifeline)
	}
	if err := a.TLS.check(); err != nil {
		return err
	}
	if want += a.TLS.sockets(); files != want {
		return Errorf(CodeBadRequest, "attach with lifeline %s takes %d descriptors, %d came with it", a.Lifeline, want, files)
	}
	return nil
}

func (g GC) check() error {
	if g.Network == "" || !printable(g.Network, maxName) {
		return Errorf(CodeBadRequest, "gc of network %.32q: 1 to %d printable bytes", g.Network, maxName)
	}
	for _, c := range g.Keep {
		if err := checkContainer(c); err != nil {
			return err
		}
	}
	return nil
}

// CheckContainer says why no container can have the name; Attach refuses it.
func CheckContainer(id string) error { return checkContainer(id) }

// checkContainer keeps names to what the CNI specification allows, so that they
// are safe in a log, a file and a descriptor store's FDNAME.
func checkContainer(id string) error {
	ok := len(id) > 0 && len(id) <= maxContainer
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		ok = alnum || i > 0 && (c == '_' || c == '.' || c == '-')
	}
	if !ok {
		return Errorf(CodeBadRequest, "container %.32q: 1 to %d letters, digits, '_', '.' and '-', a letter or digit first", id, maxContainer)
	}
	return nil
}

func checkApp(ref api.AppRef) error {
	if ref.GUID == "" && ref.Name == "" {
		return Errorf(CodeBadRequest, "attach names no app")
	}
	for _, s := range []string{string(ref.GUID), ref.Name, ref.Space, ref.Org} {
		if !printable(s, maxName) {
			return Errorf(CodeBadRequest, "app %.32q: at most %d printable bytes", s, maxName)
		}
	}
	return nil
}

func printable(s string, limit int) bool {
	return len(s) <= limit && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0
}
