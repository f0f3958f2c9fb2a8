//! The live records, in RAM: where each one is, and what can be asked without reading flash.
//!
//! 22 bytes per record in chunks that stay filled to three quarters, so at most 30 in all, and each task tag once. There
//! is no table for the lookup by content: a key is looked for among the tags, two bytes a record that stand side by side,
//! and who looks then reads the few records that have the same tag, which takes longer than to find them: a million tags are
//! looked through in 56 us (two busy cores, EPYC; `cargo test ... time_of_a_search` below), once for each example that is
//! observed, before a sync that takes longer.

use alloc::string::String;
use alloc::vec::Vec;

use super::score::Score;

/// Records per chunk: a removal moves at most that many.
const CHUNK: usize = 256;

/// Where a record is and what it counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    /// Byte offset of the frame on the medium.
    pub(crate) frame_at: u32,
    /// Position among the records of the frame.
    pub(crate) nth: u16,
    pub(crate) tokens: u16,
    pub(crate) tag: u16,
    pub(crate) score: Score,
    task: u32,
}

/// [`Entry`] without what its chunk knows.
#[derive(Debug, Clone, Copy)]
struct Packed {
    /// Above the chunk's first id.
    id_offset: u32,
    frame_at: u32,
    task: u32,
    nth: u16,
    tokens: u16,
    score: Score,
}

#[derive(Debug, Default)]
struct Chunk {
    first_id: u64,
    packed: Vec<Packed>,
    tags: Vec<u16>,
}

/// How much of the log one task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskCount {
    /// The task tag.
    pub task: String,
    /// Live records.
    pub records: u64,
    /// Tokens of those records.
    pub tokens: u64,
}

/// A record to be listed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed<'a> {
    pub(crate) id: u64,
    pub(crate) task: &'a str,
    pub(crate) tokens: u32,
    pub(crate) tag: u16,
    pub(crate) score: Score,
    pub(crate) frame_at: u32,
    pub(crate) nth: u16,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Ascending by id, none empty.
    chunks: Vec<Chunk>,
    len: usize,
    tasks: Vec<TaskCount>,
    tokens: u64,
}

impl Index {
    /// Adds a record. Its id must be above all ids added before.
    pub(crate) fn insert(&mut self, record: Listed<'_>) {
        let Listed { id, tokens, tag, score, frame_at, nth, .. } = record;
        debug_assert!(self.iter().next_back().is_none_or(|last| last.id < id));
        let task = self.task_number(record.task);
        let count = &mut self.tasks[task as usize];
        count.records += 1;
        count.tokens += u64::from(tokens);
        self.tokens += u64::from(tokens);
        let fits = |chunk: &&mut Chunk| chunk.packed.len() < CHUNK && id - chunk.first_id <= u64::from(u32::MAX);
        if self.chunks.last_mut().filter(fits).is_none() {
            let (packed, tags) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
            self.chunks.push(Chunk { first_id: id, packed, tags });
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.tags.push(tag);
            let id_offset = (id - chunk.first_id) as u32;
            // An example has 4,096 tokens at most.
            chunk.packed.push(Packed { id_offset, frame_at, task, nth, tokens: tokens as u16, score });
        }
        self.len += 1;
    }

