-- What a peer of mode wireguard has besides: its public key in base64, the UDP
-- port where it listens for WireGuard, its address inside the tunnel. A key is
-- one peer's, and so is a tunnel address.
ALTER TABLE cells ADD COLUMN key            TEXT    NOT NULL DEFAULT '';
ALTER TABLE cells ADD COLUMN wireguard_port INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cells ADD COLUMN tunnel         TEXT    NOT NULL DEFAULT '';
CREATE UNIQUE INDEX cells_key       ON cells (key)                      WHERE live = 1 AND key <> '';
CREATE UNIQUE INDEX cells_wireguard ON cells (underlay, wireguard_port) WHERE live = 1 AND wireguard_port <> 0;
CREATE UNIQUE INDEX cells_tunnel    ON cells (tunnel)                   WHERE live = 1 AND tunnel <> '';
