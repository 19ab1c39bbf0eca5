-- Who changed what: a row for each change of each thing, written by the change's
-- own transaction. Ids have no gaps; only the newest rows are kept.
CREATE TABLE audit (
	id        bigint PRIMARY KEY,
	at        bigint NOT NULL,
	who       text   COLLATE "C" NOT NULL,
	origin    text   COLLATE "C" NOT NULL,
	action    text   COLLATE "C" NOT NULL,
	subject   text   COLLATE "C" NOT NULL,
	revision  bigint NOT NULL,
	old_value text   COLLATE "C", -- JSON; NULL: was not there
	new_value text   COLLATE "C"  -- JSON; NULL: is not there any more
);
