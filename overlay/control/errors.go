package control

import "fmt"

// Code says, to a program, what kind of thing went wrong.
type Code string

// Codes.
const (
	CodeBadRequest  Code = "bad_request" // the message, its fields or its number of descriptors
	CodeNotTUN      Code = "not_tun"     // the descriptor is no TUN device, or not with the flags needed
	CodeNotAllowed  Code = "not_allowed" // this uid may not
	CodePoolEmpty   Code = "pool_empty"  // no address is free or rested
	CodeNoAddress   Code = "no_address"  // the address asked for is in use, or not the cell's to give
	CodePortTaken   Code = "port_taken"  // a port of the host is another's; the message says whose
	CodeExists      Code = "exists"      // the container is attached already
	CodeNotFound    Code = "not_found"   // a resume of what the journal does not have
	CodeRefused     Code = "refused"     // the policy server refuses the endpoint
	CodeUnreachable Code = "unreachable" // policy server unreachable, app not known on this cell
	CodeUnavailable Code = "unavailable" // the daemon has no lease, or is stopping
	CodeInternal    Code = "internal"    // the daemon's own fault; its log has more
)

// Error is a refusal as it travels to the client. Message is for people and
// complete in itself.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error is the message; the code is for errors.As.
func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
