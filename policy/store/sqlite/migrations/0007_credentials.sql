-- Tokens that are good for one cell's credential, once. The secret is not stored,
-- only its sum. Lifetime is the credential's, in seconds.
CREATE TABLE join_tokens (
	sum      TEXT PRIMARY KEY,
	cell     TEXT NOT NULL,
	spaces   TEXT NOT NULL, -- a JSON array
	lifetime INTEGER NOT NULL,
	expires  INTEGER NOT NULL
);
-- A credential of the cell is void that was issued at that time or before.
CREATE TABLE revocations (
	cell TEXT PRIMARY KEY,
	at   INTEGER NOT NULL
);
