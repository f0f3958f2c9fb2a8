//! The layout of a segment: its header, its frames, and the arithmetic around them. Pure functions over bytes.

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

/// With an operating system a store is read at start, so 16 KiB of tables pay; a microcontroller gets 1 KiB.
#[cfg(feature = "std")]
type CrcTable = Table<16>;
#[cfg(not(feature = "std"))]
type CrcTable = Table<1>;

/// CRC32C (Castagnoli), as in iSCSI.
pub(crate) static CRC32C: Crc<u32, CrcTable> = Crc::<u32, CrcTable>::new(&CRC_32_ISCSI);

pub(crate) const MAGIC: [u8; 8] = *b"MYNAHLOG";
/// Version of the segments that are written.
pub(crate) const FORMAT_VERSION: u16 = 2;
/// Header of a version 1 segment, which holds plain frames only and is not written any more.
pub(crate) const V1_HEADER_BYTES: usize = 96;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 128;
pub(crate) const FRAME_HEADER_BYTES: usize = 24;
/// First byte of every frame. Not 0xFF, so that a frame whose first byte was programmed never looks erased.
pub(crate) const FRAME_MARK: u8 = 0xA5;
/// Frame codec 0: the payload is the records as they are.
pub(crate) const FRAME_PLAIN: u8 = 0;
/// Frame codec 1: the payload is a batch, see `batch.rs`.
pub(crate) const FRAME_CODED: u8 = 1;
/// Added to a codec whose payload is encrypted.
pub(crate) const FRAME_SEALED: u8 = 0x80;
/// No torn word may be mistaken for a frame boundary, so frames are padded to at least this many bytes.
pub(crate) const MIN_WORD_BYTES: usize = 8;
pub(crate) const MAX_WORD_BYTES: usize = 32;

/// Header flags: the segment was written by a compaction.
const FLAG_MOVED: u16 = 1;
/// Its frames are sealed.
const FLAG_SEALED: u16 = 2;

/// Sizes that follow from the medium and the configuration, checked once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Frames start at multiples of this.
    pub(crate) word_bytes: u32,
    pub(crate) segment_bytes: u32,
    pub(crate) segments: u32,
}

impl Geometry {
    pub(crate) fn pad(&self, bytes: u32) -> u32 {
        bytes.next_multiple_of(self.word_bytes)
    }

    /// Where the frames of a segment end: its last word holds the erase count of the place.
    pub(crate) fn frames_end(&self) -> u32 {
        self.segment_bytes - self.word_bytes
    }

    /// Largest payload of one frame.
    pub(crate) fn payload_limit_bytes(&self) -> u32 {
        self.frames_end() - (SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES) as u32
    }

    /// Bytes a frame takes on the medium, header and padding included.
    pub(crate) fn frame_bytes(&self, payload_bytes: u32) -> u32 {
        self.pad(FRAME_HEADER_BYTES as u32 + payload_bytes)
    }

    pub(crate) fn base(&self, slot: u32) -> u32 {
        slot * self.segment_bytes
    }

    pub(crate) fn slot_of(&self, offset: u32) -> u32 {
        offset / self.segment_bytes
    }
}

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) version: u16,
    pub(crate) word_bytes: u32,
    pub(crate) segment_bytes: u32,
    pub(crate) sequence: u64,
    /// The first id this segment answers for: where the log before it ends.
    pub(crate) end_id: u64,
    /// First id of its first frame. Above `end_id` if nothing is left of the ids between.
    pub(crate) first_id: u64,
    /// CRC of the last frame before this segment, 0 if there is none.
    pub(crate) chain: u32,
    pub(crate) tokenizer_digest: [u8; 32],
    /// CRC of its first frame: that frame and no other follows, even if all else in the header was the same in an earlier
    /// segment that was lost. 0 in a copy of nothing.
    pub(crate) first_crc: u32,
    pub(crate) moved: Option<Moved>,
    pub(crate) seal: Option<SegmentSeal>,
}

/// What a segment that a compaction wrote says besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved {
    /// The id after the last one it answers for.
    pub(crate) until_id: u64,
    /// What the segment behind it has as its chain.
    pub(crate) chain: u32,
    /// CRC of its own last frame, which tells whether it was finished.
    pub(crate) last_crc: u32,
}

