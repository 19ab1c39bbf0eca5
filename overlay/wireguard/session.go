package wireguard

import (
	"crypto/cipher"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"
)

// session is the outcome of one handshake: two keys, one a direction.
type session struct {
	peer          *peer
	local, remote uint32 // indices
	initiator     bool   // this end began the handshake
	made          int64
	own, theirs   PublicKey // that made it
	psk           PresharedKey

	seal, open cipher.AEAD
	counter    atomic.Uint64 // of the next message sent
	age        atomic.Uint32
	// unconfirmed: the peer began it, and has not sent anything in it.
	unconfirmed atomic.Bool
	from        netip.AddrPort // where it began it

	mu     sync.Mutex // guards window, which several sockets may meet at
	window replay.Filter
}

// entry is what an index of this cell's stands for.
type entry struct {
	peer    *peer
	pending *handshake // or
	session *session
}

// newAEAD is ChaCha20-Poly1305, in assembly where there is some for the machine.
func newAEAD(key [32]byte) cipher.AEAD {
	a, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(fmt.Sprint("a key of 32 bytes: ", err))
	}
	return a
}

func (s *session) ageNow() age { return age(s.age.Load()) }

// lives says whether the session seals.
func (s *session) lives() bool { return s != nil && s.ageNow() != dead }

// A message's nonce is four zeros and its counter, which is what lies in its header
// behind the type, but for the receiver's index. So the index is taken out while
// the header serves as nonce, and the nonce is nobody's allocation.
const (
	indexAt   = 4
	counterAt = 8
)

// sealAt makes a transport message of b: room for the header, a packet of n bytes,
// and room for the tag. All lie in place.
func (s *session) sealAt(b []byte, n int, counter uint64) {
	endian.PutUint64(b, typeTransport) // and no index
	endian.PutUint64(b[counterAt:], counter)
	s.seal.Seal(b[transportLen:transportLen], b[indexAt:transportLen], b[transportLen:transportLen+n], nil)
	endian.PutUint32(b[indexAt:], s.remote)
}

// openAt opens the transport message d in place; the packet is a part of it.
func (s *session) openAt(d []byte) (packet []byte, ok bool) {
	endian.PutUint32(d[indexAt:], 0)
	packet, err := s.open.Open(d[transportLen:transportLen], d[indexAt:transportLen], d[transportLen:], nil)
	return packet, err == nil
}
