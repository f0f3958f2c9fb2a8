//! Examples on their way to the medium, in a buffer of fixed size.

use zeroize::Zeroize;

use super::record::{Record, RecordError, encode_example};
use super::score::Score;
use crate::example::{ContentKey, Example};

/// Bytes of examples that can be staged.
pub(super) const STAGED_BYTES: usize = 4096;
/// Before each record: its score, and its id above the first staged one.
const LEAD_BYTES: usize = 4;

/// The staged examples, oldest first. Wiped when they leave.
#[derive(Default)]
pub(super) struct Staged {
    bytes: heapless::Vec<u8, STAGED_BYTES>,
    /// Ids given out, those of removed ones included.
    given: u16,
}

impl core::fmt::Debug for Staged {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Staged({} bytes)", self.bytes.len())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Where a staged record stands.
struct Found<'a> {
    /// From its lead to its end.
    range: core::ops::Range<usize>,
    nth: u16,
    score: Score,
    record: Record<'a>,
}

impl Staged {
    pub(super) fn given(&self) -> u64 {
        u64::from(self.given)
    }

    /// Takes an example in; `None` if there is no room for it.
    pub(super) fn push(&mut self, example: &Example, score: Score) -> Option<()> {
        let before = self.bytes.len();
        let lead = [score.to_stored().to_le_bytes(), self.given.to_le_bytes()];
        let pushed = self
            .bytes
            .extend_from_slice(lead.as_flattened())
            .and_then(|()| encode_example(example, &mut |part| self.bytes.extend_from_slice(part)));
        let given = self.given.checked_add(1);
        let (Ok(()), Some(given)) = (pushed, given) else {
            self.bytes[before..].zeroize();
            self.bytes.truncate(before);
            return None;
        };
        self.given = given;
        Some(())
    }

    /// The examples, with their ids if the first staged one has `first_id`.
    pub(super) fn examples(&self, first_id: u64) -> impl Iterator<Item = (u64, Score, Result<Example, RecordError>)> {
        self.records().map(move |found| (first_id + u64::from(found.nth), found.score, found.record.to_example()))
    }

    pub(super) fn get(&self, nth: u64) -> Option<Result<Example, RecordError>> {
        self.records().find(|found| u64::from(found.nth) == nth).map(|found| found.record.to_example())
    }

    /// The position of the first example with this content.
    pub(super) fn with_key(&self, key: ContentKey) -> Option<u64> {
        let has_key = |record: &Record<'_>| matches!(record, Record::Example { key: stored, .. } if *stored == key.0);
        self.records().find(|found| has_key(&found.record)).map(|found| u64::from(found.nth))
    }

    /// Wipes one example; its id stays given out. Says whether it was there.
    pub(super) fn remove(&mut self, nth: u64) -> bool {
        let Some(range) = self.records().find(|found| u64::from(found.nth) == nth).map(|found| found.range) else {
            return false;
        };
        let left = self.bytes.len() - range.len();
        self.bytes.copy_within(range.end.., range.start);
        self.bytes[left..].zeroize();
        self.bytes.truncate(left);
        true
    }

    pub(super) fn clear(&mut self) {
        self.bytes.as_mut_slice().zeroize();
        self.bytes.clear();
        self.given = 0;
    }

    fn records(&self) -> impl Iterator<Item = Found<'_>> {
        let mut at = 0;
        core::iter::from_fn(move || {
            let (lead, rest) = self.bytes.get(at..)?.split_first_chunk::<LEAD_BYTES>()?;
            let (record, after) = Record::take(rest)?;
            let range = at..self.bytes.len() - after.len();
            at = range.end;
            let score = Score::from_stored(u16::from_le_bytes([lead[0], lead[1]]));
            Some(Found { range, nth: u16::from_le_bytes([lead[2], lead[3]]), score, record })
        })
    }
}
