package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"tulle/policy/store"
)

// SQLSTATE codes (PostgreSQL documentation, appendix A).
const (
	codeSerialization  = "40001"
	codeDeadlock       = "40P01"
	codeAdminShutdown  = "57P01"
	codeCrashShutdown  = "57P02"
	codeCannotConnect  = "57P03" // starting up or shutting down
	codeTooMany        = "53300" // connections
	codeIdleTooLong    = "25P03" // within a transaction
	codeReadOnly       = "25006" // a standby, after a failover
	codeDiskFull       = "53100"
	codeDataCorrupted  = "XX001"
	codeIndexCorrupted = "XX002"
	codeNotInEncoding  = "22021"
	codeUntranslatable = "22P05"
	classConnection    = "08"
)

// explain gives PostgreSQL's codes the store's names.
func explain(err error) error {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		if away(err) {
			return fmt.Errorf("%w: %w", store.ErrAway, err)
		}
		return err
	}
	if strings.HasPrefix(e.Code, classConnection) {
		return fmt.Errorf("%w: %w", store.ErrAway, err)
	}
	switch e.Code {
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnect, codeTooMany, codeIdleTooLong, codeReadOnly:
		return fmt.Errorf("%w: %w", store.ErrAway, err)
	case codeDiskFull:
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	case codeDataCorrupted, codeIndexCorrupted:
		return fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	case codeNotInEncoding, codeUntranslatable:
		return fmt.Errorf("%w: a text that the database cannot hold: %w", store.ErrConflict, err)
	}
	return err
}

// again says whether what ended with err may be tried again. A transaction that
// the database gave up for another one may, whenever that was. A connection that
// is gone took everything with it that was not committed; but when the commit
// was under way nobody knows, and it is the caller's to look.
func again(err error, sent bool) bool {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		switch e.Code {
		case codeSerialization, codeDeadlock:
			return true
		case codeAdminShutdown, codeCrashShutdown, codeCannotConnect, codeTooMany, codeIdleTooLong:
			return !sent
		}
		return !sent && strings.HasPrefix(e.Code, classConnection)
	}
	if sent || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return pgconn.SafeToRetry(err) || away(err)
}

// away reports whether the connection is at fault: it could not be made, or was
// lost. The end of the caller's own patience is neither.
func away(err error) bool {
	var network *net.OpError
	var connect *pgconn.ConnectError
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.As(err, &network) || errors.As(err, &connect)
}
