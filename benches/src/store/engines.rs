//! Stores that acknowledge a batch of records when it is durable: ours, and those that one could have taken.

use std::path::{Path, PathBuf};

use anyhow::Context;
use embassy_futures::block_on;
use embedded_storage::nor_flash::{NorFlash, ReadNorFlash};
use embedded_storage_async::nor_flash as nonblocking;
use mynah::example::Example;
use mynah::replay::ReplayLog;
use mynah::storage::Medium;
use mynah::{FileError, FileFlash};
use sequential_storage::cache::{Cache, Uncached};
use sequential_storage::queue::{QueueConfig, QueueStorage};

use super::coding::leb128;
use super::open_log;

/// The ring of sequential-storage; it looks through all of its pages at each push.
const QUEUE_BYTES: u32 = 4 << 20;

/// A store that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Our replay log.
    Mynah,
    /// SQLite with a write-ahead log, which may lose the last transactions in a power cut.
    SqliteNormal,
    /// SQLite with a write-ahead log that is synced at each commit.
    SqliteFull,
    /// redb, one transaction a batch.
    Redb,
    /// sequential-storage's queue with a barrier after each operation, a batch as one item.
    SequentialStorage,
}

impl Engine {
    /// All of them, ours first.
    pub const ALL: [Self; 5] = [Self::Mynah, Self::SqliteNormal, Self::SqliteFull, Self::Redb, Self::SequentialStorage];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mynah => "mynah replay log",
            Self::SqliteNormal => "SQLite WAL, synchronous NORMAL",
            Self::SqliteFull => "SQLite WAL, synchronous FULL",
            Self::Redb => "redb",
            Self::SequentialStorage => "sequential-storage",
        }
    }

    /// Makes an empty store in a folder of its own.
    ///
    /// # Errors
    /// What the store reports.
    pub fn create(self, folder: &Path) -> anyhow::Result<Box<dyn Store>> {
        let file = folder.join("store");
        Ok(match self {
            Self::Mynah => Box::new(open_log(&file)?),
            Self::SqliteNormal => Box::new(sqlite(&file, "NORMAL")?),
            Self::SqliteFull => Box::new(sqlite(&file, "FULL")?),
            Self::Redb => Box::new(redb::Database::create(&file)?),
            Self::SequentialStorage => Box::new(Queue::create(file)?),
        })
    }
}

/// What is asked of a store.
pub trait Store {
    /// Stores a batch, and returns when it is as durable as the store makes it.
    ///
    /// # Errors
    /// What the store reports.
    fn append(&mut self, batch: &[Example]) -> anyhow::Result<()>;
}

impl Store for ReplayLog<FileFlash> {
    fn append(&mut self, batch: &[Example]) -> anyhow::Result<()> {
        Self::append(self, batch)?;
        Ok(())
    }
}

fn sqlite(file: &Path, synchronous: &str) -> anyhow::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, task TEXT, time INTEGER, ids BLOB)", [])?;
    Ok(connection)
}

impl Store for rusqlite::Connection {
    fn append(&mut self, batch: &[Example]) -> anyhow::Result<()> {
        let transaction = self.transaction()?;
        {
            let mut insert = transaction.prepare("INSERT INTO records (task, time, ids) VALUES (?, ?, ?)")?;
            for example in batch {
                let time = i64::try_from(example.time_unix_s())?;
                insert.execute(rusqlite::params![example.task(), time, leb128(example)])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("records");

impl Store for redb::Database {
    fn append(&mut self, batch: &[Example]) -> anyhow::Result<()> {
        let transaction = self.begin_write()?;
        {
            use redb::ReadableTable;
            let mut table = transaction.open_table(TABLE)?;
            let last = table.last()?.map_or(0, |(id, _)| id.value());
            for (id, example) in (last + 1..).zip(batch) {
                table.insert(id, record(example).as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

/// Time, task and ids of a record, for stores that know only bytes.
fn record(example: &Example) -> Vec<u8> {
    let mut bytes = example.time_unix_s().to_le_bytes().to_vec();
    bytes.push(example.task().len() as u8);
    bytes.extend(example.task().bytes());
    bytes.extend(leb128(example));
    bytes
}

struct Queue {
    queue: QueueStorage<BarrierFlash, Cache<Uncached, Uncached, Uncached>>,
}

impl Queue {
    fn create(file: PathBuf) -> anyhow::Result<Self> {
        let flash = BarrierFlash(FileFlash::open(&file, QUEUE_BYTES)?);
        let config = QueueConfig::try_new(0..QUEUE_BYTES).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(Self { queue: QueueStorage::new(flash, config, Cache::new_uncached()) })
    }
}

impl Store for Queue {
    fn append(&mut self, batch: &[Example]) -> anyhow::Result<()> {
        let item: Vec<u8> = batch.iter().flat_map(record).collect();
        let pushed = block_on(self.queue.push(&item, true));
        pushed.map_err(|error| anyhow::anyhow!("{error:?}")).context("sequential-storage refuses the batch")
    }
}

/// A file as flash that syncs after each operation: on a page cache, sequential-storage needs that to lose nothing.
struct BarrierFlash(FileFlash);

impl nonblocking::ErrorType for BarrierFlash {
    type Error = FileError;
}

impl nonblocking::ReadNorFlash for BarrierFlash {
    const READ_SIZE: usize = FileFlash::READ_SIZE;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), FileError> {
        self.0.read(offset, bytes)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl nonblocking::NorFlash for BarrierFlash {
    const WRITE_SIZE: usize = <FileFlash as NorFlash>::WRITE_SIZE;
    const ERASE_SIZE: usize = <FileFlash as NorFlash>::ERASE_SIZE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), FileError> {
        self.0.erase(from, to)?;
        self.0.sync()
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FileError> {
        self.0.write(offset, bytes)?;
        self.0.sync()
    }
}