/// How the frames of a segment are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentSeal {
    pub(crate) key_id: u32,
    pub(crate) salt: [u8; 16],
}

/// What stands where a segment header may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderState {
    Erased,
    Broken,
    /// A whole header of a format we do not know, or with flags we do not know.
    Newer(u16),
    Valid(SegmentHeader),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let flags = self.moved.map_or(0, |_| FLAG_MOVED) | self.seal.map_or(0, |_| FLAG_SEALED);
        let moved = self.moved.unwrap_or(Moved { until_id: 0, chain: 0, last_crc: 0 });
        let seal = self.seal.unwrap_or(SegmentSeal { key_id: 0, salt: [0; 16] });
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.segment_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.end_id.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_id.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.chain.to_le_bytes());
        bytes[44..46].copy_from_slice(&(self.word_bytes as u16).to_le_bytes());
        bytes[48..80].copy_from_slice(&self.tokenizer_digest);
        bytes[80..88].copy_from_slice(&moved.until_id.to_le_bytes());
        bytes[88..92].copy_from_slice(&seal.key_id.to_le_bytes());
        let crc = CRC32C.checksum(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
        bytes[96..112].copy_from_slice(&seal.salt);
        bytes[112..116].copy_from_slice(&moved.chain.to_le_bytes());
        bytes[116..120].copy_from_slice(&moved.last_crc.to_le_bytes());
        bytes[120..124].copy_from_slice(&self.first_crc.to_le_bytes());
        let crc = CRC32C.checksum(&bytes[92..124]);
        bytes[124..128].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Bytes of [`SegmentHeader::encode`] that are on the medium; frames follow.
    pub(crate) fn len_bytes(&self) -> usize {
        match self.version {
            1 => V1_HEADER_BYTES,
            _ => SEGMENT_HEADER_BYTES,
        }
    }

    /// What the first frame links to: the checksum of the first 92 bytes. It covers the sequence, so the frames of an
    /// earlier start in the same place link to another number.
    pub(crate) fn crc(&self) -> u32 {
        u32_at(&self.encode(), 92)
    }

    pub(crate) fn parse(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> HeaderState {
        if is_erased(&bytes[..V1_HEADER_BYTES]) {
            return HeaderState::Erased;
        }
        if bytes[..8] != MAGIC || u32_at(bytes, 92) != CRC32C.checksum(&bytes[..92]) {
            return HeaderState::Broken;
        }
        let version = u16_at(bytes, 8);
        let flags = u16_at(bytes, 10);
        let known_flags = if version == 1 { 0 } else { FLAG_MOVED | FLAG_SEALED };
        if !(1..=FORMAT_VERSION).contains(&version) || flags & !known_flags != 0 {
            return HeaderState::Newer(version);
        }
        if version > 1 && u32_at(bytes, 124) != CRC32C.checksum(&bytes[92..124]) {
            return HeaderState::Broken;
        }
        let mut tokenizer_digest = [0; 32];
        tokenizer_digest.copy_from_slice(&bytes[48..80]);
        let mut salt = [0; 16];
        salt.copy_from_slice(&bytes[96..112]);
        let header = Self {
            version,
            word_bytes: u32::from(u16_at(bytes, 44)),
            segment_bytes: u32_at(bytes, 12),
            sequence: u64_at(bytes, 16),
            end_id: u64_at(bytes, 24),
            first_id: u64_at(bytes, 32),
            chain: u32_at(bytes, 40),
            tokenizer_digest,
            first_crc: if version == 1 { 0 } else { u32_at(bytes, 120) },
            moved: (flags & FLAG_MOVED != 0).then(|| Moved {
                until_id: u64_at(bytes, 80),
                chain: u32_at(bytes, 112),
                last_crc: u32_at(bytes, 116),
            }),
            seal: (flags & FLAG_SEALED != 0).then(|| SegmentSeal { key_id: u32_at(bytes, 88), salt }),
        };
        match header.is_possible() {
            true => HeaderState::Valid(header),
            false => HeaderState::Broken,
        }
    }

    /// No writer makes others; the scan relies on it.
    fn is_possible(&self) -> bool {
        let until_id = self.moved.map_or(u64::MAX, |moved| moved.until_id);
        self.sequence <= u64::MAX / 2
            && 1 <= self.end_id
            && self.end_id <= self.first_id
            && self.first_id <= until_id
            && self.end_id < until_id
    }

    /// Whether `frame` may be the first of this segment.
    pub(crate) fn begins_with(&self, frame: &FrameHeader) -> bool {
        self.version == 1 || self.first_crc == frame.crc
    }

    /// Where its frames end if all of it is filled.
    pub(crate) fn frames_end(&self, geometry: &Geometry) -> usize {
        match self.version {
            1 => geometry.segment_bytes as usize,
            _ => geometry.frames_end() as usize,
        }
    }
}

/// The erase count of a place, in the first 8 bytes of its last word: mark and count, then their CRC.
pub(crate) fn wear_word(erases: u32) -> [u8; 8] {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&(WEAR_MARK << 24 | erases.min(WEAR_LIMIT)).to_le_bytes());
    let crc = CRC32C.checksum(&word[..4]);
    word[4..].copy_from_slice(&crc.to_le_bytes());
    word
}

