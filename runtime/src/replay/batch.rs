//! The payload of a coded frame: a batch of records by column, then all their tokens in one coded stream.
//!
//! Numbers and strings are as postcard writes them. A column of numbers is its least value, a width in bits, and what
//! each value exceeds the least by, packed low bits first: equal values cost nothing.

use alloc::vec::Vec;

use super::codec::TokenTable;
use super::score::Score;
use crate::example::{MAX_EXAMPLE_TOKENS, check_task};

/// Version 0 of the layout, as the variant of a postcard enum.
const VERSION: u8 = 0;
/// Most tokens of one frame, so that reading a record stays cheap whatever it stands in. One record may be this long.
pub(crate) const FRAME_TOKENS: usize = 8192;
/// Most records of one frame.
pub(crate) const FRAME_RECORDS: usize = 1024;

/// Ids are not those that follow the frame's first one without gaps.
const SPARSE: u8 = 1;
const SEVERAL_TASKS: u8 = 2;
const SCORES: u8 = 4;
const REPLAYS: u8 = 8;
const REMOVALS: u8 = 16;
const KNOWN_FLAGS: u8 = SPARSE | SEVERAL_TASKS | SCORES | REPLAYS | REMOVALS;

/// An example as it goes into a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) id: u64,
    pub(crate) task: &'a str,
    pub(crate) time_unix_s: u64,
    pub(crate) prompt_len: u32,
    pub(crate) tokens: &'a [u32],
    /// Low bits of the content key.
    pub(crate) tag: u16,
    pub(crate) score: Score,
    pub(crate) replays: u32,
}

/// Which token table a frame is coded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableRef<'a> {
    /// None: the prior.
    Untrained,
    /// The frame brings it.
    Inline(&'a [u8]),
    /// The frame that starts this many words before this one brought it.
    Back(u32),
}

/// A frame to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) first_id: u64,
    /// Ids the frame answers for.
    pub(crate) span: u16,
    /// Ascending by id.
    pub(crate) items: &'a [Item<'a>],
    /// Ids of removed records, ascending.
    pub(crate) removed: &'a [u64],
}

impl Batch<'_> {
    /// The payload, with the tokens coded by `table`.
    pub(crate) fn encode(&self, reference: TableRef<'_>, table: &TokenTable) -> Vec<u8> {
        let mut out = Writer(Vec::new());
        self.encode_heads(&mut out, reference);
        let coded = table.encode(self.items.iter().map(|item| item.tokens));
        out.0.extend_from_slice(&coded);
        out.0
    }

    fn encode_heads(&self, out: &mut Writer, reference: TableRef<'_>) {
        let Self { items, removed, .. } = self;
        let tasks = self.tasks();
        let is_sparse = items.len() + removed.len() != usize::from(self.span)
            || items.iter().zip(self.first_id..).any(|(item, id)| item.id != id);
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(is_sparse, SPARSE)
            | flag(tasks.len() > 1, SEVERAL_TASKS)
            | flag(items.iter().any(|item| item.score != Score::NONE), SCORES)
            | flag(items.iter().any(|item| item.replays > 0), REPLAYS)
            | flag(!removed.is_empty(), REMOVALS);
        out.0.extend([VERSION, flags]);
        out.table(reference);
        if !removed.is_empty() {
            out.ascending(removed);
        }
        if is_sparse {
            out.varint(items.len() as u64);
        }
        if items.is_empty() {
            return;
        }
        if is_sparse {
            let before = core::iter::once(self.first_id.wrapping_sub(1)).chain(items.iter().map(|item| item.id));
            out.column(items.iter().zip(before).map(|(item, before)| item.id.wrapping_sub(before.wrapping_add(1))));
        }
        if tasks.len() > 1 {
            out.varint(tasks.len() as u64);
        }
        for task in &tasks {
            out.string(task);
        }
        if tasks.len() > 1 {
            let place = |item: &Item<'_>| tasks.iter().position(|&task| task == item.task).unwrap_or(0) as u64;
            out.column(items.iter().map(place));
        }
        out.column(items.iter().map(|item| item.time_unix_s));
        out.column(items.iter().map(|item| u64::from(item.prompt_len)));
        out.column(items.iter().map(|item| item.tokens.len() as u64 - u64::from(item.prompt_len)));
        for item in *items {
            out.0.extend(item.tag.to_le_bytes());
        }
        if flags & SCORES != 0 {
            out.column(items.iter().map(|item| u64::from(item.score.to_stored())));
        }
        if flags & REPLAYS != 0 {
            out.column(items.iter().map(|item| u64::from(item.replays)));
        }
    }

    /// The task tags, in the order they first appear.
    fn tasks(&self) -> Vec<&str> {
        let mut tasks = Vec::new();
        for item in self.items {
            // Most neighbours share a task.
            if tasks.last() != Some(&item.task) && !tasks.contains(&item.task) {
                tasks.push(item.task);
            }
        }
        tasks
    }
}

