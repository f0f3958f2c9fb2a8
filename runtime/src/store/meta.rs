//! `store.meta`: what a store belongs to.

use std::path::Path;

use crc::{CRC_32_ISCSI, Crc};

use super::error::StoreError;
use crate::checkpoint::Identity;
use crate::files::{Files, Mode, read_up_to, retry};

pub(super) const META_NAME: &str = "store.meta";
const META_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"MYNAHSTO";
const FORMAT_VERSION: u16 = 1;

/// What `store.meta` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) identity: Identity,
    pub(super) created_unix_s: u64,
}

impl Meta {
    pub(super) fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created_unix_s.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.identity.base_digest);
        bytes[56..88].copy_from_slice(&self.identity.tokenizer_digest);
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn read(files: &dyn Files, folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(META_NAME);
        if !path.is_file() {
            return Err(StoreError::NotAStore {
                path: folder.to_path_buf(),
                reason: match folder.is_dir() {
                    true => "it holds no `store.meta`; name the folder of a store, or learn into it first",
                    false => "there is no such folder; name the folder of a store, or learn into it first",
                },
            });
        }
        let io = |source| StoreError::Io { path: path.clone(), doing: "read", source };
        let file = retry(|| files.open(&path, Mode::Read)).map_err(io)?;
        // One byte more, to see a file that is too long.
        let mut bytes = [0; META_BYTES + 1];
        let read = read_up_to(files, &file, 0, &mut bytes).map_err(io)?;
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes[..124]);
        if read != META_BYTES || bytes[..8] != MAGIC || bytes[124..128] != crc.to_le_bytes() {
            return Err(StoreError::Damaged { path });
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(StoreError::NewerFormat {
                path: folder.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let mut created = [0; 8];
        created.copy_from_slice(&bytes[16..24]);
        let digest = |at: usize| {
            let mut digest = [0; 32];
            digest.copy_from_slice(&bytes[at..at + 32]);
            digest
        };
        Ok(Self {
            created_unix_s: u64::from_le_bytes(created),
            identity: Identity { base_digest: digest(24), tokenizer_digest: digest(56) },
        })
    }

    pub(super) fn check(&self, path: &Path, identity: &Identity) -> Result<(), StoreError> {
        let path = path.to_path_buf();
        let (expected, found) = (identity, &self.identity);
        if expected.base_digest != found.base_digest {
            return Err(StoreError::OtherBase { path, expected: expected.base_digest, found: found.base_digest });
        }
        if expected.tokenizer_digest != found.tokenizer_digest {
            return Err(StoreError::OtherTokenizer {
                path,
                expected: expected.tokenizer_digest,
                found: found.tokenizer_digest,
            });
        }
        Ok(())
    }
}