/// The count in `word`, if it is a [`wear_word`].
pub(crate) fn parse_wear_word(word: &[u8]) -> Option<u32> {
    let count = u32_at(word, 0);
    let is_sound = count >> 24 == WEAR_MARK && u32_at(word, 4) == CRC32C.checksum(&word[..4]);
    is_sound.then_some(count & WEAR_LIMIT)
}

const WEAR_MARK: u32 = 0x57;
const WEAR_LIMIT: u32 = 0x00FF_FFFF;

/// What a frame says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) codec: u8,
    pub(crate) records: u16,
    pub(crate) payload_bytes: u32,
    pub(crate) crc: u32,
    pub(crate) previous_crc: u32,
    pub(crate) first_id: u64,
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0] = FRAME_MARK;
        bytes[1] = self.codec;
        bytes[2..4].copy_from_slice(&self.records.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.previous_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_id.to_le_bytes());
        bytes
    }

    /// Starts the checksum of this frame: the header without its `crc` field. The payload follows.
    pub(crate) fn start_crc(&self) -> Digest<'static, u32, CrcTable> {
        let bytes = self.encode();
        let mut digest = CRC32C.digest();
        digest.update(&bytes[..8]);
        digest.update(&bytes[12..]);
        digest
    }

    /// The header at the start of `bytes`, unchecked.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..FRAME_HEADER_BYTES)?;
        Some(Self {
            codec: header[1],
            records: u16_at(header, 2),
            payload_bytes: u32_at(header, 4),
            crc: u32_at(header, 8),
            previous_crc: u32_at(header, 12),
            first_id: u64_at(header, 16),
        })
    }

    /// The frame at the start of `bytes`, which end where its segment ends, and its payload; `None` if no whole frame
    /// with a right checksum stands there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let frame = Self::read(bytes).filter(|_| bytes[0] == FRAME_MARK)?;
        let end = FRAME_HEADER_BYTES.checked_add(usize::try_from(frame.payload_bytes).ok()?)?;
        let payload = bytes.get(FRAME_HEADER_BYTES..end)?;
        let mut digest = frame.start_crc();
        digest.update(payload);
        // A frame without records would not move the sequence on; none is ever written.
        let sound = digest.finalize() == frame.crc && frame.records > 0;
        (sound && frame.end_id().is_some()).then_some((frame, payload))
    }

    /// The id after the last record of this frame.
    pub(crate) fn end_id(&self) -> Option<u64> {
        self.first_id.checked_add(u64::from(self.records))
    }
}

