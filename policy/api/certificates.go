package api

import "time"

// Paths of instance certificates, in the internal API.
const (
	PathCertificates = "/networking/v1/internal/cells/{name}/certificates" // POST CertificateRequest -> Certificate
	PathTrust        = "/networking/v1/internal/trust"                     // GET -> Trust
)

// CertificateRequest asks for the certificate of one of the cell's own endpoints.
type CertificateRequest struct {
	Container string `json:"container"`
	Request   string `json:"request"` // PKCS #10, PEM; its key is all that counts
}

// Certificate is the answer. Seconds is its lifetime from now on, for a clock that
// does not jump.
type Certificate struct {
	Certificate string    `json:"certificate"` // PEM, leaf and chain
	Trust       string    `json:"trust"`       // PEM
	NotAfter    time.Time `json:"not_after"`
	Seconds     int64     `json:"seconds"`
}

// Trust is what containers trust each other's certificates by.
type Trust struct {
	Trust string `json:"trust"` // PEM
}
