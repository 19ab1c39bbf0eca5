-- A key by which others make secrets with the cell, in base64, and what they made: the
-- newest of each pair of cells, the lower name's ciphertext for the higher.
ALTER TABLE cells ADD COLUMN encapsulation_key TEXT NOT NULL DEFAULT '';
CREATE TABLE pair_secrets (
	low        TEXT    NOT NULL,
	high       TEXT    NOT NULL,
	sequence   INTEGER NOT NULL,
	key_id     TEXT    NOT NULL,
	low_key    TEXT    NOT NULL,
	high_key   TEXT    NOT NULL,
	ciphertext TEXT    NOT NULL, -- base64
	held       INTEGER NOT NULL,
	PRIMARY KEY (low, high)
) WITHOUT ROWID;
CREATE INDEX pair_secrets_high ON pair_secrets (high);
