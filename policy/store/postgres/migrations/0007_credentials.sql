-- Tokens that are good for one cell's credential, once. The secret is not stored,
-- only its sum. Lifetime is the credential's, in seconds.
CREATE TABLE join_tokens (
	sum      text   COLLATE "C" PRIMARY KEY,
	cell     text   COLLATE "C" NOT NULL,
	spaces   text   COLLATE "C" NOT NULL, -- a JSON array
	lifetime bigint NOT NULL,
	expires  bigint NOT NULL
);
-- A credential of the cell is void that was issued at that time or before.
CREATE TABLE revocations (
	cell text   COLLATE "C" PRIMARY KEY,
	at   bigint NOT NULL
);
