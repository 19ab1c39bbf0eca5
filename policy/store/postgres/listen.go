package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"tulle/policy/store/sqlstore"
)

// Channels of NOTIFY. A payload begins with the sender, who knows already.
const (
	channelChanged = "tulle_changed" // the store has a new revision
	channelNotices = "tulle_notices" // Tell
)

const (
	heardBuffer = 256 // notices that wait for their reader; more are dropped
	// maxNotice is PostgreSQL's limit of a payload, less the sender.
	maxNotice = 7999 - 37

	quietTime  = 10 * time.Second // without a notification: is the connection still there?
	retryFirst = 20 * time.Millisecond
	retryMost  = time.Second
)

// listener keeps one connection that listens.
type listener struct {
	config *pgx.ConnConfig
	self   string
	pulse  *sqlstore.Pulse
	heard  chan string
	log    *slog.Logger
}

// Tell sends a notice to the other servers on the database. It is stored
// nowhere and may be lost. At most maxNotice bytes.
func (d *db) Tell(ctx context.Context, notice string) error {
	if len(notice) > maxNotice {
		return fmt.Errorf("tell other servers: %d bytes are too long, %d is the limit", len(notice), maxNotice)
	}
	// A notice changes nothing, so nobody waits for the disk.
	_, err := d.notices.ExecContext(ctx, `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`,
		channelNotices, d.listen.self+" "+notice)
	if err != nil {
		return fmt.Errorf("tell other servers: %w", err)
	}
	return nil
}

// Heard gives the notices of the other servers. It is never closed.
func (d *db) Heard() <-chan string { return d.listen.heard }

// connect opens a connection that listens.
func (l *listener) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, l.config.Copy())
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, `LISTEN `+channelChanged+`; LISTEN `+channelNotices); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// run listens on conn and, when that is lost, on the next one, until ctx ends.
func (l *listener) run(ctx context.Context, conn *pgx.Conn) {
	wait := retryFirst
	for {
		if conn != nil {
			err := l.listen(ctx, conn)
			if ctx.Err() != nil {
				return
			}
			l.log.Warn("connection that listens for changes is lost", "error", err)
			wait = retryFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMost)
		var err error
		if conn, err = l.connect(ctx); err != nil {
			l.log.Debug("cannot listen for changes", "error", err)
			continue
		}
		l.log.Info("listening for changes again")
		// What happened in between was not heard.
		l.pulse.Beat()
	}
}

// listen passes on what it hears until the connection is lost or ctx ends, and
// closes it.
func (l *listener) listen(ctx context.Context, conn *pgx.Conn) error {
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		// The session ends one way or the other.
		_ = conn.Close(closing)
	}()
	for {
		quiet, cancel := context.WithTimeout(ctx, quietTime)
		n, err := conn.WaitForNotification(quiet)
		idle := quiet.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && idle && !conn.IsClosed() {
			asking, cancel := context.WithTimeout(ctx, connectTimeout)
			err = conn.Ping(asking)
			cancel()
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		from, notice, _ := strings.Cut(n.Payload, " ")
		switch {
		case from == l.self && n.Channel == channelChanged:
			l.pulse.Echo()
		case from == l.self:
		case n.Channel == channelChanged:
			l.pulse.Beat()
		default:
			select {
			case l.heard <- notice:
			default: // whoever does not read does not miss it
			}
		}
	}
}
