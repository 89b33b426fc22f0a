//! Traversal of directory trees from images: any depth, any number of directories, with two open descriptors.
//!
//! Only the current directory is open. The walk returns to a parent through `..`, and checks that this is the
//! directory that it came from.

use std::io;

use super::dir::Dir;

/// Callbacks of a walk.
pub trait Visitor {
    /// The error with which the visitor stops a walk.
    type Error;

    /// Visits the directory `dir` and returns the names of the subdirectories to walk. `path` is empty at the
    /// top.
    ///
    /// # Errors
    /// An error stops the walk.
    fn enter(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, Self::Error>;

    /// Called when the directory `name` of `parent` and everything below it were visited.
    ///
    /// # Errors
    /// An error stops the walk.
    fn leave(&mut self, parent: &Dir, name: &[u8]) -> Result<(), Self::Error> {
        let _ = (parent, name);
        Ok(())
    }

    /// Converts the error for a directory that cannot be opened.
    fn failed(&mut self, path: &[u8], error: io::Error) -> Self::Error;
}

/// One directory on the path to the current one.
struct Level {
    identity: (u64, u64),
    name: Vec<u8>,
    pending: Vec<Vec<u8>>,
}

/// Walks the tree at `top`, parents before children.
///
/// # Errors
/// The first error of the visitor.
pub fn walk<V: Visitor>(top: Dir, visitor: &mut V) -> Result<(), V::Error> {
    let mut dir = top;
    let mut path = Vec::new();
    let mut levels = vec![level(&dir, Vec::new(), &path, visitor)?];
    while let Some(present) = levels.last_mut() {
        if let Some(name) = present.pending.pop() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            dir = dir.open_dir(&name).map_err(|e| visitor.failed(&path, e))?;
            let next = level(&dir, name, &path, visitor)?;
            levels.push(next);
            continue;
        }
        let Some(done) = levels.pop() else { break };
        let Some(parent) = levels.last() else { break };
        let up = dir.open_dir(b"..").and_then(|up| match up.stat_self()?.identity == parent.identity {
            true => Ok(up),
            false => Err(io::Error::other("the directory was moved during the walk")),
        });
        dir = up.map_err(|e| visitor.failed(&path, e))?;
        let above = path.len() - done.name.len();
        path.truncate(above.saturating_sub(1));
        visitor.leave(&dir, &done.name)?;
    }
    Ok(())
}

fn level<V: Visitor>(dir: &Dir, name: Vec<u8>, path: &[u8], visitor: &mut V) -> Result<Level, V::Error> {
    let identity = dir.stat_self().map_err(|e| visitor.failed(path, e))?.identity;
    Ok(Level { identity, name, pending: visitor.enter(dir, path)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Paths {
        entered: Vec<String>,
        left: Vec<String>,
    }

    impl Visitor for Paths {
        type Error = io::Error;

        fn enter(&mut self, dir: &Dir, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
            self.entered.push(String::from_utf8_lossy(path).into_owned());
            let mut names = dir.names()?;
            names.sort_by(|a, b| b.cmp(a));
            Ok(names)
        }

        fn leave(&mut self, _: &Dir, name: &[u8]) -> io::Result<()> {
            self.left.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        }

        fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
            error
        }
    }

    #[test]
    fn parents_before_children_and_back() {
        let top = std::env::temp_dir().join(format!("larder-walk-{}", std::process::id()));
        for path in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(top.join(path)).unwrap();
        }
        let mut paths = Paths::default();
        walk(Dir::open(&top).unwrap(), &mut paths).unwrap();
        assert_eq!(paths.entered, ["", "a", "a/b", "a/b/c", "a/d", "e"]);
        assert_eq!(paths.left, ["c", "b", "d", "a", "e"]);
        std::fs::remove_dir_all(&top).unwrap();
    }
}
