-- A key by which others make secrets with the cell, in base64, and what they made: the
-- newest of each pair of cells, the lower name's ciphertext for the higher.
ALTER TABLE cells ADD COLUMN encapsulation_key text COLLATE "C" NOT NULL DEFAULT '';
CREATE TABLE pair_secrets (
	low        text     COLLATE "C" NOT NULL,
	high       text     COLLATE "C" NOT NULL,
	sequence   bigint   NOT NULL,
	key_id     text     COLLATE "C" NOT NULL,
	low_key    text     COLLATE "C" NOT NULL,
	high_key   text     COLLATE "C" NOT NULL,
	ciphertext text     COLLATE "C" NOT NULL, -- base64
	held       smallint NOT NULL,
	PRIMARY KEY (low, high)
);
CREATE INDEX pair_secrets_high ON pair_secrets (high);
