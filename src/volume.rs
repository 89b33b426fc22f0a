//! Layout, cap, journal, commit in chain order, seal, verify.
