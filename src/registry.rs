//! Async: hosts and mirrors, authentication, retry, blobs that resume.
