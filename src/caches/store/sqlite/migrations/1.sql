-- One row per record. `record` is authoritative (JSON). The columns before it are for SQL conditions, and `checksum`
-- covers id, version and record.
CREATE TABLE cache (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    reserved_gib INTEGER NOT NULL,
    version INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (tenant, name)
) STRICT;

-- The first answer to a create with an Idempotency-Key, which outlives its record. `used_at` is in microseconds since
-- 1970.
CREATE TABLE answer (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    used_at INTEGER NOT NULL,
    request BLOB NOT NULL,
    checksum BLOB NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT;

CREATE INDEX answer_by_time ON answer (tenant, used_at);

-- The clocks saved last (JSON), in one row.
CREATE TABLE clock (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    noted TEXT NOT NULL,
    checksum BLOB NOT NULL
) STRICT;
