//! Receipts of forgetting: what was asked, what is done, what is pending. They hold ids and times, and nothing that was taught.
//!
//! One file each, `receipts/00000001.receipt`, written anew as a whole after each step, little-endian: magic `MYNAHRCT`,
//! version (2 bytes, 1), 2 zero bytes, length of the content (4), the content, CRC32C of all before it (4). The content is
//! postcard: the fields of [`Receipt`] in their order, sets of ids as lists of first and last.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc::{CRC_32_ISCSI, Crc};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::example::ExampleId;
use crate::files::{Files, Mode, read_up_to, replace_file, retry};
use crate::learn::Lineage;

pub(super) const RECEIPTS_NAME: &str = "receipts";
const MAGIC: [u8; 8] = *b"MYNAHRCT";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
/// Longest receipt that is read: a million ids that do not even touch are 20 MB.
const MOST_BYTES: u64 = 64 << 20;

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Forget {
    /// These records.
    Ids(Vec<ExampleId>),
    /// All records of a task.
    Task(String),
    /// All records of interactions before this time, in seconds since 1970 (UTC).
    Before(u64),
}

/// To which state the learned adapters went back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BackTo {
    /// None of what is forgotten had been learned by the newest revision: it is still the newest.
    Unchanged,
    /// The newest revision that never saw any of it.
    Revision(u64),
    /// There was no such revision: nothing is learned any more.
    NothingLearned,
}

/// What was asked to be forgotten, and how far that is. Each step has the time at which it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its number, from 1.
    pub number: u64,
    /// What was asked.
    pub request: Forget,
    /// When, in seconds since 1970 (UTC), as all times here.
    pub requested_unix_s: u64,
    /// The records that this meant.
    pub records: Lineage,
    /// Revisions that had learned from one of them, or cannot be shown not to have, by number.
    pub dropped_revisions: Vec<u64>,
    /// The state that is the newest without those.
    pub back_to: BackTo,
    /// Records that the newest revision had learned, that the state without it has not, and that stay: they wait for the
    /// next run.
    pub queued: Lineage,
    /// The records are in no list any more.
    pub removed_unix_s: Option<u64>,
    /// Their bytes are in no file any more.
    pub erased_unix_s: Option<u64>,
    /// The dropped revisions are deleted.
    pub rolled_back_unix_s: Option<u64>,
    /// What was queued is learned again, or nothing was.
    pub relearned_unix_s: Option<u64>,
}

/// A step of forgetting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Remove,
    Erase,
    RollBack,
}

impl Receipt {
    /// Whether nothing of what was to be forgotten is in the store any more.
    pub fn is_forgotten(&self) -> bool {
        self.next_step().is_none()
    }

    /// Whether nothing is pending, the relearning included.
    pub fn is_complete(&self) -> bool {
        self.is_forgotten() && self.relearned_unix_s.is_some()
    }

    pub(super) fn next_step(&self) -> Option<Step> {
        let steps = [
            (self.removed_unix_s, Step::Remove),
            (self.erased_unix_s, Step::Erase),
            (self.rolled_back_unix_s, Step::RollBack),
        ];
        steps.into_iter().find(|(done, _)| done.is_none()).map(|(_, step)| step)
    }

    pub(super) fn step_done(&mut self, step: Step, now_unix_s: u64) {
        match step {
            Step::Remove => self.removed_unix_s = Some(now_unix_s),
            Step::Erase => self.erased_unix_s = Some(now_unix_s),
            Step::RollBack => {
                self.rolled_back_unix_s = Some(now_unix_s);
                self.relearned_unix_s = self.queued.is_empty().then_some(now_unix_s);
            }
        }
    }

    fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let content = postcard::to_allocvec(self)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len() + CRC_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&content);
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    fn decode(bytes: &[u8], number: u64) -> Result<Self, ReceiptFault> {
        if bytes.len() < HEADER_BYTES + CRC_BYTES || bytes[..8] != MAGIC {
            return Err(ReceiptFault::Damaged);
        }
        let (content, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        if crc != Crc::<u32>::new(&CRC_32_ISCSI).checksum(content).to_le_bytes() {
            return Err(ReceiptFault::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(ReceiptFault::Newer { found: version });
        }
        let (receipt, rest): (Self, _) =
            postcard::take_from_bytes(&content[HEADER_BYTES..]).map_err(|_| ReceiptFault::Damaged)?;
        let is_sound =
            rest.is_empty() && receipt.number == number && receipt.records.is_sound() && receipt.queued.is_sound();
        if is_sound { Ok(receipt) } else { Err(ReceiptFault::Damaged) }
    }
}

/// Why a receipt cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptFault {
    /// Its checksum or its content is wrong.
    #[error("the receipt is damaged; whether its forgetting was finished is not known, forget it again")]
    Damaged,
    /// A newer version of this library wrote it.
    #[error("the receipt has format {found}, this version reads up to {FORMAT_VERSION}; use the version that made it")]
    Newer {
        /// The format version it carries.
        found: u16,
    },
}

/// A receipt that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidReceipt {
    /// The name of its file.
    pub name: String,
    /// Why.
    pub reason: ReceiptFault,
}

/// The receipts of a store.
#[derive(Debug)]
pub(super) struct Receipts {
    files: Arc<dyn Files>,
    /// The store's folder.
    store: PathBuf,
    /// Ascending by number.
    receipts: Vec<Receipt>,
    invalid: Vec<InvalidReceipt>,
    next_number: u64,
}

