// Package postgres is the store in PostgreSQL: the control plane of several
// servers on one database, of which any may go at any time.
//
// A write locks the one row of meta first and holds it to its commit, so writes
// go one after the other over all servers, and commit order is revision order. A
// transaction that the database gives up (serialisation failure, deadlock, a
// connection lost before its commit) is run again. Each change ends with a
// NOTIFY, and each server LISTENs on a connection of its own: Changed of every
// server wakes, after a lost connection too, since whoever listens again looks
// once for what it missed. The same way servers send each other short notices
// (Tell, Heard), which are stored nowhere. What time it is says the database: the
// servers' clocks need not agree.
//
// The database must be reached directly or through a pooler in session mode:
// LISTEN belongs to a session.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"

	"tulle/policy"
	"tulle/policy/store"
	"tulle/policy/store/sqlstore"
)

// Options of a store. The zero value of each field but Lease is its default.
type Options struct {
	sqlstore.Options
	// Connections bounds this server's connections to the database; 10. Two are
	// for writes, one listens, the rest reads. At least MinConnections.
	Connections int
	Log         *slog.Logger
}

// MinConnections is how many connections a server cannot do without.
const MinConnections = writers + 2

const (
	defaultConnections = 10
	// One writer holds the row, the next is at its door already.
	writers = 2
	// A connection is renewed, so that a load balancer's or a pooler's change
	// is followed in time.
	maxConnectionAge = time.Hour
)

// db implements store.Store and hub.Exchange.
type db struct {
	store.Store

	notices *sql.DB // the readers' pool
	listen  *listener
	stop    context.CancelFunc
	stopped chan struct{} // closed when the listener has ended
}

// IsURL reports whether a database is named as one of PostgreSQL.
func IsURL(database string) bool {
	return strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://")
}

// Check says what is wrong with a URL, without connecting.
func Check(url string) error {
	_, err := configure(url)
	return err
}

// Open connects to the database at url and brings its schema up to date. The
// URL may hold everything that libpq's may, such as several hosts,
// target_session_attrs, sslmode, sslrootcert, sslcert, sslkey and
// connect_timeout. The caller closes the store. Errors: store.ErrCorrupt when
// the database is another program's, store.ErrNewer.
func Open(ctx context.Context, url string, o Options) (store.Store, error) {
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Connections < MinConnections {
		return nil, fmt.Errorf("open database: %d connections: must be %d or more", o.Connections, MinConnections)
	}
	if err := o.Options.Check(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	config, err := configure(url)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s, err := open(ctx, config, o)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", name(config), explain(err))
	}
	return s, nil
}

// name is the database for an error's text, without what is secret in its URL.
func name(c *pgx.ConnConfig) string {
	if strings.HasPrefix(c.Host, "/") {
		return c.Host + " " + c.Database
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + "/" + c.Database
}

// configure reads the URL and adds what makes a lost network end: on both ends,
// since a server that is gone must not hold the row that all writes need.
func configure(url string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	for key, value := range map[string]string{
		"application_name":                    "tulle-policy-server",
		"idle_in_transaction_session_timeout": "10s",
		"statement_timeout":                   "60s",
	} {
		if _, given := c.RuntimeParams[key]; !given {
			c.RuntimeParams[key] = value
		}
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	dialer := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control:         userTimeout,
	}
	c.DialFunc = dialer.DialContext
	return c, nil
}

const (
	connectTimeout = 5 * time.Second
	sendTimeout    = 15 * time.Second // until what was sent must be acknowledged
)

// userTimeout bounds how long the kernel sends again and again (tcp(7)).
func userTimeout(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(sendTimeout/time.Millisecond))
	})
	return errors.Join(err, failed)
}

// durable makes a commit that was answered last: an operator's default may be
// otherwise.
func durable(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`)
	return err
}

func open(ctx context.Context, config *pgx.ConnConfig, o Options) (store.Store, error) {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return nil, err
	}
	err = migrate(ctx, conn)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return nil, err
	}
	pulse := new(sqlstore.Pulse)
	listen := &listener{config: config, self: uuid.NewString(), pulse: pulse, heard: make(chan string, heardBuffer), log: o.Log}
	first, err := listen.connect(ctx)
	if err != nil {
		return nil, err
	}
	writer := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(durable))
	pool(writer, writers)
	reader := stdlib.OpenDB(*config)
	pool(reader, o.Connections-writers-1)
	s, err := sqlstore.New(ctx, sqlstore.Database{
		Writer: writer, Reader: reader, Pulse: pulse,
		Notify:  `SELECT pg_notify('` + channelChanged + `', '` + listen.self + `')`,
		Lock:    `SELECT revision FROM meta FOR UPDATE`,
		Clock:   `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`,
		View:    sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
		Query:   new(rewriter).rewrite,
		List:    `(SELECT json_array_elements_text(?::text::json))`,
		Texts:   storable,
		Explain: explain,
		Again:   again,
	}, o.Options)
	if err != nil {
		return nil, errors.Join(err, first.Close(ctx), reader.Close(), writer.Close())
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	d := &db{Store: s, notices: reader, listen: listen, stop: stop, stopped: make(chan struct{})}
	go func() {
		defer close(d.stopped)
		listen.run(background, first)
	}()
	return d, nil
}

func pool(p *sql.DB, n int) {
	p.SetMaxOpenConns(n)
	p.SetMaxIdleConns(n)
	p.SetConnMaxLifetime(maxConnectionAge)
}

// Close ends the store. Reads and writes under way end first.
func (d *db) Close() error {
	d.stop()
	<-d.stopped
	return d.Store.Close()
}

// storable keeps the texts without a zero byte: PostgreSQL holds none, so none
// of the others can be stored.
func storable(apps []policy.AppID) []policy.AppID {
	kept := make([]policy.AppID, 0, len(apps))
	for _, app := range apps {
		if !strings.Contains(string(app), "\x00") {
			kept = append(kept, app)
		}
	}
	return kept
}

// rewriter writes parameters in PostgreSQL's way and remembers the statements.
type rewriter struct{ known sync.Map }

func (r *rewriter) rewrite(query string) string {
	if text, ok := r.known.Load(query); ok {
		return text.(string)
	}
	text := parameters(query)
	r.known.Store(query, text)
	return text
}

// parameters turns ? into $1, $2 and so on, and ?1 into $1. No statement has a
// question mark for anything else.
func parameters(query string) string {
	var b strings.Builder
	n := 0
	for i := 0; i < len(query); i++ {
		if query[i] != '?' {
			b.WriteByte(query[i])
			continue
		}
		b.WriteByte('$')
		if i+1 == len(query) || query[i+1] < '0' || query[i+1] > '9' {
			n++
			b.WriteString(strconv.Itoa(n))
		}
	}
	return b.String()
}
