package route

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// authority issues the certificates of a NATS server and of its clients.
type authority struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{T: t}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "nats CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		a.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.Fatal(err)
	}
	return cert, key
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) pair(tmpl *x509.Certificate) tls.Certificate {
	a.Helper()
	cert, key := a.sign(tmpl)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) server(names ...string) tls.Certificate {
	a.Helper()
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	return a.pair(tmpl)
}

func (a *authority) client() tls.Certificate {
	a.Helper()
	return a.pair(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// startTLS is a real server that wants a certificate of the authority's.
func (a *authority) startTLS(port int, own tls.Certificate) *natsserver.Server {
	a.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: port, NoSigs: true, Username: "nats", Password: "pass", TLSTimeout: patience.Seconds(), TLSVerify: true,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool()}})
	if err != nil {
		a.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(patience) {
		a.Fatal("NATS does not start")
	}
	a.Cleanup(s.Shutdown)
	return s
}

// count is how often the log says something.
func (r *rig) count(text string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.log.String(), text)
}

func (r *rig) says(text string) bool { return r.count(text) > 0 }

// TestNATSOverTLS: the listener shows its certificate and wants the server's to be
// right. One that is not is refused, and told; the right one that takes its place,
// at the same address, is found, and what emitters register there is heard.
func TestNATSOverTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	own := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ca.pool(), Certificates: []tls.Certificate{ca.client()}}
	r := newRig(t)
	r.nats.Shutdown() // the rig's, without TLS
	r.emitter.Close()
	at := -1
	begin := func(c tls.Certificate) {
		t.Helper()
		r.nats = ca.startTLS(at, c)
		at = port(r.nats)
	}
	begin(stranger.server("127.0.0.1"))
	r.listenWith(func(o *Options) { o.TLS = own })
	refused := func(why string) {
		t.Helper()
		r.until("it is told: "+why, func() bool { return r.says("NATS cannot be had") && r.says(why) })
		if c := r.listener.Counts(); c.Connected || c.Registers != 0 {
			t.Errorf("%s: connected all the same: %+v", why, c)
		}
		r.nats.Shutdown()
		r.pass(time.Minute) // so that the next reason is told too
	}
	refused("certificate signed by unknown authority")
	begin(ca.server("nats.service.cf.internal"))
	refused("doesn't contain any IP SANs")

	begin(ca.server("127.0.0.1"))
	r.until("connected", func() bool { return r.listener.Counts().Connected })
	emitter, err := nats.Connect("tls://"+r.nats.Addr().String(), nats.UserInfo("nats", "pass"), nats.Secure(own), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(emitter.Close)
	r.emitter = emitter
	r.publish(subjectRegister, emitted)
	r.stored("over TLS", "web.apps.internal 10.255.77.2", "0.web.apps.internal 10.255.77.2")

	// The server ends and is started again: both find it.
	r.nats.Shutdown()
	r.until("NATS is missed", func() bool { return !r.listener.Counts().Connected })
	begin(ca.server("127.0.0.1"))
	r.until("NATS is back", func() bool { return r.listener.Counts().Connected })
	r.until("the emitter is connected again", r.emitter.IsConnected)
	r.publish(subjectUnregister, emitted)
	r.stored("unregistered over TLS")
}

// TestNATSRefusesTheListener: whom the server does not take, for a certificate or a
// password, tries again and says why; the policy server lives on, and is let in when
// that is mended at the other end.
func TestNATSRefusesTheListener(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		name, why string
		password  string
		certs     []tls.Certificate
		refuses   func(port int) *natsserver.Server
		takes     func(port int) *natsserver.Server
	}{
		{"no certificate", "tls", "pass", nil,
			func(port int) *natsserver.Server { return ca.startTLS(port, ca.server("127.0.0.1")) }, nil},
		{"a stranger's certificate", "tls", "pass", []tls.Certificate{newAuthority(t).client()},
			func(port int) *natsserver.Server { return ca.startTLS(port, ca.server("127.0.0.1")) }, nil},
		{"another password", "Authorization Violation", "mistyped", nil,
			func(port int) *natsserver.Server { return startNATS(t, port) },
			func(port int) *natsserver.Server {
				s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: port, NoSigs: true, Username: "nats", Password: "mistyped"})
				if err != nil {
					t.Fatal(err)
				}
				go s.Start()
				if !s.ReadyForConnections(patience) {
					t.Fatal("NATS does not start")
				}
				t.Cleanup(s.Shutdown)
				return s
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.nats.Shutdown()
			r.nats = c.refuses(-1)
			r.listenWith(func(o *Options) {
				o.Password = c.password
				if c.takes == nil {
					o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ca.pool(), Certificates: c.certs}
				}
			})
			r.until("it is told", func() bool { return r.says("NATS cannot be had") && r.says(c.why) })
			if r.listener.Counts().Connected {
				t.Error("connected all the same")
			}
			if c.takes == nil {
				return
			}
			for range 2 { // the same reason, again and again, ends nothing
				r.pass(time.Minute)
				told := r.count(c.why)
				r.until("it is told again", func() bool { return r.count(c.why) > told })
			}
			at := port(r.nats)
			r.nats.Shutdown()
			r.nats = c.takes(at)
			r.until("let in", func() bool { return r.listener.Counts().Connected })

			// Refused again, it is told once, however often it is tried.
			r.nats.Shutdown()
			r.until("NATS is missed", func() bool { return !r.listener.Counts().Connected })
			told := r.count(c.why)
			r.nats = c.refuses(at)
			r.until("it was tried three times", func() bool {
				v, err := r.nats.Varz(nil)
				if err != nil {
					t.Fatal(err)
				}
				return v.TotalConnections >= 3
			})
			if more := r.count(c.why) - told; more > 1 {
				t.Errorf("told %d times within a minute", more)
			}
		})
	}
}
