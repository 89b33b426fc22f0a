//! One file per command, terminal and NDJSON output.
