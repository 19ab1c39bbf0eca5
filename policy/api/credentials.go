package api

import "time"

// Paths of cells' credentials, in the internal API.
const (
	// PathJoin gives a cell its first credential for a join token. It is the one
	// path that needs no certificate, and is served under the TLS server name of
	// ca.JoinName alone.
	PathJoin = "/networking/v1/internal/join" // POST Join -> Joined
	// PathCredential gives a cell a new credential for the one that it shows.
	PathCredential = "/networking/v1/internal/cells/{name}/credential" // POST Renewal -> Renewed
)

// Join asks for a credential. The key was made on the cell and stays there.
type Join struct {
	Secret  string `json:"secret"`  // of the join token
	Request string `json:"request"` // PKCS #10 certificate request, PEM; only its key counts
}

// Joined is the answer to Join.
type Joined struct {
	Cell        string `json:"cell"`
	Certificate string `json:"certificate"` // PEM
}

// Renewal asks for a new credential of the same cell and spaces.
type Renewal struct {
	Request string `json:"request"` // as in Join
}

// Renewed is the answer to Renewal.
type Renewed struct {
	Certificate string `json:"certificate"` // PEM
}

// Revocation makes every credential of the cell void that was issued at that time
// or before.
type Revocation struct {
	Cell string    `json:"cell"`
	At   time.Time `json:"at"`

	Unknown bool `json:"unknown,omitempty"` // in the answer to who revokes: no such cell has had a lease or a join token
}