impl Receipts {
    /// Reads those of the store in `store`.
    pub(super) fn open(files: Arc<dyn Files>, store: &Path) -> Result<Self, StoreError> {
        let mut found =
            Self { files, store: store.to_owned(), receipts: Vec::new(), invalid: Vec::new(), next_number: 1 };
        let folder = found.folder();
        let names = match retry(|| found.files.list(&folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(StoreError::io(&folder, "list"))?,
        };
        for name in names {
            let Some(number) = name.to_str().and_then(number_in) else { continue };
            found.next_number = found.next_number.max(number.saturating_add(1));
            match found.read(number)? {
                Ok(receipt) => found.receipts.push(receipt),
                Err(reason) => {
                    let name = file_name(number);
                    log::warn!("receipt `{name}`: {reason}");
                    found.invalid.push(InvalidReceipt { name, reason });
                }
            }
        }
        found.receipts.sort_by_key(|receipt| receipt.number);
        Ok(found)
    }

    pub(super) fn list(&self) -> &[Receipt] {
        &self.receipts
    }

    pub(super) fn invalid(&self) -> &[InvalidReceipt] {
        &self.invalid
    }

    /// The number of the next one.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Makes `receipt` durable, a new one or one that has changed.
    pub(super) fn write(&mut self, receipt: Receipt) -> Result<(), StoreError> {
        let folder = self.folder();
        let path = folder.join(file_name(receipt.number));
        let bytes = receipt.encode().map_err(|error| StoreError::io(&path, "write")(io::Error::other(error)))?;
        if self.receipts.is_empty() {
            retry(|| self.files.create_folder(&folder)).map_err(StoreError::io(&folder, "create"))?;
            retry(|| self.files.sync_folder(&self.store)).map_err(StoreError::io(&self.store, "sync"))?;
        }
        replace_file(self.files.as_ref(), &folder, &file_name(receipt.number), &bytes)
            .map_err(StoreError::io(&path, "write"))?;
        self.next_number = self.next_number.max(receipt.number + 1);
        match self.receipts.iter_mut().find(|known| known.number == receipt.number) {
            Some(known) => *known = receipt,
            None => self.receipts.push(receipt),
        }
        Ok(())
    }

    fn read(&self, number: u64) -> Result<Result<Receipt, ReceiptFault>, StoreError> {
        let path = self.folder().join(file_name(number));
        let io = StoreError::io(&path, "read");
        let file = retry(|| self.files.open(&path, Mode::Read)).map_err(&io)?;
        let len_bytes = retry(|| self.files.len_bytes(&file)).map_err(&io)?;
        if len_bytes > MOST_BYTES {
            return Ok(Err(ReceiptFault::Damaged));
        }
        let mut bytes = vec![0; len_bytes as usize];
        let read = read_up_to(self.files.as_ref(), &file, 0, &mut bytes).map_err(&io)?;
        Ok(Receipt::decode(&bytes[..read], number))
    }

    fn folder(&self) -> PathBuf {
        self.store.join(RECEIPTS_NAME)
    }
}

fn file_name(number: u64) -> String {
    format!("{number:08}.receipt")
}

fn number_in(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".receipt")?.parse().ok()?;
    (file_name(number) == name && number > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> Receipt {
        let mut records = Lineage::default();
        [3, 4, 9].into_iter().for_each(|id| records.insert(ExampleId(id)));
        Receipt {
            number: 7,
            request: Forget::Task("mum".to_owned()),
            requested_unix_s: 1_700_000_000,
            queued: records.clone(),
            records,
            dropped_revisions: vec![2, 300],
            back_to: BackTo::Revision(1),
            removed_unix_s: Some(1_700_000_001),
            erased_unix_s: None,
            rolled_back_unix_s: None,
            relearned_unix_s: None,
        }
    }

    #[test]
    fn the_bytes_of_a_receipt_are_these() {
        let bytes = receipt().encode().unwrap();
        assert_eq!(Receipt::decode(&bytes, 7), Ok(receipt()));
        let content = [
            &[
                7, 1, 3, b'm', b'u', b'm', 0x80, 0xE2, 0xCF, 0xAA, 0x06, 2, 3, 4, 9, 9, 2, 2, 0xAC, 2, 1, 1, 2, 3, 4,
                9, 9,
            ][..],
            &[1, 0x81, 0xE2, 0xCF, 0xAA, 0x06, 0, 0, 0],
        ]
        .concat();
        assert_eq!(bytes[..16], *b"MYNAHRCT\x01\0\0\0\x24\0\0\0");
        assert_eq!(bytes[16..bytes.len() - 4], content);
    }

    #[test]
    fn a_changed_byte_is_noticed_and_another_name_too() {
        let bytes = receipt().encode().unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            assert_eq!(Receipt::decode(&changed, 7), Err(ReceiptFault::Damaged));
            assert_eq!(Receipt::decode(&bytes[..at], 7), Err(ReceiptFault::Damaged));
        }
        assert_eq!(Receipt::decode(&bytes, 8), Err(ReceiptFault::Damaged));
        let mut newer = bytes[..bytes.len() - 4].to_vec();
        newer[8] = 2;
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&newer);
        newer.extend_from_slice(&crc.to_le_bytes());
        assert_eq!(Receipt::decode(&newer, 7), Err(ReceiptFault::Newer { found: 2 }));
    }

    #[test]
    fn steps_come_in_order_and_relearning_last() {
        let mut receipt = Receipt { removed_unix_s: None, ..receipt() };
        for step in [Step::Remove, Step::Erase, Step::RollBack] {
            assert!(!receipt.is_forgotten());
            assert_eq!(receipt.next_step(), Some(step));
            receipt.step_done(step, 5);
        }
        assert!(receipt.is_forgotten() && !receipt.is_complete());
        receipt.queued = Lineage::default();
        receipt.step_done(Step::RollBack, 6);
        assert!(receipt.is_complete());
    }
}
