//! `larder.toml`: one section per file; defaults < file < environment < flags; unknown keys refused.
