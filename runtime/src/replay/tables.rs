//! The token tables that were used last, parsed.

use alloc::vec::Vec;
use core::ops::Range;

use super::codec::TokenTable;

/// Tables kept: those of the segments that a batch of replayed records is likely to touch again.
const KEPT: usize = 8;

/// Parsed tables by the offset of the frame that brought them, least recently used first.
#[derive(Debug, Default)]
pub(super) struct TableCache {
    tables: Vec<(u32, TokenTable)>,
}

impl TableCache {
    /// The table at this offset, which is used last from now on.
    pub(super) fn get(&mut self, at: u32) -> Option<&TokenTable> {
        let found = self.tables.iter().position(|(other, _)| *other == at)?;
        self.tables[found..].rotate_left(1);
        self.tables.last().map(|(_, table)| table)
    }

    pub(super) fn insert(&mut self, at: u32, table: TokenTable) {
        self.tables.retain(|(other, _)| *other != at);
        if self.tables.len() == KEPT {
            self.tables.remove(0);
        }
        self.tables.push((at, table));
    }

    /// These bytes of the medium are erased.
    pub(super) fn forget(&mut self, offsets: Range<u32>) {
        self.tables.retain(|(at, _)| !offsets.contains(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_table_goes_first() {
        let mut cache = TableCache::default();
        for at in 0..KEPT as u32 {
            cache.insert(at, TokenTable::untrained());
        }
        assert!(cache.get(0).is_some());
        cache.insert(100, TokenTable::untrained());
        assert!(cache.get(0).is_some() && cache.get(1).is_none() && cache.get(100).is_some());
        cache.forget(0..1);
        assert!(cache.get(0).is_none() && cache.get(2).is_some());
    }
}
