-- Times are microseconds since 1970 UTC. Addresses and prefixes are text, as
-- Go's net/netip writes them. Text is ordered by its bytes, whatever the
-- database's locale, so that lists come in the same order as elsewhere.

-- One row: how many of the migrations were applied. It also shows whose tables
-- these are.
CREATE TABLE tulle_schema (
	version integer NOT NULL
);
INSERT INTO tulle_schema (version) VALUES (0);

-- One row: the store's life and its revision. Every change locks it first and
-- raises the revision in its own transaction, so commit order is revision order.
CREATE TABLE meta (
	id               smallint PRIMARY KEY CHECK (id = 1),
	epoch            text     COLLATE "C" NOT NULL,
	revision         bigint   NOT NULL,
	policies_updated bigint   NOT NULL
) WITH (fillfactor = 10); -- updated all the time: room for it on its page

-- What each revision changed, as the JSON of an api.Delta. Only the newest are
-- kept; there are no gaps between them.
CREATE TABLE changes (
	revision bigint PRIMARY KEY,
	delta    text   COLLATE "C" NOT NULL
);

CREATE TABLE policies (
	source      text     COLLATE "C" NOT NULL,
	destination text     COLLATE "C" NOT NULL,
	protocol    smallint NOT NULL,
	start_port  integer  NOT NULL,
	end_port    integer  NOT NULL,
	PRIMARY KEY (source, destination, protocol, start_port, end_port)
);
CREATE INDEX policies_destination ON policies (destination);

-- A row for every tag that was ever given; tags are given lowest first, so
-- there are no gaps. Without an app the tag is free from free_at on.
CREATE TABLE tags (
	tag     bigint PRIMARY KEY,
	app     text   COLLATE "C" UNIQUE,
	free_at bigint NOT NULL DEFAULT 0
);
CREATE INDEX tags_free ON tags (tag) WHERE app IS NULL;

CREATE TABLE orgs (
	guid text COLLATE "C" PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE
);
CREATE TABLE spaces (
	guid text COLLATE "C" PRIMARY KEY,
	org  text COLLATE "C" NOT NULL REFERENCES orgs (guid),
	name text COLLATE "C" NOT NULL,
	UNIQUE (org, name)
);
-- An app that is known by its GUID only has neither space nor name.
CREATE TABLE apps (
	guid  text COLLATE "C" PRIMARY KEY,
	space text COLLATE "C" REFERENCES spaces (guid),
	name  text COLLATE "C" NOT NULL DEFAULT '',
	UNIQUE (space, name)
);

-- Cells and silk peers. A row stays when its lease has ended (live = 0): its
-- generation must never fall back, and its subnet is the first it gets again as
-- long as no other took it (then NULL).
CREATE TABLE cells (
	name       text     COLLATE "C" PRIMARY KEY,
	kind       text     COLLATE "C" NOT NULL,
	mode       text     COLLATE "C" NOT NULL,
	underlay   text     COLLATE "C" NOT NULL,
	port       integer  NOT NULL,
	subnet     text     COLLATE "C" UNIQUE,
	generation bigint   NOT NULL,
	live       smallint NOT NULL,
	renewed    bigint   NOT NULL,
	expires    bigint   NOT NULL, -- 0: never
	sequence   bigint   NOT NULL  -- of the newest list of endpoints
);
CREATE UNIQUE INDEX cells_underlay ON cells (underlay, port) WHERE live = 1;

CREATE TABLE endpoints (
	cell        text   COLLATE "C" NOT NULL REFERENCES cells (name),
	container   text   COLLATE "C" NOT NULL,
	address     text   COLLATE "C" NOT NULL UNIQUE,
	app         text   COLLATE "C" NOT NULL REFERENCES apps (guid),
	instance    text   COLLATE "C" NOT NULL,
	generation  bigint NOT NULL,
	incarnation bigint NOT NULL,
	PRIMARY KEY (cell, container)
);
CREATE INDEX endpoints_app ON endpoints (app);
