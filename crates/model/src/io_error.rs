//! Errors of system calls: their message, their class and hints about their cause.
//!
//! This is the only mapping from [`io::Error`] to [`Class`]. It needs no system call.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind};

use super::class::Class;

// Error numbers of Linux without a stable `ErrorKind`, equal on all architectures that Larder supports.
const ELOOP: i32 = 40;
const EBADMSG: i32 = 74;
const EUCLEAN: i32 = 117;
const EOPNOTSUPP: i32 = 95;

/// The role of a file in an operation, which determines what it means if the file is missing or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// A file that Larder creates itself, such as a record or a staging directory.
    Own,
    /// An input or output of the command, by a path that the user gave.
    Given,
    /// An object that need not exist, such as a volume or a mount point.
    Named,
    /// A file that the seal of a volume requires.
    Sealed,
}

/// Returns the class of a failed system call.
///
/// Some kinds have the same class for every file. The class of the others depends on the role of the file.
///
/// | kind | own | given | named | sealed |
/// |---|---|---|---|---|
/// | `StorageFull` `QuotaExceeded` `TooManyLinks` | `NoSpace` | `NoSpace` | `NoSpace` | `NoSpace` |
/// | `PermissionDenied` `ReadOnlyFilesystem` | `Denied` | `Denied` | `Denied` | `Denied` |
/// | `ResourceBusy` | `Busy` | `Busy` | `Busy` | `Busy` |
/// | `InvalidData` `EUCLEAN` `EBADMSG` `ELOOP` | `Corrupt` | `Corrupt` | `Corrupt` | `Corrupt` |
/// | `NotFound` `NotADirectory` | `Internal` | `Invalid` | `NotFound` | `Corrupt` |
/// | `IsADirectory` `InvalidInput` `FileTooLarge` | `Internal` | `Invalid` | `Internal` | `Corrupt` |
/// | `UnexpectedEof` | `Internal` | `Corrupt` | `Internal` | `Corrupt` |
/// | `AlreadyExists` | `Internal` | `Conflict` | `Internal` | `Internal` |
/// | `BrokenPipe` | `Internal` | `Cancelled` | `Internal` | `Internal` |
/// | `Other` | `Internal` | `Internal` | `Internal` | `Internal` |
///
/// - `EUCLEAN` and `EBADMSG` report damaged metadata of a file system.
/// - `ELOOP` reports a symbolic link where Larder does not follow one.
/// - `Other` is every kind that is not in the table.
pub fn class(error: &io::Error, role: FileRole) -> Class {
    if let Some(ELOOP | EBADMSG | EUCLEAN) = error.raw_os_error() {
        return Class::Corrupt;
    }
    match (error.kind(), role) {
        (ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::TooManyLinks, _) => Class::NoSpace,
        (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem, _) => Class::Denied,
        (ErrorKind::ResourceBusy, _) => Class::Busy,
        (ErrorKind::InvalidData, _) => Class::Corrupt,
        (ErrorKind::NotFound | ErrorKind::NotADirectory, FileRole::Named) => Class::NotFound,
        (ErrorKind::UnexpectedEof, FileRole::Given) => Class::Corrupt,
        (ErrorKind::AlreadyExists, FileRole::Given) => Class::Conflict,
        // The reader of the output closed it.
        (ErrorKind::BrokenPipe, FileRole::Given) => Class::Cancelled,
        (kind, FileRole::Given) if is_misfit(kind) => Class::Invalid,
        (kind, FileRole::Sealed) if is_misfit(kind) || kind == ErrorKind::UnexpectedEof => Class::Corrupt,
        _ => Class::Internal,
    }
}

/// Reports whether the path leads to nothing, or to something of another type or size than expected.
fn is_misfit(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::FileTooLarge
    )
}

/// A failed system call with the operation and its object.
#[derive(Debug)]
pub struct IoError {
    /// The operation as a gerund, such as "reading".
    pub doing: &'static str,
    /// The object of the operation: a path, or a name such as "the journal".
    pub object: String,
    /// The error of the system call.
    pub source: io::Error,
}

impl IoError {
    /// Creates the error of an operation on an object.
    pub fn new(doing: &'static str, object: impl Display, source: io::Error) -> Self {
        IoError { doing, object: object.to_string(), source }
    }

    /// Returns the class of the error ([`class()`]).
    pub fn class(&self, role: FileRole) -> Class {
        class(&self.source, role)
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.source.kind()
    }
}

impl Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.doing, self.object, self.source)
    }
}

/// The message contains the text of the cause, so `source()` returns `None`.
impl std::error::Error for IoError {}

/// Adds the operation and its object to the error of a system call.
pub trait Context<T> {
    /// Adds the operation, as a gerund, and its object.
    ///
    /// # Errors
    /// Returns [`IoError`] if `self` is an error.
    fn context(self, doing: &'static str, object: impl Display) -> Result<T, IoError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, object: impl Display) -> Result<T, IoError> {
        self.map_err(|source| IoError::new(doing, object, source))
    }
}

/// An operation with typical causes of failure, which the user can remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writing the files of a layer.
    WriteLayer,
    /// Creating or mounting a disk.
    UseDisk,
    /// Mounting an image.
    MountImage,
    /// Attaching a volume.
    AttachVolume,
    /// Connecting to containerd.
    ConnectToContainerd,
}