/// What a frame says of one example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) id: u64,
    /// Position in [`Heads::tasks`].
    pub(crate) task: usize,
    pub(crate) time_unix_s: u64,
    pub(crate) prompt_len: u32,
    pub(crate) tokens: u32,
    pub(crate) tag: u16,
    pub(crate) score: Score,
    pub(crate) replays: u32,
}

/// A frame as it is read: all but the tokens, which stay coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heads<'a> {
    pub(crate) table: TableRef<'a>,
    pub(crate) tasks: Vec<&'a str>,
    pub(crate) examples: Vec<Head>,
    pub(crate) removed: Vec<u64>,
    pub(crate) coded: &'a [u8],
}

impl<'a> Heads<'a> {
    /// Reads the payload of a frame that answers for `span` ids from `first_id` on; `None` if no writer made it.
    pub(crate) fn parse(payload: &'a [u8], first_id: u64, span: u16) -> Option<Self> {
        let mut read = Reader(payload);
        let flags = match *read.take(2)? {
            [VERSION, flags] if flags & !KNOWN_FLAGS == 0 => flags,
            _ => return None,
        };
        let has = |flag: u8| flags & flag != 0;
        let table = read.table()?;
        let removed = if has(REMOVALS) { read.ascending()? } else { Vec::new() };
        let count = match has(SPARSE) {
            true => usize::try_from(read.varint()?).ok()?,
            false => usize::from(span).checked_sub(removed.len())?,
        };
        let mut heads = Self { table, tasks: Vec::new(), examples: Vec::new(), removed, coded: &[] };
        // Each example takes two bytes of payload at least, so nothing is allocated for what is not there.
        if count > usize::from(span) || 2 * count > payload.len() {
            return None;
        }
        if count > 0 {
            heads.read_columns(&mut read, flags, first_id, count)?;
        }
        let end_id = first_id.checked_add(u64::from(span))?;
        let is_within = heads.examples.last().is_none_or(|last| last.id < end_id);
        heads.coded = read.0;
        is_within.then_some(heads)
    }

    fn read_columns(&mut self, read: &mut Reader<'a>, flags: u8, first_id: u64, count: usize) -> Option<()> {
        let has = |flag: u8| flags & flag != 0;
        let gaps = if has(SPARSE) { read.column(count)? } else { Column::ZEROS };
        let task_count = if has(SEVERAL_TASKS) { usize::try_from(read.varint()?).ok()? } else { 1 };
        if task_count > count {
            return None;
        }
        for _ in 0..task_count {
            self.tasks.push(read.string().filter(|task| check_task(task).is_ok())?);
        }
        let tasks = if has(SEVERAL_TASKS) { read.column(count)? } else { Column::ZEROS };
        let times = read.column(count)?;
        let prompts = read.column(count)?;
        let answers = read.column(count)?;
        let tags = read.take(2 * count)?;
        let scores = if has(SCORES) { read.column(count)? } else { Column::ZEROS };
        let replays = if has(REPLAYS) { read.column(count)? } else { Column::ZEROS };
        let mut id = first_id;
        self.examples.reserve_exact(count);
        for at in 0..count {
            id = id.checked_add(gaps.get(at)?)?;
            let (prompt_len, answer_len) = (prompts.get(at)?, answers.get(at)?);
            // What `Example` demands: a prompt, one answer token and the end token.
            let tokens = prompt_len.checked_add(answer_len).filter(|&tokens| tokens <= MAX_EXAMPLE_TOKENS as u64)?;
            let task = usize::try_from(tasks.get(at)?).ok().filter(|&task| task < task_count)?;
            if prompt_len < 1 || answer_len < 2 {
                return None;
            }
            self.examples.push(Head {
                id,
                task,
                time_unix_s: times.get(at)?,
                prompt_len: prompt_len as u32,
                tokens: tokens as u32,
                tag: u16::from_le_bytes([tags[2 * at], tags[2 * at + 1]]),
                score: Score::from_stored(u16::try_from(scores.get(at)?).ok()?),
                replays: u32::try_from(replays.get(at)?).ok()?,
            });
            id = id.checked_add(1)?;
        }
        // A bound on what decoding them may cost.
        let tokens: usize = self.examples.iter().map(|head| head.tokens as usize).sum();
        (tokens <= FRAME_TOKENS.max(MAX_EXAMPLE_TOKENS)).then_some(())
    }

