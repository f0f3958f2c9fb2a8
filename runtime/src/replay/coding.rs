//! Which token table the next frame is coded with.
//!
//! A table stands in the segment that uses it. A segment starts with one, and gets another when a new one is due, each only
//! if it saves more than it takes.

use alloc::vec::Vec;

use super::batch::{Batch, TableRef};
use super::codec::{TokenStatistics, TokenTable};

/// Tokens after which a table that did not pay is thought of again, at first.
const RETRY_TOKENS: u64 = 512;
/// Bytes a token may take: how many more fit a segment.
const TOKEN_BYTES: usize = 1;

/// What was seen of the tokens, and the table in force in the active segment.
#[derive(Debug)]
pub(super) struct Coding {
    pub(super) statistics: TokenStatistics,
    pub(super) in_force: InForce,
}

/// The table in force in a segment.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    table: TokenTable,
    /// Offset in the segment of the frame that brought it.
    at: Option<u32>,
    /// Tokens since then, or since the segment was started.
    since: u64,
    /// How many of them until another table is thought of.
    retry: u64,
}

/// A payload, and the table it brings.
pub(super) struct Coded {
    pub(super) payload: Vec<u8>,
    table: Option<TokenTable>,
    is_tried: bool,
}

impl Coding {
    pub(super) fn new() -> Self {
        Self { statistics: TokenStatistics::default(), in_force: InForce::none() }
    }

    /// Goes on with a table found in the active segment, at this offset.
    pub(super) fn found_table(&mut self, table: TokenTable, at: u32) {
        self.statistics = TokenStatistics::of_table(&table);
        self.in_force.set(table, at);
    }

    /// Counts tokens of a record that was found behind the table.
    pub(super) fn found_tokens(&mut self, tokens: &[u32]) {
        self.statistics.add(tokens);
        self.in_force.since += tokens.len() as u64;
    }
}

impl InForce {
    /// A segment that was just started.
    pub(super) fn none() -> Self {
        Self { table: TokenTable::untrained(), at: None, since: 0, retry: 0 }
    }

    /// Codes a frame for offset `at` of its segment, where `room_bytes` are left for its payload and what comes after.
    pub(super) fn encode(
        &self,
        batch: &Batch<'_>,
        statistics: &TokenStatistics,
        at: u32,
        word_bytes: u32,
        room_bytes: usize,
    ) -> Coded {
        let reference = self.at.map_or(TableRef::Untrained, |table| TableRef::Back((at - table) / word_bytes));
        let payload = batch.encode(reference, &self.table);
        let tokens: usize = batch.items.iter().map(|item| item.tokens.len()).sum();
        let is_tried = tokens > 0 && self.since >= self.retry && statistics.is_due(&self.table);
        if !is_tried {
            return Coded { payload, table: None, is_tried };
        }
        let mut statistics = statistics.clone();
        batch.items.iter().for_each(|item| statistics.add(item.tokens));
        let table = statistics.table();
        let table_bytes = table.to_bytes();
        let with_table = batch.encode(TableRef::Inline(&table_bytes), &table);
        // What it saves here, it saves of what else comes before the next table and fits the segment.
        let saved = (payload.len() + table_bytes.len()).saturating_sub(with_table.len());
        let room = room_bytes.saturating_sub(with_table.len()) / TOKEN_BYTES;
        let to_come = room.min(usize::try_from(statistics.tokens()).unwrap_or(usize::MAX));
        let pays = saved.saturating_mul(tokens + to_come) / tokens > table_bytes.len();
        match pays && with_table.len() <= room_bytes {
            true => Coded { payload: with_table, table: Some(table), is_tried },
            false => Coded { payload, table: None, is_tried },
        }
    }

    /// The frame is placed at offset `at` of its segment.
    pub(super) fn place(&mut self, batch: &Batch<'_>, coded: &mut Coded, at: u32) {
        self.since += batch.items.iter().map(|item| item.tokens.len() as u64).sum::<u64>();
        match coded.table.take() {
            Some(table) => self.set(table, at),
            None if coded.is_tried => self.retry = 2 * self.since.max(RETRY_TOKENS / 2),
            None => {}
        }
    }

    fn set(&mut self, table: TokenTable, at: u32) {
        *self = Self { table, at: Some(at), since: 0, retry: 0 };
    }
}
