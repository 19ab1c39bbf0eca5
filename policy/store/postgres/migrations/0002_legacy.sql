-- A tag belongs to an application, or to whatever asked for one at the internal
-- API (the original's only one is of type router).
ALTER TABLE tags ADD COLUMN type text COLLATE "C" NOT NULL DEFAULT 'app';
