-- While a cell rotates its tunnel key it has two. The next is one peer's as well,
-- among next keys and keys alike.
ALTER TABLE cells ADD COLUMN next_key TEXT COLLATE "C" NOT NULL DEFAULT '';
CREATE UNIQUE INDEX cells_next_key ON cells (next_key) WHERE live = 1 AND next_key <> '';
