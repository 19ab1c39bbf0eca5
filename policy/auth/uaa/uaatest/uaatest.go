// Package uaatest is a UAA for tests: it gives tokens out, answers check_token
// and publishes its keys as the reference says (policy-api, 3), over TLS on a
// free port. It can also be what a UAA must not be: down, slow, or talking
// nonsense.
//
// A test makes one with New and calls it from any goroutine.
package uaatest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The server's own client at this UAA.
const (
	ClientID     = "network-policy"
	ClientSecret = "network-policy-secret"
)

// moduli are made once; a test of its own key would take longer than the test.
var moduli = sync.OnceValue(func() (keys [3]*rsa.PrivateKey) {
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

// UAA is a running one.
type UAA struct {
	Temper
	URL    string
	Issuer string
	server *httptest.Server

	mu        sync.Mutex // guards what follows
	ownLife   time.Duration
	ownScopes string
	signing   int              // which of moduli signs
	published map[int]bool     // which are published
	opaque    map[string]any   // opaque tokens and their claims
	revoked   map[string]bool  // tokens taken back
	owns      map[string]bool  // tokens of the server's own client
	issued    int              // own tokens given out
	requests  []string         // "POST /check_token token=…"
	extra     []map[string]any // published as well, as they are
}

// New starts one for the test's time.
func New(t testing.TB) *UAA {
	u := &UAA{ownLife: 12 * time.Hour, ownScopes: "uaa.resource cloud_controller.admin_read_only",
		published: map[int]bool{0: true}, opaque: map[string]any{}, revoked: map[string]bool{}, owns: map[string]bool{}}
	u.server = httptest.NewTLSServer(http.HandlerFunc(u.serve))
	u.URL = u.server.URL
	u.Issuer = u.URL + "/oauth/token"
	t.Cleanup(func() {
		u.Release()
		u.server.Close()
	})
	return u
}

// HTTP trusts the UAA's certificate.
func (u *UAA) HTTP() *http.Client { return u.server.Client() }

// Root is that certificate, PEM.
func (u *UAA) Root() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.server.Certificate().Raw})
}

// GiveOwn changes what the tokens of the server's own client are like.
func (u *UAA) GiveOwn(life time.Duration, scopes string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ownLife, u.ownScopes = life, scopes
}

// Key is the private key number n, and KeyID its name; 0 signs at first.
func Key(n int) *rsa.PrivateKey { return moduli()[n] }

// KeyID is the id under which the key is published.
func KeyID(n int) string { return fmt.Sprintf("key-%d", n) }

// Sign with key number n from now on, and publish these and no other.
func (u *UAA) Sign(n int, publish ...int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.signing, u.published = n, map[int]bool{}
	for _, p := range publish {
		u.published[p] = true
	}
}

// Publish adds entries to the published keys, as they are.
func (u *UAA) Publish(entries ...map[string]any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.extra = entries
}

// Claims are those of an access token that is good for an hour.
func (u *UAA) Claims(name, id string, scopes ...string) jwt.MapClaims {
	audience := []string{"cf", "cloud_controller"}
	for _, s := range scopes {
		if strings.HasPrefix(s, "network.") {
			audience = append(audience, "network")
			break
		}
	}
	if scopes == nil {
		scopes = []string{}
	}
	now := time.Now()
	return jwt.MapClaims{"jti": fmt.Sprintf("%s-%d", id, now.UnixNano()), "sub": id, "user_id": id, "user_name": name, "client_id": "cf",
		"scope": scopes, "aud": audience, "iss": u.Issuer, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "grant_type": "password"}
}

// Token signs claims with the present key.
func (u *UAA) Token(c jwt.MapClaims) string {
	u.mu.Lock()
	n := u.signing
	u.mu.Unlock()
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, c)
	t.Header["kid"] = KeyID(n)
	text, err := t.SignedString(Key(n))
	if err != nil {
		panic(err)
	}
	return text
}

// User is a user's access token.
func (u *UAA) User(name, id string, scopes ...string) string {
	return u.Token(u.Claims(name, id, scopes...))
}

// Opaque is a token that says nothing by itself.
func (u *UAA) Opaque(c jwt.MapClaims) string {
	text := rand.Text()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.opaque[text] = c
	return text
}

// Revoke takes a token back.
func (u *UAA) Revoke(token string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.revoked[token] = true
	delete(u.owns, token)
}

// Verify says whose token it is, "" if it is no good.
func (u *UAA) Verify(token string) (subject string) {
	parsed, err := u.parse(token)
	if err != nil {
		return ""
	}
	subject, _ = parsed.Claims.GetSubject()
	return subject
}

