package main

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"tulle/policy/ca"
)

// TestDiscovery: what a route emitter registers over NATS a DNS adapter finds, by
// the original's API. Once with the legacy root's certificates and plain NATS, once
// with roots of others' for both, as in a Cloud Foundry.
func TestDiscovery(t *testing.T) {
	for _, name := range []string{"legacy root", "roots of a foundation"} {
		t.Run(name, func(t *testing.T) { discovers(t, name != "legacy root") })
	}
}

// theirs is another's roots: files of a client, and what its servers show and take.
func theirs(t *testing.T) (dir string, server *tls.Config) {
	t.Helper()
	pki := filepath.Join(t.TempDir(), "pki")
	roots, err := ca.Create(pki)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := ca.CreateLegacy(pki)
	if err != nil {
		t.Fatal(err)
	}
	credential, err := clients.IssueLegacy("policy-server", 0)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := ca.WriteLegacy(dir, credential, roots.Server); err != nil {
		t.Fatal(err)
	}
	certificate, err := roots.Server.Certificates([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	server = ca.LegacyTLS(clients, certificate)
	server.NextProtos = nil
	if err := os.Rename(filepath.Join(pki, "legacy", "cert.pem"), filepath.Join(dir, "client-ca.pem")); err != nil {
		t.Fatal(err)
	}
	return dir, server
}

func discovers(t *testing.T, foreign bool) {
	options := &natsserver.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, Username: "nats", Password: "pass"}
	dir := initialised(t, "--legacy=127.0.0.1:0")
	settings := "discovery: 127.0.0.1:0\nnats_user: nats\nnats_password_file: nats-password\n" +
		"route_emitter_interval_seconds: 1\nstaleness_threshold_seconds: 2\n"
	var foundation string
	if foreign {
		foundation, options.TLSConfig = theirs(t)
		options.TLSVerify, options.TLSTimeout = true, 20
		at := func(name string) string { return filepath.Join(foundation, name) }
		settings += "nats_ca: " + at("server-ca.pem") + "\nnats_cert: " + at("client.pem") + "\nnats_key: " + at("client-key.pem") +
			"\ndiscovery_ca: " + at("client-ca.pem") + "\n"
	}
	n, err := natsserver.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	go n.Start()
	if !n.ReadyForConnections(20 * time.Second) {
		t.Fatal("NATS does not start")
	}
	t.Cleanup(n.Shutdown)
	if err := os.WriteFile(filepath.Join(dir, "nats-password"), []byte("pass\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, configFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(settings + "nats: [\"nats://" + n.Addr().String() + "\"]\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := serving(t, "--dir", dir)
	out := filepath.Join(t.TempDir(), "adapter")
	must(t, "issue-legacy", "bosh-dns-adapter", "--dir", dir, "--out", out)
	adapter := legacyClient(t, out)
	if foreign { // its certificate is another root's; that of the server is not
		adapter.Transport.(*http.Transport).TLSClientConfig.Certificates =
			legacyClient(t, foundation).Transport.(*http.Transport).TLSClientConfig.Certificates
	}
	lookup := func(path string) string { return ask(t, adapter, "GET", "https://"+s.Lookup+path, "") }
	until := func(what, path string, want func(string) bool) {
		t.Helper()
		for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			got := lookup(path)
			if want(got) {
				return
			}
			if time.Since(begun) > 20*time.Second {
				t.Fatalf("%s: %s", what, got)
			}
		}
	}
	emitterOptions := []nats.Option{nats.UserInfo("nats", "pass")}
	if foreign {
		emitterOptions = append(emitterOptions, nats.Secure(legacyClient(t, foundation).Transport.(*http.Transport).TLSClientConfig))
	}
	emitter, err := nats.Connect("nats://"+n.Addr().String(), emitterOptions...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(emitter.Close)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // repeats as an emitter does
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if err := emitter.Publish("service-discovery.register", []byte(`{"host":"10.255.77.2","port":0,"uris":["web.apps.internal","0.web.apps.internal"]}`)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	until("registered, and warm", "/v1/registration/web.apps.internal", func(got string) bool {
		return strings.HasPrefix(got, `200 OK {"hosts":[{"ip_address":"10.255.77.2","last_check_in":"",`)
	})
	until("the instance's own", "/v1/registration/0.web.apps.internal.", func(got string) bool { return strings.Contains(got, "10.255.77.2") })
	if got := lookup("/routes"); got != `200 OK {"addresses":[{"hostname":"0.web.apps.internal.","ips":["10.255.77.2"]},{"hostname":"web.apps.internal.","ips":["10.255.77.2"]}]}` {
		t.Errorf("routes: %s", got)
	}
	if got := lookup("/v1/registration/no.apps.internal"); got != `200 OK {"hosts":[],"env":"","service":""}` {
		t.Errorf("unknown: %s", got)
	}
	close(stop)
	<-done
	until("nobody repeats it", "/v1/registration/web.apps.internal", func(got string) bool { return strings.HasPrefix(got, `200 OK {"hosts":[],`) })

	// Nobody is answered without a certificate, or with one of another root.
	for what, certificates := range map[string][]tls.Certificate{
		"no certificate":              nil,
		"a certificate of other root": legacyClient(t, out).Transport.(*http.Transport).TLSClientConfig.Certificates,
	} {
		stranger := legacyClient(t, out)
		if certificates != nil && !foreign {
			elsewhere, _ := theirs(t)
			certificates = legacyClient(t, elsewhere).Transport.(*http.Transport).TLSClientConfig.Certificates
		}
		stranger.Transport.(*http.Transport).TLSClientConfig.Certificates = certificates
		if answer, err := stranger.Get("https://" + s.Lookup + "/routes"); err == nil {
			answer.Body.Close()
			t.Errorf("a client with %s is answered", what)
		}
	}
}

func TestDiscoveryConfigRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"nats: [\"http://x\"]":            "must list nats://host:port",
		"nats: [\"nats://u:p@x:1\"]":      "without user and password",
		"nats_user: x":                    "needs nats_password_file",
		"nats_cert: x":                    "needs nats_key and nats_ca",
		"staleness_threshold_seconds: 60": "must be more than route_emitter_interval_seconds",
		"discovery: 127.0.0.1:0":          "needs discovery_ca",
		"discovery: nowhere":              "must be host:port",
	} {
		path := filepath.Join(t.TempDir(), configFile)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