/// Returns a hint about the typical cause of an error, to be appended to its message. Empty if there is none.
pub fn hint(operation: Operation, error: &io::Error) -> &'static str {
    match operation {
        Operation::WriteLayer => match error.kind() {
            ErrorKind::StorageFull => "; use a larger file system, or one with more inodes",
            ErrorKind::TooManyLinks => {
                " (too many hard links to one file, ext4 allows 65,000: use xfs, or --layer-format erofs)"
            }
            ErrorKind::QuotaExceeded => " (the disk quota is exhausted)",
            _ if error.raw_os_error() == Some(EOPNOTSUPP) => {
                " (the file system cannot store this; ext4 and xfs can)"
            }
            _ => "",
        },
        Operation::UseDisk => match error.kind() {
            ErrorKind::PermissionDenied => " (disks need root, with CAP_SYS_ADMIN and loop devices)",
            _ => "",
        },
        Operation::MountImage => mount_hint(error, " (mounting requires root)"),
        Operation::AttachVolume => mount_hint(error, " (attaching requires root)"),
        Operation::ConnectToContainerd => match error.kind() {
            ErrorKind::PermissionDenied => " (its socket is accessible to root only)",
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ": is it running, and is this its socket?",
            _ => "",
        },
    }
}

fn mount_hint(error: &io::Error, denied: &'static str) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => denied,
        ErrorKind::ResourceBusy => " (it is in use)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// Error numbers of Linux for the names in the table. The value 0 stands for an error without a number.
    const NUMBERS: [(&str, i32, Option<ErrorKind>); 19] = [
        ("StorageFull", 28, Some(ErrorKind::StorageFull)),
        ("QuotaExceeded", 122, Some(ErrorKind::QuotaExceeded)),
        ("TooManyLinks", 31, Some(ErrorKind::TooManyLinks)),
        ("PermissionDenied", 13, Some(ErrorKind::PermissionDenied)),
        ("ReadOnlyFilesystem", 30, Some(ErrorKind::ReadOnlyFilesystem)),
        ("ResourceBusy", 16, Some(ErrorKind::ResourceBusy)),
        ("InvalidData", 0, Some(ErrorKind::InvalidData)),
        ("EUCLEAN", EUCLEAN, None),
        ("EBADMSG", EBADMSG, None),
        ("ELOOP", ELOOP, None),
        ("NotFound", 2, Some(ErrorKind::NotFound)),
        ("NotADirectory", 20, Some(ErrorKind::NotADirectory)),
        ("IsADirectory", 21, Some(ErrorKind::IsADirectory)),
        ("InvalidInput", 22, Some(ErrorKind::InvalidInput)),
        ("FileTooLarge", 27, Some(ErrorKind::FileTooLarge)),
        ("UnexpectedEof", 0, Some(ErrorKind::UnexpectedEof)),
        ("AlreadyExists", 17, Some(ErrorKind::AlreadyExists)),
        ("BrokenPipe", 32, Some(ErrorKind::BrokenPipe)),
        ("Other", 5, None),
    ];

    /// Returns the errors with this name: one of the kernel and one of the standard library, if they exist.
    fn errors(name: &str) -> Vec<io::Error> {
        let (_, number, kind) = NUMBERS.iter().find(|(known, ..)| *known == name).unwrap();
        let of_kernel = (*number != 0).then(|| io::Error::from_raw_os_error(*number));
        of_kernel.into_iter().chain(kind.map(io::Error::from)).collect()
    }

    /// Returns the cells of the table in the documentation of [`class()`]: names, and one class per role.
    fn table() -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
        let rows = include_str!("io_error.rs").lines().filter_map(|line| line.strip_prefix("/// | `"));
        let cells = rows.map(|row| row.split(" | ").map(|cell| cell.trim_matches(['`', '|', ' '])));
        cells.map(|mut cells| (cells.next().unwrap().split("` `").collect(), cells.collect())).collect()
    }

    #[test]
    fn every_row_of_the_table_holds() {
        let roles = [FileRole::Own, FileRole::Given, FileRole::Named, FileRole::Sealed];
        let table = table();
        for (names, classes) in &table {
            assert_eq!(classes.len(), roles.len(), "{names:?}");
            for (role, want) in roles.iter().zip(classes) {
                for (name, error) in
                    names.iter().flat_map(|name| errors(name).into_iter().map(move |e| (name, e)))
                {
                    assert_eq!(format!("{:?}", class(&error, *role)), *want, "{name}, {role:?}, {error:?}");
                }
            }
        }
        let listed: usize = table.iter().map(|(names, _)| names.len()).sum();
        assert_eq!(listed, NUMBERS.len(), "the table lacks a row");
    }

    #[test]
    fn the_message_contains_the_cause_and_nothing_exposes_it_again() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(2));
        let error = failed.context("reading", "the journal").unwrap_err();
        assert_eq!(error.to_string(), "reading the journal: No such file or directory (os error 2)");
        assert!(error.source().is_none());
        assert_eq!(error.class(FileRole::Named), Class::NotFound);
    }

    #[test]
    fn hints_name_what_the_user_can_change() {
        let denied = io::Error::from_raw_os_error(1);
        for operation in [Operation::UseDisk, Operation::MountImage, Operation::AttachVolume] {
            assert!(hint(operation, &denied).contains("root"), "{operation:?}");
        }
        assert!(hint(Operation::WriteLayer, &io::Error::from_raw_os_error(EOPNOTSUPP)).contains("ext4"));
        assert!(hint(Operation::WriteLayer, &denied).is_empty());
    }
}
