-- Internal domains, and what the names in them stand for: an app, or an address
-- that was registered over NATS; the other of the two is ''. The id is the
-- order in which destinations of a name came.
CREATE TABLE domains (
	name TEXT PRIMARY KEY
);
INSERT INTO domains (name) VALUES ('apps.internal');

CREATE TABLE routes (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	name    TEXT NOT NULL,
	app     TEXT NOT NULL,
	address TEXT NOT NULL,
	UNIQUE (name, app, address)
);
CREATE INDEX routes_app ON routes (app);

-- A revision that no change leads to: cells that are connected to a server of a
-- version without domains get a snapshot.
UPDATE meta SET revision = revision + 1 WHERE revision > 0;
