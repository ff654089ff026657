//! The versions of the ledger's format.

/// The format that this release reads and writes.
pub(super) const FORMAT: u64 = 2;

/// The previous format: the same without keys.
pub(super) const FORMAT_WITHOUT_KEYS: u64 = 1;
