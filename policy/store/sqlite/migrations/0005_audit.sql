-- Who changed what: a row for each change of each thing, written by the change's
-- own transaction. Ids have no gaps; only the newest rows are kept.
CREATE TABLE audit (
	id        INTEGER PRIMARY KEY,
	at        INTEGER NOT NULL,
	who       TEXT NOT NULL,
	origin    TEXT NOT NULL,
	action    TEXT NOT NULL,
	subject   TEXT NOT NULL,
	revision  INTEGER NOT NULL,
	old_value TEXT, -- JSON; NULL: was not there
	new_value TEXT  -- JSON; NULL: is not there any more
);