    /// Drops a record; gives what was known of it.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Entry> {
        let (chunk_at, at) = self.find(id)?;
        let chunk = &mut self.chunks[chunk_at];
        let entry = chunk.entry(at);
        chunk.packed.remove(at);
        chunk.tags.remove(at);
        if chunk.packed.is_empty() {
            self.chunks.remove(chunk_at);
        }
        self.len -= 1;
        self.tokens -= u64::from(entry.tokens);
        let count = &mut self.tasks[entry.task as usize];
        count.records -= 1;
        count.tokens -= u64::from(entry.tokens);
        if self.chunks.len() > 2 && 4 * self.len < 3 * CHUNK * (self.chunks.len() - 1) {
            self.repack();
        }
        Some(entry)
    }

    /// Records that a record has another place now.
    pub(crate) fn relocate(&mut self, id: u64, frame_at: u32, nth: u16) {
        if let Some((chunk, at)) = self.find(id) {
            let packed = &mut self.chunks[chunk].packed[at];
            (packed.frame_at, packed.nth) = (frame_at, nth);
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<Entry> {
        self.find(id).map(|(chunk, at)| self.chunks[chunk].entry(at))
    }

    /// The first record with this tag whose id is `least_id` or above.
    pub(crate) fn with_tag(&self, tag: u16, least_id: u64) -> Option<Entry> {
        let from = self.chunks.partition_point(|chunk| chunk.last_id() < least_id);
        self.chunks[from..].iter().find_map(|chunk| {
            let mut places = (0..chunk.tags.len()).filter(|&at| chunk.tags[at] == tag);
            // One comparison of the whole column first, which the compiler makes wide.
            let has_any = chunk.tags.iter().fold(false, |has, &other| has | (other == tag));
            has_any.then(|| places.find(|&at| chunk.id(at) >= least_id)).flatten().map(|at| chunk.entry(at))
        })
    }

    /// All records, ascending by id.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Entry> {
        self.chunks.iter().flat_map(|chunk| (0..chunk.packed.len()).map(|at| chunk.entry(at)))
    }

    /// The records with ids in `ids`, ascending.
    pub(crate) fn range(&self, ids: core::ops::Range<u64>) -> impl Iterator<Item = Entry> {
        let from = self.chunks.partition_point(|chunk| chunk.last_id() < ids.start);
        let entries = self.chunks[from..].iter().flat_map(|chunk| (0..chunk.packed.len()).map(|at| chunk.entry(at)));
        entries.skip_while(move |entry| entry.id < ids.start).take_while(move |entry| entry.id < ids.end)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn task_of(&self, entry: &Entry) -> &str {
        &self.tasks[entry.task as usize].task
    }

    pub(crate) fn tasks(&self) -> impl Iterator<Item = &TaskCount> {
        self.tasks.iter().filter(|count| count.records > 0)
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// RAM of all records, task tags not counted.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let chunk_bytes =
            |chunk: &Chunk| chunk.packed.capacity() * size_of::<Packed>() + chunk.tags.capacity() * size_of::<u16>();
        self.chunks.iter().map(chunk_bytes).sum::<usize>() + self.chunks.capacity() * size_of::<Chunk>()
    }

    fn find(&self, id: u64) -> Option<(usize, usize)> {
        let chunk_at = self.chunks.partition_point(|chunk| chunk.first_id <= id).checked_sub(1)?;
        let chunk = &self.chunks[chunk_at];
        let offset = u32::try_from(id - chunk.first_id).ok()?;
        let at = chunk.packed.binary_search_by_key(&offset, |packed| packed.id_offset).ok()?;
        Some((chunk_at, at))
    }

    /// Fills the chunks up again, from the front.
    fn repack(&mut self) {
        let sparse = core::mem::take(&mut self.chunks);
        for mut from in sparse {
            let first_id = from.first_id;
            let last_id = from.last_id();
            if let Some(into) = self.chunks.last_mut()
                && last_id - into.first_id <= u64::from(u32::MAX)
            {
                let shift = (first_id - into.first_id) as u32;
                let moved = from.packed.len().min(CHUNK - into.packed.len());
                let shifted = |packed: Packed| Packed { id_offset: packed.id_offset + shift, ..packed };
                into.packed.extend(from.packed.drain(..moved).map(shifted));
                into.tags.extend(from.tags.drain(..moved));
            }
            if let Some(first) = from.packed.first().map(|first| first.id_offset) {
                // No id before the chunk's first one, so that a search ends in the right chunk.
                from.first_id += u64::from(first);
                from.packed.iter_mut().for_each(|packed| packed.id_offset -= first);
                self.chunks.push(from);
            }
        }
        self.chunks.shrink_to(self.chunks.len() * 2);
    }

    fn task_number(&mut self, task: &str) -> u32 {
        let found = self.tasks.iter().position(|count| count.task == task);
        let number = found.unwrap_or_else(|| {
            self.tasks.push(TaskCount { task: String::from(task), records: 0, tokens: 0 });
            self.tasks.len() - 1
        });
        number as u32
    }
}

impl Chunk {
    fn id(&self, at: usize) -> u64 {
        self.first_id + u64::from(self.packed[at].id_offset)
    }

    fn last_id(&self) -> u64 {
        self.packed.last().map_or(self.first_id, |last| self.first_id + u64::from(last.id_offset))
    }

    fn entry(&self, at: usize) -> Entry {
        let Packed { frame_at, task, nth, tokens, score, .. } = self.packed[at];
        Entry { id: self.id(at), frame_at, nth, tokens, tag: self.tags[at], score, task }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::mix;
    use alloc::collections::BTreeMap;

    fn listed(id: u64, tag: u16, task: &str, tokens: u32) -> Listed<'_> {
        Listed { id, task, tokens, tag, score: Score::NONE, frame_at: id as u32, nth: 3 }
    }

    #[test]
    fn counts_and_tags_follow_inserts_and_removals() {
        let mut index = Index::default();
        index.insert(listed(1, 7, "a", 10));
        index.insert(listed(2, 7, "b", 20));
        index.insert(listed(5, 8, "a", 30));
        assert_eq!(index.with_tag(7, 0).map(|entry| entry.id), Some(1));
        assert!(index.remove(1).is_some());
        assert!(index.remove(1).is_none());
        assert_eq!(index.with_tag(7, 0).map(|entry| entry.id), Some(2));
        assert!(index.remove(2).is_some());
        assert_eq!(index.with_tag(7, 0), None);
        assert_eq!(index.tokens(), 30);
        let tasks: Vec<_> = index.tasks().map(|c| (&*c.task, c.records)).collect();
        assert_eq!(tasks, [("a", 1)]);
        assert_eq!(index.task_of(&index.get(5).unwrap()), "a");
    }

    #[test]
    fn a_record_takes_at_most_32_bytes_whatever_is_removed() {
        // Fewer under Miri, which is a thousand times slower.
        const REMOVALS: u64 = if cfg!(miri) { 1_000 } else { 20_000 };
        let mut index = Index::default();
        let mut model = BTreeMap::new();
        for id in 0..3 * REMOVALS {
            index.insert(listed(id, mix(id) as u16, "t", 5));
            model.insert(id, mix(id) as u16);
            // Removal is rare first, then as frequent as insertion, then more so.
            for nth in 0..id / REMOVALS {
                let victim = mix(id ^ mix(nth)) % (id + 1);
                assert_eq!(index.remove(victim).is_some(), model.remove(&victim).is_some());
            }
            if model.len() > 4 * CHUNK {
                assert!(index.bytes() <= 32 * index.len(), "{} bytes, {} records", index.bytes(), index.len());
            }
        }
        assert!(index.iter().map(|entry| (entry.id, entry.tag)).eq(model.iter().map(|(&id, &tag)| (id, tag))));
        assert!(model.iter().all(|(&id, &tag)| index.get(id).is_some_and(|entry| entry.tag == tag)));
        index.relocate(*model.keys().next().unwrap(), 77, 9);
        assert_eq!(index.iter().next().map(|entry| (entry.frame_at, entry.nth)), Some((77, 9)));
        let (&last, &tag) = model.iter().next_back().unwrap();
        assert_eq!(index.with_tag(tag, last).map(|entry| entry.id), Some(last));
        assert_eq!(index.range(last..u64::MAX).count(), 1);
    }

    /// `cargo test --release -p mynah --no-default-features --lib -- --ignored --nocapture time_of`
    #[test]
    #[ignore = "measures, and decides nothing"]
    fn time_of_a_search_among_a_million_tags() {
        extern crate std;
        let mut index = Index::default();
        for id in 0..1_000_000 {
            // No record has tag 0, so all are looked at.
            index.insert(listed(id, 1 + (mix(id) % 0xFFFF) as u16, "t", 5));
        }
        let best = (0..200).map(|_| {
            let start = std::time::Instant::now();
            assert_eq!(core::hint::black_box(&index).with_tag(0, 0), None);
            start.elapsed()
        });
        std::eprintln!("{:?}", best.min().unwrap());
    }

    #[test]
    fn ids_far_apart_are_kept_apart() {
        let mut index = Index::default();
        for id in [1, 1 << 33, 1 << 34, u64::MAX - 1] {
            index.insert(listed(id, 1, "t", 3));
        }
        assert!(index.get(1 << 33).is_some() && index.get(u64::MAX - 1).is_some() && index.get(2).is_none());
        assert!(index.remove(1 << 33).is_some());
        assert_eq!(index.iter().map(|entry| entry.id).collect::<Vec<_>>(), [1, 1 << 34, u64::MAX - 1]);
    }
}
