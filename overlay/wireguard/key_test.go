package wireguard

import (
	"fmt"
	"strings"
	"testing"
)

// RFC 7748 section 6.1: Alice's private and public key.
func TestPublicKey(t *testing.T) {
	k := PrivateKey{[32]byte(unhex(t, "77076d0a7318a57d3c16c17251b26645 df4c2f87ebc0992ab177fba51db92c2a"))}
	want := PublicKey(unhex(t, "8520f0098930a754748b7ddcb43ef75a 0dbf3a0d26381af4eba4a98eaa9b4e6a"))
	if got := k.Public(); got != want {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestPrivateKeyIsNotPrinted(t *testing.T) {
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	secret := fmt.Sprintf("%x", k.scalar[:])
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		if got := fmt.Sprintf(verb, k); got != "(private key)" || strings.Contains(got, secret) {
			t.Errorf("%s shows %s", verb, got)
		}
	}
}
