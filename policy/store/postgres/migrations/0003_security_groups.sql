-- Security groups. The id orders them and is what a page begins with, so it is
-- never used twice. Rules and lists of spaces are JSON.
CREATE TABLE security_groups (
	id              bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	guid            text     COLLATE "C" NOT NULL UNIQUE,
	name            text     COLLATE "C" NOT NULL,
	rules           text     COLLATE "C" NOT NULL,
	staging_default smallint NOT NULL,
	running_default smallint NOT NULL,
	staging_spaces  text     COLLATE "C" NOT NULL,
	running_spaces  text     COLLATE "C" NOT NULL
);

-- The same spaces, to find a space's groups by.
CREATE TABLE security_group_spaces (
	space text   COLLATE "C" NOT NULL,
	id    bigint NOT NULL REFERENCES security_groups (id) ON DELETE CASCADE,
	PRIMARY KEY (space, id)
);
CREATE INDEX security_group_spaces_id ON security_group_spaces (id);

ALTER TABLE meta ADD COLUMN groups_updated bigint NOT NULL DEFAULT 0;
