//! From the bytes of a frame to its records.

use alloc::vec::Vec;

use zeroize::Zeroizing;

use super::batch::{Head, Heads, TableRef};
use super::codec::TokenTable;
use super::record::Record;
use super::score::Score;
use super::seal::{Place, Sealer};
use super::segment::{FRAME_CODED, FRAME_HEADER_BYTES, FRAME_PLAIN, FRAME_SEALED, FrameHeader, SegmentSeal};
use crate::example::check_task;

/// A sound frame as it is on the medium.
#[derive(Debug)]
pub(crate) struct StoredFrame {
    pub(crate) header: FrameHeader,
    pub(crate) payload: Vec<u8>,
}

impl StoredFrame {
    /// The frame at the start of `bytes`, which are kept; `None` if no whole frame stands there.
    pub(crate) fn parse(mut bytes: Vec<u8>) -> Option<Self> {
        let (header, payload) = FrameHeader::parse(&bytes)?;
        let payload_bytes = payload.len();
        bytes.drain(..FRAME_HEADER_BYTES);
        bytes.truncate(payload_bytes);
        Some(Self { header, payload: bytes })
    }

    /// As [`open_payload`].
    pub(crate) fn open(&self, seal: Option<SegmentSeal>, sequence: u64, sealer: Option<&Sealer>) -> Option<Opened<'_>> {
        open_payload(&self.header, &self.payload, seal, sequence, sealer)
    }
}

/// The payload of a frame as it was before it was sealed.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    frame: FrameHeader,
    payload: Payload<'a>,
}

#[derive(Debug)]
enum Payload<'a> {
    AsStored(&'a [u8]),
    Unsealed(Zeroizing<Vec<u8>>),
}

/// Opens the payload of `frame`; `None` if the seal does not hold or there is no key for it.
pub(crate) fn open_payload<'a>(
    frame: &FrameHeader,
    payload: &'a [u8],
    seal: Option<SegmentSeal>,
    sequence: u64,
    sealer: Option<&Sealer>,
) -> Option<Opened<'a>> {
    let payload = match frame.codec & FRAME_SEALED {
        0 => Payload::AsStored(payload),
        _ => {
            let place = Place { seal: seal?, sequence, first_id: frame.first_id, span: frame.records };
            Payload::Unsealed(sealer?.open(&place, payload)?)
        }
    };
    Some(Opened { frame: *frame, payload })
}

impl Opened<'_> {
    /// What the frame says of its records, and how many of them it does not say anything of that can be used.
    pub(crate) fn heads(&self) -> Option<(Heads<'_>, u64)> {
        let FrameHeader { first_id, records, .. } = self.frame;
        match self.frame.codec & !FRAME_SEALED {
            FRAME_PLAIN => Some(plain_heads(self.payload(), first_id, records)),
            FRAME_CODED => Heads::parse(self.payload(), first_id, records).map(|heads| (heads, 0)),
            _ => None,
        }
    }

    /// The token table that the frame brings.
    pub(crate) fn table(&self) -> Option<TokenTable> {
        match self.heads()?.0.table {
            TableRef::Inline(bytes) => TokenTable::parse(bytes),
            _ => None,
        }
    }

    /// The records of a plain frame.
    pub(crate) fn plain_records(&self) -> Option<impl Iterator<Item = Record<'_>>> {
        (self.frame.codec == FRAME_PLAIN).then(|| records_of(self.payload(), self.frame.records))
    }

    fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::AsStored(bytes) => bytes,
            Payload::Unsealed(bytes) => bytes,
        }
    }
}

/// The records in the payload of a plain frame, as far as they can be read.
fn records_of(payload: &[u8], count: u16) -> impl Iterator<Item = Record<'_>> {
    let mut rest = payload;
    (0..count).map_while(move |_| {
        let (record, after) = Record::take(rest)?;
        rest = after;
        Some(record)
    })
}

/// Plain records in the form of a coded frame's.
fn plain_heads(payload: &[u8], first_id: u64, count: u16) -> (Heads<'_>, u64) {
    let mut heads =
        Heads { table: TableRef::Untrained, tasks: Vec::new(), examples: Vec::new(), removed: Vec::new(), coded: &[] };
    let mut used = 0;
    for (id, record) in (first_id..).zip(records_of(payload, count)) {
        match record {
            Record::Example { key, time_unix_s, task, prompt_len, token_count, .. } => {
                if check_task(task).is_err() || token_count > crate::example::MAX_EXAMPLE_TOKENS as u32 {
                    continue;
                }
                heads.tasks.push(task);
                heads.examples.push(Head {
                    id,
                    task: heads.tasks.len() - 1,
                    time_unix_s,
                    prompt_len,
                    tokens: token_count,
                    tag: key as u16,
                    score: Score::NONE,
                    replays: 0,
                });
            }
            Record::Tombstone { id } => heads.removed.push(id),
        }
        used += 1;
    }
    (heads, u64::from(count) - used)
}
