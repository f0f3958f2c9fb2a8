//! The live records, in RAM: where each one is, and what can be asked without reading flash.
//!
//! 32 bytes per record, about 24 more for the key lookup, and each task tag once.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use crate::example::{ContentKey, ExampleId};

/// Where a record is and what it counts for: 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) key: u64,
    /// Byte offset of the frame on the medium.
    pub(crate) frame_at: u32,
    /// Byte offset of the record in the frame's payload.
    pub(crate) record_at: u32,
    pub(crate) tokens: u32,
    task: u32,
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

#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Ascending by id.
    entries: Vec<Entry>,
    keys: BTreeSet<(u64, u64)>,
    tasks: Vec<TaskCount>,
    tokens: u64,
}

impl Index {
    /// Adds a record. Its id must be above all ids added before.
    pub(crate) fn insert(&mut self, id: u64, key: ContentKey, task: &str, tokens: u32, frame_at: u32, record_at: u32) {
        debug_assert!(self.entries.last().is_none_or(|last| last.id < id));
        let task = self.task_number(task);
        let count = &mut self.tasks[task as usize];
        count.records += 1;
        count.tokens += u64::from(tokens);
        self.tokens += u64::from(tokens);
        self.keys.insert((key.0, id));
        self.entries.push(Entry { id, key: key.0, frame_at, record_at, tokens, task });
    }

    /// Drops a record; says whether it was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let Ok(at) = self.find(id) else {
            return false;
        };
        let entry = self.entries.remove(at);
        self.keys.remove(&(entry.key, id));
        self.tokens -= u64::from(entry.tokens);
        let count = &mut self.tasks[entry.task as usize];
        count.records -= 1;
        count.tokens -= u64::from(entry.tokens);
        true
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Entry> {
        self.find(id).ok().map(|at| &self.entries[at])
    }

    pub(crate) fn with_key(&self, key: ContentKey) -> Option<ExampleId> {
        let mut range = self.keys.range((key.0, 0)..=(key.0, u64::MAX));
        range.next().map(|&(_, id)| ExampleId(id))
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
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

    fn find(&self, id: u64) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&id, |entry| entry.id)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_32_bytes() {
        assert_eq!(size_of::<Entry>(), 32);
    }

    #[test]
    fn counts_and_keys_follow_inserts_and_removals() {
        let mut index = Index::default();
        index.insert(1, ContentKey(7), "a", 10, 96, 0);
        index.insert(2, ContentKey(7), "b", 20, 96, 50);
        index.insert(5, ContentKey(8), "a", 30, 200, 0);
        assert_eq!(index.with_key(ContentKey(7)), Some(ExampleId(1)));
        assert!(index.remove(1));
        assert!(!index.remove(1));
        assert_eq!(index.with_key(ContentKey(7)), Some(ExampleId(2)));
        assert!(index.remove(2));
        assert_eq!(index.with_key(ContentKey(7)), None);
        assert_eq!(index.tokens(), 30);
        let tasks: Vec<_> = index.tasks().map(|c| (&*c.task, c.records)).collect();
        assert_eq!(tasks, [("a", 1)]);
        assert_eq!(index.task_of(index.get(5).unwrap()), "a");
    }
}
