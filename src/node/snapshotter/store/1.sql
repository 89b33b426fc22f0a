CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- 1 view, 2 active, 3 committed: the numbers of containerd's API.
    kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    -- What has children is not removed.
    parent INTEGER REFERENCES snapshot (id) ON DELETE RESTRICT,
    -- Chain ID of a layer whose files lie on a volume.
    chain TEXT,
    -- Nanoseconds since 1970-01-01 UTC.
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    -- A JSON object of strings.
    labels TEXT NOT NULL,
    -- Of a committed one: bytes and inodes.
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    CHECK (chain IS NULL OR kind = 3)
) STRICT;
CREATE INDEX snapshot_parent ON snapshot (parent);
CREATE INDEX snapshot_chain ON snapshot (chain) WHERE chain IS NOT NULL;
