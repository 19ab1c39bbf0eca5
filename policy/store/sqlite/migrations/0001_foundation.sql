-- Times are microseconds since 1970 UTC. Addresses and prefixes are text, as
-- Go's net/netip writes them.

-- One row: the store's life and its revision. Every change raises the revision
-- in its own transaction, so commit order is revision order.
CREATE TABLE meta (
	id               INTEGER PRIMARY KEY CHECK (id = 1),
	epoch            TEXT    NOT NULL,
	revision         INTEGER NOT NULL,
	policies_updated INTEGER NOT NULL
);

-- What each revision changed, as the JSON of an api.Delta. Only the newest are
-- kept; there are no gaps between them.
CREATE TABLE changes (
	revision INTEGER PRIMARY KEY,
	delta    TEXT NOT NULL
);

CREATE TABLE policies (
	source      TEXT    NOT NULL,
	destination TEXT    NOT NULL,
	protocol    INTEGER NOT NULL,
	start_port  INTEGER NOT NULL,
	end_port    INTEGER NOT NULL,
	PRIMARY KEY (source, destination, protocol, start_port, end_port)
) WITHOUT ROWID;
CREATE INDEX policies_destination ON policies (destination);

-- A row for every tag that was ever given; tags are given lowest first, so
-- there are no gaps. Without an app the tag is free from free_at on.
CREATE TABLE tags (
	tag     INTEGER PRIMARY KEY,
	app     TEXT UNIQUE,
	free_at INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX tags_free ON tags (tag) WHERE app IS NULL;

CREATE TABLE orgs (
	guid TEXT PRIMARY KEY,
	name TEXT NOT NULL UNIQUE
);
CREATE TABLE spaces (
	guid TEXT PRIMARY KEY,
	org  TEXT NOT NULL REFERENCES orgs (guid),
	name TEXT NOT NULL,
	UNIQUE (org, name)
);
-- An app that is known by its GUID only has neither space nor name.
CREATE TABLE apps (
	guid  TEXT PRIMARY KEY,
	space TEXT REFERENCES spaces (guid),
	name  TEXT NOT NULL DEFAULT '',
	UNIQUE (space, name)
);

-- Cells and silk peers. A row stays when its lease has ended (live = 0): its
-- generation must never fall back, and its subnet is the first it gets again as
-- long as no other took it (then NULL).
CREATE TABLE cells (
	name       TEXT    PRIMARY KEY,
	kind       TEXT    NOT NULL,
	mode       TEXT    NOT NULL,
	underlay   TEXT    NOT NULL,
	port       INTEGER NOT NULL,
	subnet     TEXT    UNIQUE,
	generation INTEGER NOT NULL,
	live       INTEGER NOT NULL,
	renewed    INTEGER NOT NULL,
	expires    INTEGER NOT NULL, -- 0: never
	sequence   INTEGER NOT NULL  -- of the newest list of endpoints
);
CREATE UNIQUE INDEX cells_underlay ON cells (underlay, port) WHERE live = 1;

CREATE TABLE endpoints (
	cell        TEXT    NOT NULL REFERENCES cells (name),
	container   TEXT    NOT NULL,
	address     TEXT    NOT NULL UNIQUE,
	app         TEXT    NOT NULL REFERENCES apps (guid),
	instance    TEXT    NOT NULL,
	generation  INTEGER NOT NULL,
	incarnation INTEGER NOT NULL,
	PRIMARY KEY (cell, container)
);
CREATE INDEX endpoints_app ON endpoints (app);
