package uaa_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"tulle/policy/auth"
	"tulle/policy/auth/uaa"
	"tulle/policy/auth/uaa/uaatest"
)

// startVerifier is a rig whose tokens are checked by keys.
func startVerifier(t *testing.T, change ...func(*uaa.Options)) (*rig, *uaa.Verifier) {
	t.Helper()
	r := start(t, change...)
	v, err := uaa.NewVerifier(r.client, r.Issuer, []string{"network", "elsewhere"})
	if err != nil {
		t.Fatal(err)
	}
	return r, v
}

// forge signs claims with whatever, under the header of the test's choice.
func forge(t *testing.T, method jwt.SigningMethod, key any, c jwt.Claims, header map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	for name, value := range header {
		token.Header[name] = value
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestVerifier(t *testing.T) {
	r, v := startVerifier(t)
	with := func(key string, value any) jwt.MapClaims {
		c := r.Claims("alice", "guid-alice", "network.admin")
		if c[key] = value; value == nil {
			delete(c, key)
		}
		return c
	}
	good := with("x", 1)
	own, other := uaatest.Key(0), uaatest.Key(1)
	kid := map[string]any{"kid": uaatest.KeyID(0)}
	head := func(name string, value any) map[string]any {
		return map[string]any{"kid": uaatest.KeyID(0), name: value}
	}
	der, err := x509.MarshalPKIXPublicKey(own.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	signed := r.Token(good)
	parts := strings.Split(signed, ".")
	swapped := base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"root","scope":["network.admin"],"aud":["network"],"exp":99999999999,"iss":"` + r.Issuer + `"}`))
	for _, c := range []struct{ name, token, refused string }{
		{"good", signed, ""},
		{"one audience as a string", r.Token(with("aud", "network")), ""},
		{"the second audience", r.Token(with("aud", []string{"elsewhere"})), ""},

		{"expired", r.Token(with("exp", time.Now().Add(-time.Second).Unix())), "expired"},
		{"without an end", r.Token(with("exp", nil)), "exp"},
		{"not yet good", r.Token(with("nbf", time.Now().Add(time.Hour).Unix())), "not valid yet"},
		{"another issuer", r.Token(with("iss", "https://uaa.example.com/oauth/token")), "issuer"},
		{"no issuer", r.Token(with("iss", nil)), "iss"},
		{"for others", r.Token(with("aud", []string{"cloud_controller", "cf"})), "audience"},
		{"for nobody", r.Token(with("aud", nil)), "aud"},
		{"no subject", r.Token(with("sub", nil)), "no subject"},
		{"refresh token", r.Token(with("jti", "abc-r")), "refresh token"},
		{"scopes of a wrong type", r.Token(with("scope", "network.admin")), "scope"},

		{"signed by another key", forge(t, jwt.SigningMethodRS256, other, good, kid), "signature is invalid"},
		{"a key that is not published", forge(t, jwt.SigningMethodRS256, other, good, map[string]any{"kid": uaatest.KeyID(1)}), "publishes no such key"},
		{"no key named", forge(t, jwt.SigningMethodRS256, own, good, nil), "names no key"},
		{"a key id that is a number", forge(t, jwt.SigningMethodRS256, own, good, map[string]any{"kid": 0}), "names no key"},
		{"its own key along with it", forge(t, jwt.SigningMethodRS256, other, good, head("jwk", uaatest.JWK(1))), "signature is invalid"},
		{"critical extensions", forge(t, jwt.SigningMethodRS256, own, good, head("crit", []string{"exp"})), "critical"},
		{"HS256 with the public key as the secret", forge(t, jwt.SigningMethodHS256, public, good, kid), "signing method HS256 is invalid"},
		{"HS256 with the public key's DER", forge(t, jwt.SigningMethodHS256, der, good, kid), "signing method HS256 is invalid"},
		{"no signature", forge(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good, kid), "signing method none is invalid"},
		{"RS512 by a key for RS256", forge(t, jwt.SigningMethodRS512, own, good, kid), "is for RS256"},
		{"PS256 by that key", forge(t, jwt.SigningMethodPS256, own, good, kid), "signing method PS256 is invalid"},
		{"another content", parts[0] + "." + swapped + "." + parts[2], "signature is invalid"},
		{"no signature part", parts[0] + "." + parts[1] + ".", "signature is invalid"},
		{"two parts", parts[0] + "." + parts[1], "segments"},
		{"too long", signed + strings.Repeat("A", 64<<10), "longer than"},
	} {
		got, err := v.Authenticate(t.Context(), c.token)
		if c.refused == "" {
			want := auth.Identity{Name: "alice", Subject: "guid-alice", Scopes: []auth.Scope{auth.Admin}}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
			}
			continue
		}
		if !errors.Is(err, auth.ErrUnknownToken) || !strings.Contains(fmt.Sprint(err), c.refused) || got.Subject != "" {
			t.Errorf("%s: %+v, %v; want an error with %q", c.name, got, err, c.refused)
		}
	}
	if asked := r.Requests("/check_token"); len(asked) != 0 {
		t.Errorf("the UAA was asked about tokens: %q", asked)
	}
	if n := len(r.Requests("/token_keys")); n != 1 {
		t.Errorf("%d requests for keys, want 1", n)
	}
}

// TestVerifierAsksWhereOnlyTheUAAKnows: opaque tokens and those that can be
// taken back.
func TestVerifierAsksWhereOnlyTheUAAKnows(t *testing.T) {
	r, v := startVerifier(t)
	c := r.Claims("bob", "guid-bob", "network.admin")
	c["revocable"] = true
	revocable, opaque := r.Token(c), r.Opaque(r.Claims("bob", "guid-bob", "network.admin"))
	for _, token := range []string{revocable, opaque} {
		if i, err := v.Authenticate(t.Context(), token); err != nil || i.Name != "bob" {
			t.Errorf("got %+v, %v", i, err)
		}
	}
	r.Revoke(revocable)
	if i, err := v.Authenticate(t.Context(), revocable); !errors.Is(err, auth.ErrUnknownToken) {
		t.Errorf("a token taken back: %+v, %v", i, err)
	}
	if n := len(r.Requests("/check_token")); n != 3 {
		t.Errorf("%d checks, want 3", n)
	}
}

// TestSymmetricKeysAreNotUsed, published or not, whatever they claim to be for.
func TestSymmetricKeysAreNotUsed(t *testing.T) {
	var log bytes.Buffer
	r, v := startVerifier(t, func(o *uaa.Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	secret := []byte("tokenkey")
	r.Publish(map[string]any{"kty": "MAC", "alg": "HS256", "use": "sig", "kid": "shared", "value": string(secret)},
		map[string]any{"kty": "oct", "alg": "RS256", "use": "sig", "kid": "disguised", "k": base64.RawURLEncoding.EncodeToString(secret)})
	c := r.Claims("mallory", "m", "network.admin")
	for _, kid := range []string{"shared", "disguised", uaatest.KeyID(0)} {
		if i, err := v.Authenticate(t.Context(), forge(t, jwt.SigningMethodHS256, secret, c, map[string]any{"kid": kid})); !errors.Is(err, auth.ErrUnknownToken) {
			t.Errorf("%s: %+v, %v", kid, i, err)
		}
	}
	if _, err := v.Authenticate(t.Context(), r.Token(c)); err != nil {
		t.Errorf("the key beside them: %v", err)
	}
	if !strings.Contains(log.String(), `MAC keys for \"HS256\" are not used`) || strings.Contains(log.String(), string(secret)) {
		t.Errorf("the log:\n%s", log.String())
	}
}

func TestKeysRotate(t *testing.T) {
	r, v := startVerifier(t)
	keys := func() int { return len(r.Requests("/token_keys")) }
	known := func(what, token string, want bool) {
		t.Helper()
		if _, err := v.Authenticate(t.Context(), token); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	c := r.Claims("alice", "a", "network.admin")
	c["exp"] = time.Now().Add(72 * time.Hour).Unix()
	old := r.Token(c)
	known("old key", old, true)

	r.Sign(1, 0, 1)
	next := r.Token(c)
	known("new key, just asked", next, false)
	r.clock.advance(11 * time.Second)
	known("new key", next, true)
	known("old key, still published", old, true)
	if keys() != 2 {
		t.Errorf("%d requests for keys, want 2", keys())
	}

	for i := range 100 {
		r.clock.advance(100 * time.Millisecond)
		known("made up", forge(t, jwt.SigningMethodRS256, uaatest.Key(2), c, map[string]any{"kid": fmt.Sprint("made-up-", i)}), false)
	}
	if n := keys(); n > 4 {
		t.Errorf("100 made-up keys in 10 s led to %d requests", n-2)
	}

	r.Sign(1, 1)
	known("old key, taken back a moment ago", old, true)
	r.clock.advance(10 * time.Minute)
	known("old key, taken back", old, false)
	known("the one that is left", next, true)
}

// TestKeysOutliveAnOutage, for a day.
func TestKeysOutliveAnOutage(t *testing.T) {
	for name, mood := range map[string]uaatest.Mood{"failing": uaatest.Failing, "garbage": uaatest.Garbage, "slow": uaatest.Slow, "down": uaatest.Down, "halfway": uaatest.Halfway} {
		t.Run(name, func(t *testing.T) {
			r, v := startVerifier(t, impatient)
			c := r.Claims("alice", "a", "network.admin")
			c["exp"] = time.Now().Add(72 * time.Hour).Unix()
			token := r.Token(c)
			check := func(what string, want bool) {
				t.Helper()
				if _, err := v.Authenticate(t.Context(), token); (err == nil) != want || errors.Is(err, auth.ErrUnknownToken) {
					t.Errorf("%s: %v", what, err)
				}
			}
			r.Be(mood)
			check("before any key is there", false)
			check("at once again", false)
			if n := len(r.Requests("/token_keys")); n != 1 {
				t.Errorf("%d requests within the pause, want 1", n)
			}
			r.Be(uaatest.Well)
			r.clock.advance(11 * time.Second)
			check("the UAA is back", true)
			r.Be(mood)
			r.clock.advance(time.Hour)
			check("after an hour without", true)
			r.clock.advance(24 * time.Hour)
			check("after a day without", false)
			r.Be(uaatest.Well)
			r.clock.advance(11 * time.Second)
			check("the UAA is back again", true)
		})
	}
}

// TestASlowUAADelaysNobodyWhoseKeyIsKnown.
func TestASlowUAADelaysNobodyWhoseKeyIsKnown(t *testing.T) {
	r, v := startVerifier(t, func(o *uaa.Options) { o.Timeout = 30 * time.Second })
	c := r.Claims("alice", "a", "network.admin")
	token := r.Token(c)
	if _, err := v.Authenticate(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	r.Be(uaatest.Slow)
	r.clock.advance(11 * time.Minute) // new keys are due
	done := make(chan error, 1)
	go func() {
		_, err := v.Authenticate(t.Context(), token)
		done <- err
	}()
	for len(r.Requests("/token_keys")) < 2 { // until it waits for the UAA
		select {
		case err := <-done:
			t.Fatalf("nobody asked for keys: %v", err)
		default:
		}
	}
	for range 10 {
		if _, err := v.Authenticate(t.Context(), token); err != nil {
			t.Errorf("meanwhile: %v", err)
		}
	}
	select {
	case err := <-done:
		t.Errorf("the UAA was not slow: %v", err)
	default:
	}
	r.Release()
	if err := <-done; err != nil {
		t.Errorf("whoever waited: %v", err)
	}
}

func TestNewVerifierNeedsWhatItChecks(t *testing.T) {
	r := start(t)
	if _, err := uaa.NewVerifier(r.client, "", []string{"network"}); err == nil {
		t.Error("no issuer is taken")
	}
	if _, err := uaa.NewVerifier(r.client, r.Issuer, nil); err == nil {
		t.Error("no audience is taken")
	}
}
