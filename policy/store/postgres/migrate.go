package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"tulle/policy/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrationLock is the key of the advisory lock that one server at a time
// migrates under ("tull").
const migrationLock = 0x74756c6c

// migrate brings the schema to the newest version. Migrations only go forward;
// the n-th file leads to version n, each in a transaction of its own. Of several
// servers that start at once one applies a file, and the others then find it
// applied.
func migrate(ctx context.Context, conn *pgx.Conn) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	for {
		done, err := step(ctx, conn, files)
		if err != nil || done {
			return err
		}
	}
}

// step applies the next file, or says that there is none.
func step(ctx context.Context, conn *pgx.Conn, files []string) (done bool, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		if e := tx.Rollback(ctx); e != nil && !errors.Is(e, pgx.ErrTxClosed) && err == nil {
			err = e
		}
	}()
	// A large table may take its time, and so may the server that is ahead.
	if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = 0;
		SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock(%d)`, migrationLock)); err != nil {
		return false, err
	}
	version, err := schemaVersion(ctx, tx)
	switch {
	case err != nil:
		return false, err
	case version > len(files):
		return false, fmt.Errorf("%w: schema %d, this program knows %d", store.ErrNewer, version, len(files))
	case version == len(files):
		return true, nil
	}
	text, err := migrations.ReadFile(files[version])
	if err != nil {
		return false, err
	}
	if _, err := tx.Exec(ctx, string(text)); err != nil {
		return false, fmt.Errorf("%s: %w", files[version], err)
	}
	if version == 0 {
		if _, err := tx.Exec(ctx, `INSERT INTO meta (id, epoch, revision, policies_updated) VALUES (1, $1, 0, 0)`, uuid.NewString()); err != nil {
			return false, err
		}
	}
	if _, err := tx.Exec(ctx, `UPDATE tulle_schema SET version = $1`, version+1); err != nil {
		return false, err
	}
	return false, tx.Commit(ctx)
}

// schemaVersion reads how far the schema is, and refuses one that is not ours.
func schemaVersion(ctx context.Context, tx pgx.Tx) (version int, err error) {
	var ours bool
	var tables int
	if err := tx.QueryRow(ctx, `SELECT to_regclass('tulle_schema') IS NOT NULL,
		(SELECT count(*) FROM pg_tables WHERE schemaname = current_schema())`).Scan(&ours, &tables); err != nil {
		return 0, err
	}
	if !ours {
		if tables > 0 {
			return 0, fmt.Errorf("%w: it holds another program's tables; the server needs a database or a schema of its own", store.ErrCorrupt)
		}
		return 0, nil
	}
	err = tx.QueryRow(ctx, `SELECT version FROM tulle_schema`).Scan(&version)
	return version, err
}
