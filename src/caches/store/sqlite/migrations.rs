//! The versioned schema. A released step is never changed; new steps are appended.

use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as Larder's (`PRAGMA application_id`, "LRDR"); file(1) shows it.
pub(super) const APPLICATION_ID: i32 = 0x4c52_4452;

/// One script per schema version, starting at 1.
pub(super) const STEPS: &[&str] = &[include_str!("migrations/1.sql")];

/// Returns the schema version of the database.
pub(super) fn version(db: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    // Larder never writes a negative version, so treat it as newer than all versions.
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Migrates the database to the version of `steps`. Each step is a transaction.
pub(super) fn run(db: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let start = version(db)?;
    for (number, step) in steps.iter().enumerate().skip(start) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        transaction.execute_batch(step)?;
        transaction.execute_batch(&format!("PRAGMA user_version = {}", number + 1))?;
        transaction.commit()?;
    }
    Ok(())
}

/// Returns the definitions in the database (tables, indexes, triggers, views) as written. SQLite's internal
/// objects (statistics, indexes of constraints) are left out.
pub(super) fn schema(db: &Connection) -> rusqlite::Result<Vec<(String, String, String)>> {
    let sql = "SELECT type, name, ifnull(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    db.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_atomic() {
        let mut db = Connection::open_in_memory().unwrap();
        let first = "CREATE TABLE a (x INTEGER) STRICT";
        run(&mut db, &[first]).unwrap();
        assert_eq!(version(&db).unwrap(), 1);
        let before = schema(&db).unwrap();
        run(&mut db, &[first, "CREATE TABLE b (x INTEGER) STRICT; CREATE TABLE a (x INTEGER)"]).unwrap_err();
        assert_eq!((version(&db).unwrap(), schema(&db).unwrap()), (1, before));
        run(&mut db, &[first, "CREATE TABLE b (x INTEGER) STRICT", "INSERT INTO b VALUES (7)"]).unwrap();
        assert_eq!(version(&db).unwrap(), 3);
        assert_eq!(db.query_row("SELECT x FROM b", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    }

    #[test]
    fn the_tables_are_made_once() {
        let mut db = Connection::open_in_memory().unwrap();
        for _ in 0..2 {
            run(&mut db, STEPS).unwrap();
            assert_eq!(version(&db).unwrap(), STEPS.len());
        }
    }
}
