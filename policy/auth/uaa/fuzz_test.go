package uaa

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tulle/policy/auth"
	"tulle/policy/auth/uaa/uaatest"
)

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestParseKeys: which published keys are of use.
func TestParseKeys(t *testing.T) {
	whole := uaatest.JWK(0)
	with := func(change map[string]any) map[string]any {
		k := map[string]any{}
		for name, value := range whole {
			k[name] = value
		}
		for name, value := range change {
			k[name] = value
		}
		return k
	}
	for _, c := range []struct {
		name string
		key  map[string]any
		want string // "": taken
	}{
		{"as published", whole, ""},
		{"PEM alone", with(map[string]any{"n": "", "e": ""}), ""},
		{"numbers alone", with(map[string]any{"value": ""}), ""},
		{"no algorithm", with(map[string]any{"alg": ""}), ""},
		{"neither", with(map[string]any{"n": "", "e": "", "value": "x"}), "neither a modulus nor a PEM value"},
		{"PEM of nothing", with(map[string]any{"n": "", "e": "", "value": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}), "value:"},
		{"no id", with(map[string]any{"kid": ""}), "has no id"},
		{"for encryption", with(map[string]any{"use": "enc"}), "not for signatures"},
		{"EC", with(map[string]any{"kty": "EC", "alg": "ES256"}), "are not used"},
		{"RSA for HS256", with(map[string]any{"alg": "HS256"}), "are not used"},
		{"RSA for none", with(map[string]any{"alg": "none"}), "are not used"},
		{"modulus that is no base64", with(map[string]any{"n": "***"}), "modulus"},
		{"exponent that is no base64", with(map[string]any{"e": "***"}), "exponent"},
		{"small modulus", with(map[string]any{"n": "AQAB"}), "modulus of 17 bits"},
		{"huge modulus", with(map[string]any{"n": strings.Repeat("_", 4000)}), "modulus of 24000 bits"},
		{"exponent 1", with(map[string]any{"e": "AQ"}), "exponent 1"},
		{"even exponent", with(map[string]any{"e": "BA"}), "exponent 4"},
		{"huge exponent", with(map[string]any{"e": strings.Repeat("_", 8)}), "exponent of 48 bits"},
	} {
		keys, unused, err := parseKeys(marshal(t, map[string]any{"keys": []any{c.key}}))
		if c.want == "" {
			k := keys[uaatest.KeyID(0)]
			if err != nil || len(unused) != 0 || !uaatest.Key(0).PublicKey.Equal(k.public) || k.algorithm != "RS256" {
				t.Errorf("%s: %v, %v, %v", c.name, k, unused, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || len(keys) != 0 {
			t.Errorf("%s: %v, %v; want %q", c.name, keys, err, c.want)
		}
	}
	second := with(map[string]any{"n": uaatest.JWK(1)["n"]})
	keys, unused, err := parseKeys(marshal(t, map[string]any{"keys": []any{whole, second}}))
	if err != nil || len(unused) != 1 || !uaatest.Key(0).PublicKey.Equal(keys[uaatest.KeyID(0)].public) {
		t.Errorf("an id twice: %v, %v, %v", keys, unused, err)
	}
	for _, text := range []string{"", "[]", "null", "{}", `{"keys":[]}`, `{"keys":[null]}`} {
		if keys, _, err := parseKeys([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, keys)
		}
	}
}

// FuzzParseKeys: the UAA's answer. Whatever is taken can be used to check with,
// and is of the kinds that we allow.
func FuzzParseKeys(f *testing.F) {
	f.Add(marshal(f, map[string]any{"keys": []any{uaatest.JWK(0), uaatest.JWK(1)}}))
	f.Add([]byte(`{"keys":[{"kty":"MAC","alg":"HS256","kid":"k","value":"tokenkey"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"k","n":"AA","e":"AQAB"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, _, err := parseKeys(body)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%d keys with %v", len(keys), err)
		}
		for id, k := range keys {
			bits := k.public.N.BitLen()
			if id == "" || bits < minModulus || bits > maxModulus || k.public.E < 3 || !strings.HasPrefix(k.algorithm, "RS") {
				t.Fatalf("key %q: %d bits, exponent %d, for %s", id, bits, k.public.E, k.algorithm)
			}
		}
	})
}

// FuzzDecodeChecked: the UAA's answer about a token. Nobody without a name and a
// subject comes out of it.
func FuzzDecodeChecked(f *testing.F) {
	f.Add([]byte(`{"client_id":"cf","scope":["network.admin"],"sub":"s","user_id":"u","user_name":"n"}`))
	f.Add([]byte(`{"scope":"network.admin"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		i, err := decodeChecked(body)
		if err == nil && (i.Name == "" || i.Subject == "") || err != nil && len(i.Scopes) > 0 {
			t.Fatalf("%+v, %v", i, err)
		}
	})
}

// FuzzDecodeToken: the UAA's answer with our own token. What is taken fits into
// a header and is not kept for ever.
func FuzzDecodeToken(f *testing.F) {
	f.Add([]byte(`{"access_token":"a.b.c","token_type":"bearer","expires_in":43199,"scope":"uaa.resource"}`))
	f.Add([]byte(`{"access_token":"a\r\nb","expires_in":-1}`))
	f.Add([]byte(`{"access_token":"a","expires_in":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		own, life, err := decodeToken(body)
		if err != nil {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "bearer "+own.text)
		if own.text == "" || strings.ContainsAny(own.text, " \r\n") || life < 0 || life > longest {
			t.Fatalf("%+v, %v", own, life)
		}
	})
}

// FuzzVerifier: a stranger's token. Only what the UAA signed passes, letter for
// letter.
func FuzzVerifier(f *testing.F) {
	u := uaatest.New(f)
	c := New(Options{URL: u.URL, ID: uaatest.ClientID, Secret: uaatest.ClientSecret, HTTP: u.HTTP()})
	v, err := NewVerifier(c, u.Issuer, []string{"network"})
	if err != nil {
		f.Fatal(err)
	}
	claims := u.Claims("alice", "a", "network.write")
	claims["exp"] = time.Now().Add(1000 * time.Hour).Unix()
	good := u.Token(claims)
	if _, err := v.Authenticate(f.Context(), good); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add("e30.e30.e30")
	f.Add("eyJhbGciOiJub25lIiwia2lkIjoia2V5LTAifQ.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		if !strings.Contains(token, ".") {
			return // the UAA's to judge
		}
		i, err := v.Authenticate(t.Context(), token)
		if (err == nil) != (token == good) || err != nil && i.Has(auth.Write, auth.Admin) {
			t.Fatalf("%q: %+v, %v", token, i, err)
		}
	})
}
