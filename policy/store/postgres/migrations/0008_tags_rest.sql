-- The revision by which a tag was released. It is given to nobody before that is in
-- force on every cell.
ALTER TABLE tags ADD COLUMN released bigint NOT NULL DEFAULT 0;