    /// Decodes the tokens of the examples in order and hands them to `sink` until it says to stop.
    pub(crate) fn decode(&self, table: &TokenTable, mut sink: impl FnMut(&Head, &[u32]) -> bool) -> Option<()> {
        let lengths = self.examples.iter().map(|head| head.tokens);
        let mut heads = self.examples.iter();
        table.decode(self.coded, lengths, |tokens| heads.next().is_some_and(|head| sink(head, tokens)))
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7F {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn string(&mut self, text: &str) {
        self.varint(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn table(&mut self, reference: TableRef<'_>) {
        match reference {
            TableRef::Untrained => self.varint(0),
            TableRef::Inline(bytes) => {
                self.varint(1);
                self.varint(bytes.len() as u64);
                self.0.extend_from_slice(bytes);
            }
            TableRef::Back(words) => self.varint(1 + u64::from(words)),
        }
    }

    /// How many, the first, then by how much each exceeds the one before, less one.
    fn ascending(&mut self, values: &[u64]) {
        self.varint(values.len() as u64);
        let mut least = 0;
        for &value in values {
            self.varint(value - least);
            least = value + 1;
        }
    }

    fn column(&mut self, values: impl Iterator<Item = u64> + Clone) {
        let least = values.clone().min().unwrap_or(0);
        let greatest = values.clone().max().unwrap_or(0);
        let width = u64::BITS - (greatest - least).leading_zeros();
        self.varint(least);
        self.0.push(width as u8);
        let mut pending = 0_u128;
        let mut pending_bits = 0;
        for value in values {
            pending |= u128::from(value - least) << pending_bits;
            pending_bits += width;
            while pending_bits >= 8 {
                self.0.push(pending as u8);
                pending >>= 8;
                pending_bits -= 8;
            }
        }
        if pending_bits > 0 {
            self.0.push(pending as u8);
        }
    }
}

/// A column as it is read.
#[derive(Clone, Copy)]
struct Column<'a> {
    least: u64,
    width: usize,
    packed: &'a [u8],
}

impl Column<'_> {
    const ZEROS: Self = Self { least: 0, width: 0, packed: &[] };

    /// The value at `at`; `None` if it does not fit 64 bits.
    fn get(&self, at: usize) -> Option<u64> {
        let from_bit = at * self.width;
        let mut bits = 0_u128;
        let bytes = from_bit / 8..(from_bit + self.width).div_ceil(8);
        for (nth, &byte) in self.packed[bytes].iter().enumerate() {
            bits |= u128::from(byte) << (8 * nth);
        }
        let excess = (bits >> (from_bit % 8)) & ((1 << self.width) - 1);
        self.least.checked_add(excess as u64)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let (value, rest) = postcard::take_from_bytes(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    fn string(&mut self) -> Option<&'a str> {
        let (text, rest) = postcard::take_from_bytes(self.0).ok()?;
        self.0 = rest;
        Some(text)
    }

    fn table(&mut self) -> Option<TableRef<'a>> {
        match self.varint()? {
            0 => Some(TableRef::Untrained),
            1 => {
                let len = usize::try_from(self.varint()?).ok()?;
                self.take(len).map(TableRef::Inline)
            }
            words => u32::try_from(words - 1).ok().map(TableRef::Back),
        }
    }

    fn ascending(&mut self) -> Option<Vec<u64>> {
        let count = usize::try_from(self.varint()?).ok()?;
        // Each takes a byte at least.
        if count > self.0.len() {
            return None;
        }
        let mut values = Vec::with_capacity(count);
        let mut least = 0_u64;
        for _ in 0..count {
            let value = least.checked_add(self.varint()?)?;
            values.push(value);
            least = value.checked_add(1)?;
        }
        Some(values)
    }

    fn column(&mut self, count: usize) -> Option<Column<'a>> {
        let least = self.varint()?;
        let width = usize::from(*self.take(1)?.first()?);
        if width > 64 {
            return None;
        }
        let packed = self.take((count * width).div_ceil(8))?;
        Some(Column { least, width, packed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::mix;
    use alloc::string::String;
    use alloc::vec;

    struct Drawn {
        tokens: Vec<Vec<u32>>,
        tasks: Vec<String>,
        ids: Vec<u64>,
        noise: u64,
    }

    impl Drawn {
        fn new(seed: u64, count: usize, task_count: u64, is_sparse: bool) -> Self {
            let noise = |nth: u64| mix(seed ^ mix(nth));
            let mut id = 40;
            let mut ids = Vec::new();
            for nth in 0..count as u64 {
                id += if is_sparse { noise(nth) % 7 } else { 0 };
                ids.push(id);
                id += 1;
            }
            let length = |nth: u64| 3 + noise(nth + 100) % 30;
            let tokens = (0..count as u64).map(|nth| (0..length(nth)).map(|at| noise(nth ^ at << 9) as u32).collect());
            let tasks = (0..count as u64).map(|nth| format!("task{}", noise(nth + 50) % task_count));
            Self { tokens: tokens.collect(), tasks: tasks.collect(), ids, noise: noise(9) }
        }

        fn items(&self) -> Vec<Item<'_>> {
            let item = |at: usize| Item {
                id: self.ids[at],
                task: &self.tasks[at],
                time_unix_s: 1_700_000_000 + (mix(self.noise ^ at as u64) >> 40),
                prompt_len: 1 + (at as u32 + self.noise as u32) % 2.min(self.tokens[at].len() as u32 - 2),
                tokens: &self.tokens[at],
                tag: mix(at as u64) as u16,
                score: if at % 3 == 1 { Score::new(at as f32 / 4.0) } else { Score::NONE },
                replays: at as u32 % 4,
            };
            (0..self.ids.len()).map(item).collect()
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (seed, count, tasks, is_sparse) in
            [(1, 16, 1, false), (2, 1, 1, false), (3, 40, 5, true), (4, 0, 1, true), (5, 9, 2, false)]
        {
            let drawn = Drawn::new(seed, count, tasks, is_sparse);
            let items = drawn.items();
            let removed = [3, 4, 39];
            for (removed, table) in [(&removed[..], TableRef::Back(7)), (&[], TableRef::Inline(b"table"))] {
                let span = match is_sparse {
                    true => 1000,
                    false => (count + removed.len()) as u16,
                };
                let batch = Batch { first_id: 40, span, items: &items, removed };
                let payload = batch.encode(table, &TokenTable::untrained());
                let heads = Heads::parse(&payload, 40, span).unwrap();
                assert_eq!((heads.table, &heads.removed[..]), (table, removed));
                assert_eq!(heads.examples.len(), count);
                let mut nth = 0;
                let all = heads.decode(&TokenTable::untrained(), |head, tokens| {
                    let item = &items[nth];
                    assert_eq!((head.id, head.time_unix_s, head.tag), (item.id, item.time_unix_s, item.tag));
                    assert_eq!((head.score, head.replays), (item.score, item.replays));
                    assert_eq!((heads.tasks[head.task], head.prompt_len), (item.task, item.prompt_len));
                    assert_eq!(tokens, item.tokens);
                    nth += 1;
                    true
                });
                assert_eq!((all, nth), (Some(()), count));
            }
        }
    }

    #[test]
    fn sixteen_records_of_one_task_and_time_take_74_bytes_of_heads() {
        let drawn = Drawn::new(6, 16, 1, false);
        let items: Vec<Item<'_>> = drawn
            .items()
            .into_iter()
            .map(|item| Item { task: "persona", time_unix_s: 1_700_000_000, score: Score::NONE, replays: 0, ..item })
            .collect();
        let batch = Batch { first_id: 40, span: 16, items: &items, removed: &[] };
        let mut out = Writer(Vec::new());
        batch.encode_heads(&mut out, TableRef::Back(100));
        assert!(out.0.len() <= 74, "{} bytes", out.0.len());
    }

    #[test]
    fn a_column_takes_any_numbers() {
        let columns: [&[u64]; 5] =
            [&[0, u64::MAX], &[5; 9], &[1 << 40, 3, 1 << 40], &[u64::MAX; 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9]];
        for values in columns {
            let mut out = Writer(vec![]);
            out.column(values.iter().copied());
            let mut read = Reader(&out.0);
            let column = read.column(values.len()).unwrap();
            assert!(read.0.is_empty());
            let got: Vec<u64> = (0..values.len()).map(|at| column.get(at).unwrap()).collect();
            assert_eq!(got, values);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_allocate_what_is_not_there() {
        let drawn = Drawn::new(7, 20, 3, true);
        let batch = Batch { first_id: 40, span: 500, items: &drawn.items(), removed: &[7] };
        let payload = batch.encode(TableRef::Inline(b"some table"), &TokenTable::untrained());
        // Fewer under Miri, which is a thousand times slower.
        const SEEDS: u64 = if cfg!(miri) { 5 } else { 200_000 };
        for seed in 0..SEEDS {
            let mut mangled = payload.clone();
            for nth in 0..1 + mix(seed) % 3 {
                let noise = mix(seed ^ mix(nth + 1));
                // Heads stand at the start.
                let at = (noise >> 20) as usize % mangled.len().min(150);
                mangled[at] = noise as u8;
            }
            mangled.truncate(mix(seed ^ 5) as usize % (2 * mangled.len()) + 1);
            if let Some(heads) = Heads::parse(&mangled, 40, 500) {
                assert!(heads.examples.len() <= mangled.len());
                let _ = heads.decode(&TokenTable::untrained(), |_, tokens| tokens.len() <= MAX_EXAMPLE_TOKENS);
            }
        }
    }
}
