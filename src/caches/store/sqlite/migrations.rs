//! The tables, by version. A step that was released is never changed; a new one is added at the end.

use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as ours (`PRAGMA application_id`, "LRDR"); file(1) shows it.
pub(super) const APPLICATION_ID: i32 = 0x4c52_4452;

/// One script for each version of the tables, from 1.
pub(super) const STEPS: &[&str] = &[include_str!("migrations/1.sql")];

/// The version that the database is at.
pub(super) fn version(db: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    // A negative one was never written by us, and is newer than anything.
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Brings the database from its version to that of `steps`, each step whole or not at all.
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

/// What is defined in the database: tables, indexes, triggers, views, as they were written. What SQLite makes of its own
/// accord (statistics, indexes of constraints) is left out.
pub(super) fn schema(db: &Connection) -> rusqlite::Result<Vec<(String, String, String)>> {
    let sql = "SELECT type, name, ifnull(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    db.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_whole_or_not_at_all() {
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
