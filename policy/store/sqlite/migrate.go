package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/google/uuid"

	"tulle/policy/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks the file as ours ("tull"), so that another program's
// database is not taken for one and written to.
const applicationID = 0x74756c6c

// owned reads the schema's version, and refuses files that are not ours.
func owned(ctx context.Context, w *sql.DB) (version int, err error) {
	var owner, tables int
	if err := w.QueryRowContext(ctx, `SELECT
		(SELECT user_version FROM pragma_user_version),
		(SELECT application_id FROM pragma_application_id),
		(SELECT count(*) FROM sqlite_schema)`).Scan(&version, &owner, &tables); err != nil {
		return 0, err
	}
	if owner != applicationID && tables > 0 {
		return 0, fmt.Errorf("%w: the file is another program's database", store.ErrCorrupt)
	}
	return version, nil
}

// migrate brings the schema to the newest version. Migrations only go forward;
// the n-th file leads to version n, each in a transaction of its own.
func migrate(ctx context.Context, w *sql.DB, version int) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	if version > len(files) {
		return fmt.Errorf("%w: schema %d, this program knows %d", store.ErrNewer, version, len(files))
	}
	for n := version; n < len(files); n++ {
		if err := step(ctx, w, files[n], n+1); err != nil {
			return fmt.Errorf("%s: %w", files[n], err)
		}
	}
	return nil
}

func step(ctx context.Context, w *sql.DB, file string, version int) error {
	text, err := migrations.ReadFile(file)
	if err != nil {
		return err
	}
	tx, err := w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, string(text)); err != nil {
		return err
	}
	if version == 1 {
		epoch := uuid.NewString()
		if _, err := tx.ExecContext(ctx, `INSERT INTO meta (id, epoch, revision, policies_updated) VALUES (1, ?, 0, 0)`, epoch); err != nil {
			return err
		}
	}
	// PRAGMA takes no parameters; both are our own numbers.
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d`, applicationID, version)); err != nil {
		return err
	}
	return tx.Commit()
}
