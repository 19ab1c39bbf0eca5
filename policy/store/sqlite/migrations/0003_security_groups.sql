-- Security groups. The id orders them and is what a page begins with, so it is
-- never used twice. Rules and lists of spaces are JSON.
CREATE TABLE security_groups (
	id              INTEGER PRIMARY KEY AUTOINCREMENT,
	guid            TEXT    NOT NULL UNIQUE,
	name            TEXT    NOT NULL,
	rules           TEXT    NOT NULL,
	staging_default INTEGER NOT NULL,
	running_default INTEGER NOT NULL,
	staging_spaces  TEXT    NOT NULL,
	running_spaces  TEXT    NOT NULL
);

-- The same spaces, to find a space's groups by.
CREATE TABLE security_group_spaces (
	space TEXT    NOT NULL,
	id    INTEGER NOT NULL REFERENCES security_groups (id) ON DELETE CASCADE,
	PRIMARY KEY (space, id)
);
CREATE INDEX security_group_spaces_id ON security_group_spaces (id);

ALTER TABLE meta ADD COLUMN groups_updated INTEGER NOT NULL DEFAULT 0;