func (u *UAA) parse(token string) (*jwt.Token, error) {
	return jwt.Parse(token, u.publicKey, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(u.Issuer), jwt.WithExpirationRequired())
}

// IsOwn says whether the token is one of the server's own client: what a Cloud
// Controller of the same foundation would find out.
func (u *UAA) IsOwn(token string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.owns[token]
}

// Requests are those that came with a path, as "METHOD body".
func (u *UAA) Requests(path string) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var list []string
	for _, r := range u.requests {
		method, rest, _ := strings.Cut(r, " ")
		if at, body, _ := strings.Cut(rest, " "); at == path {
			list = append(list, method+" "+body)
		}
	}
	return list
}

func (u *UAA) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	u.mu.Lock()
	u.requests = append(u.requests, r.Method+" "+r.URL.Path+" "+string(body))
	u.mu.Unlock()
	if !u.Serves(w, r) {
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /check_token":
		if authorised(w, r) {
			u.checkToken(w, body)
		}
	case "POST /oauth/token":
		if authorised(w, r) {
			u.oauthToken(w, body)
		}
	case "GET /token_keys":
		u.tokenKeys(w)
	default:
		http.NotFound(w, r)
	}
}

// authorised wants the client's basic authentication and a form.
func authorised(w http.ResponseWriter, r *http.Request) bool {
	id, secret, _ := r.BasicAuth()
	if id != ClientID || secret != ClientSecret {
		answer(w, http.StatusUnauthorized, map[string]any{"error": "unauthorized", "error_description": "Bad credentials"})
		return false
	}
	if r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		answer(w, http.StatusUnsupportedMediaType, map[string]any{"error": "invalid_request"})
		return false
	}
	return true
}

func (u *UAA) checkToken(w http.ResponseWriter, body []byte) {
	form, err := url.ParseQuery(string(body))
	token := form.Get("token")
	u.mu.Lock()
	opaque, isOpaque := u.opaque[token]
	revoked := u.revoked[token]
	u.mu.Unlock()
	switch {
	case err != nil || revoked:
	case isOpaque:
		answer(w, http.StatusOK, opaque)
		return
	default:
		if parsed, err := u.parse(token); err == nil {
			answer(w, http.StatusOK, parsed.Claims)
			return
		}
	}
	answer(w, http.StatusBadRequest, map[string]any{"error": "invalid_token", "error_description": "Token is no good"})
}

func (u *UAA) publicKey(t *jwt.Token) (any, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n := range u.published {
		if t.Header["kid"] == KeyID(n) {
			return Key(n).Public(), nil
		}
	}
	return nil, fmt.Errorf("no key %v", t.Header["kid"])
}

func (u *UAA) oauthToken(w http.ResponseWriter, body []byte) {
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("client_id") != ClientID || form.Get("grant_type") != "client_credentials" {
		answer(w, http.StatusBadRequest, map[string]any{"error": "invalid_request"})
		return
	}
	u.mu.Lock()
	u.issued++
	n, life, scopes := u.issued, u.ownLife, u.ownScopes
	u.mu.Unlock()
	c := u.Claims("", ClientID, strings.Fields(scopes)...)
	c["jti"], c["client_id"], c["grant_type"] = fmt.Sprintf("own-%d", n), ClientID, "client_credentials"
	delete(c, "user_name")
	delete(c, "user_id")
	text := u.Token(c)
	u.mu.Lock()
	u.owns[text] = true
	u.mu.Unlock()
	answer(w, http.StatusOK, map[string]any{"access_token": text, "token_type": "bearer", "expires_in": int(life / time.Second), "scope": scopes, "jti": c["jti"]})
}

// JWK is key number n as the UAA publishes it.
func JWK(n int) map[string]any {
	public := Key(n).PublicKey
	der, err := x509.MarshalPKIXPublicKey(&public)
	if err != nil {
		panic(err)
	}
	return map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": KeyID(n),
		"n":     base64.RawURLEncoding.EncodeToString(public.N.Bytes()),
		"e":     base64.RawURLEncoding.EncodeToString(big.NewInt(int64(public.E)).Bytes()),
		"value": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

func (u *UAA) tokenKeys(w http.ResponseWriter) {
	u.mu.Lock()
	published, extra := maps.Clone(u.published), u.extra
	u.mu.Unlock()
	keys := append([]map[string]any{}, extra...)
	for n := range moduli() {
		if published[n] {
			keys = append(keys, JWK(n))
		}
	}
	answer(w, http.StatusOK, map[string]any{"keys": keys})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