/// The highest id after any whole frame in `bytes`, wherever it starts at a word: what a hole or a broken header hides.
pub(crate) fn hidden_end_id(bytes: &[u8], geometry: &Geometry) -> Option<u64> {
    // Frames do not overlap, so an honest log needs one pass; crafted bytes must not cost a pass per word.
    let mut budget_bytes = bytes.len().saturating_mul(8);
    let mut highest = None;
    for at in (0..bytes.len()).step_by(geometry.word_bytes as usize) {
        let rest = &bytes[at..];
        if rest[0] != FRAME_MARK || rest.len() < FRAME_HEADER_BYTES {
            continue;
        }
        let cost = (u32_at(rest, 4) as usize).min(rest.len());
        let Some(left) = budget_bytes.checked_sub(cost) else {
            break;
        };
        budget_bytes = left;
        highest = highest.max(FrameHeader::parse(rest).and_then(|(frame, _)| frame.end_id()));
    }
    highest
}

pub(crate) fn is_erased(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0xFF)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        version: FORMAT_VERSION,
        word_bytes: 8,
        segment_bytes: 4096,
        sequence: 3,
        end_id: 15,
        first_id: 17,
        chain: 0x0102_0304,
        tokenizer_digest: [7; 32],
        first_crc: 10,
        moved: Some(Moved { until_id: 30, chain: 5, last_crc: 6 }),
        seal: Some(SegmentSeal { key_id: 8, salt: [9; 16] }),
    };

    #[test]
    fn the_checksum_is_castagnoli() {
        // The check value of CRC-32/ISCSI (RFC 3720, appendix B.4, gives others of the same code).
        assert_eq!(CRC32C.checksum(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn one_flipped_bit_of_a_segment_header_is_put_right_and_two_are_seen() {
        use crate::replay::repair::repair_header;
        // Fewer under Miri, which is a thousand times slower.
        const STEP: usize = if cfg!(miri) { 97 } else { 1 };
        let bytes = HEADER.encode();
        assert_eq!(SegmentHeader::parse(&bytes), HeaderState::Valid(HEADER));
        for bit in (0..bytes.len() * 8).step_by(STEP) {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::parse(&flipped), HeaderState::Broken);
            assert_eq!(repair_header(&flipped), Some(HEADER));
            let second = (bit * 31 + 7) % 1024;
            if second != bit {
                flipped[second / 8] ^= 1 << (second % 8);
                assert_eq!(repair_header(&flipped), None);
            }
        }
        assert_eq!(SegmentHeader::parse(&[0xFF; 128]), HeaderState::Erased);
    }

    #[test]
    fn a_newer_header_is_told_apart_from_a_broken_one() {
        let mut bytes = HEADER.encode();
        bytes[8] = 3;
        let crc = CRC32C.checksum(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::parse(&bytes), HeaderState::Newer(3));
    }

    #[test]
    fn a_version_1_header_ends_at_96_bytes() {
        let old = SegmentHeader { version: 1, first_crc: 0, moved: None, seal: None, ..HEADER };
        let mut bytes = old.encode();
        bytes[96..].fill(0xA5);
        assert_eq!((SegmentHeader::parse(&bytes), old.len_bytes()), (HeaderState::Valid(old), 96));
    }

    #[test]
    fn an_erase_count_is_read_back_or_not_at_all() {
        for erases in [0, 1, 0x00FF_FFFF] {
            let word = wear_word(erases);
            assert_eq!(parse_wear_word(&word), Some(erases));
            for bit in 0..64 {
                let mut flipped = word;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse_wear_word(&flipped), None);
            }
        }
        assert_eq!(parse_wear_word(&[0xFF; 8]), None);
    }

    #[test]
    fn a_frame_round_trips_and_every_flipped_bit_is_seen() {
        let mut frame =
            FrameHeader { codec: FRAME_PLAIN, records: 2, payload_bytes: 5, crc: 0, previous_crc: 9, first_id: 40 };
        let mut digest = frame.start_crc();
        digest.update(b"hello");
        frame.crc = digest.finalize();
        let mut bytes = [0xFF; 32];
        bytes[..24].copy_from_slice(&frame.encode());
        bytes[24..29].copy_from_slice(b"hello");
        let (parsed, payload) = FrameHeader::parse(&bytes).unwrap();
        assert_eq!((parsed, payload), (frame, &b"hello"[..]));
        assert_eq!(parsed.end_id(), Some(42));
        for bit in 0..29 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::parse(&flipped), None, "bit {bit}");
        }
    }
}
