//! Putting right one flipped bit, which is how flash decays.
//!
//! A CRC is linear: flipping a bit changes the checksum by a number that depends only on how far from the end the bit
//! is. So the difference between the stored and the computed checksum names the bit. CRC32C tells any two frames
//! apart by at least four bits and any two segment headers by six (Koopman, *32-Bit Cyclic Redundancy Codes for
//! Internet Applications*, DSN 2002), so two flipped bits are never taken for one.

use alloc::vec::Vec;

use super::segment::{
    CRC32C, FRAME_HEADER_BYTES, FrameHeader, HeaderState, SEGMENT_HEADER_BYTES, SegmentHeader, V1_HEADER_BYTES,
};

/// CRC32C's polynomial, as the checksum register sees it.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// Where the CRC of a frame stands; it does not cover itself.
const FRAME_CRC: core::ops::Range<usize> = 8..12;
/// Where the length of a frame's payload stands.
const FRAME_LENGTH: core::ops::Range<usize> = 4..8;
/// The checksummed stretches of a segment header, each with its CRC behind it.
const HEADER_PARTS: [core::ops::Range<usize>; 2] = [0..92, 92..124];

/// The bit, counted from the start of `len_bytes` bytes, whose flip changes their checksum by `difference`.
fn flipped_bit(difference: u32, len_bytes: usize) -> Option<usize> {
    let mut effect = 1_u32;
    for from_end in 1..=len_bytes * 8 {
        effect = (effect >> 1) ^ (POLYNOMIAL & (effect & 1).wrapping_neg());
        if effect == difference {
            let byte = len_bytes - from_end.div_ceil(8);
            return Some(byte * 8 + (8 - from_end % 8) % 8);
        }
    }
    None
}

/// A frame at the start of `bytes` with the one flipped bit put right that makes it whole: header, payload.
pub(crate) fn repair_frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = FrameHeader::read(bytes)?;
    let end = FRAME_HEADER_BYTES.checked_add(frame.payload_bytes as usize);
    let repaired = end.and_then(|end| bytes.get(..end)).and_then(|whole| {
        let mut digest = CRC32C.digest();
        digest.update(&whole[..FRAME_CRC.start]);
        digest.update(&whole[FRAME_CRC.end..]);
        let difference = digest.finalize() ^ frame.crc;
        let mut repaired = whole.to_vec();
        if difference.is_power_of_two() {
            // The checksum itself decayed.
            let bit = difference.trailing_zeros() as usize;
            repaired[FRAME_CRC.start + bit / 8] ^= 1 << (bit % 8);
        } else {
            let bit = flipped_bit(difference, whole.len() - FRAME_CRC.len())?;
            let byte = match bit / 8 {
                byte if byte < FRAME_CRC.start => byte,
                byte => byte + FRAME_CRC.len(),
            };
            repaired[byte] ^= 1 << (bit % 8);
        }
        FrameHeader::parse(&repaired).is_some().then_some(repaired)
    });
    repaired.or_else(|| repair_length(bytes))
}

/// A frame whose length decayed: another length makes it whole.
fn repair_length(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut head = bytes.get(..FRAME_HEADER_BYTES)?.to_vec();
    for bit in 0..FRAME_LENGTH.len() * 8 {
        let byte = FRAME_LENGTH.start + bit / 8;
        head[byte] ^= 1 << (bit % 8);
        let end =
            FrameHeader::read(&head).and_then(|frame| FRAME_HEADER_BYTES.checked_add(frame.payload_bytes as usize));
        if let Some(payload) = end.and_then(|end| bytes.get(FRAME_HEADER_BYTES..end)) {
            let mut repaired = head.clone();
            repaired.extend_from_slice(payload);
            if FrameHeader::parse(&repaired).is_some() {
                return Some(repaired);
            }
        }
        head[byte] ^= 1 << (bit % 8);
    }
    None
}

/// The segment header in `bytes` with the one flipped bit put right that makes it sound.
pub(crate) fn repair_header(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Option<SegmentHeader> {
    HEADER_PARTS.into_iter().find_map(|part| {
        let stored = bytes[part.end..].first_chunk().map(|&crc| u32::from_le_bytes(crc))?;
        let difference = CRC32C.checksum(&bytes[part.clone()]) ^ stored;
        let bit = match difference.is_power_of_two() {
            true => part.end * 8 + difference.trailing_zeros() as usize,
            false => part.start * 8 + flipped_bit(difference, part.len())?,
        };
        let mut repaired = *bytes;
        repaired[bit / 8] ^= 1 << (bit % 8);
        match SegmentHeader::parse(&repaired) {
            HeaderState::Valid(header) => Some(header),
            _ => None,
        }
    })
}

/// Whether `bytes` are not quite the header that was put right to `header`.
pub(crate) fn is_repaired(bytes: &[u8; SEGMENT_HEADER_BYTES], header: &SegmentHeader) -> bool {
    let len_bytes = header.len_bytes();
    debug_assert!((V1_HEADER_BYTES..=SEGMENT_HEADER_BYTES).contains(&len_bytes));
    header.encode()[..len_bytes] != bytes[..len_bytes]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let payload: Vec<u8> = (0..300).map(|at| (at * 7) as u8).collect();
        let mut frame = FrameHeader {
            codec: 0,
            records: 2,
            payload_bytes: payload.len() as u32,
            crc: 0,
            previous_crc: 9,
            first_id: 40,
        };
        let mut digest = frame.start_crc();
        digest.update(&payload);
        frame.crc = digest.finalize();
        let mut bytes = frame.encode().to_vec();
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn any_one_flipped_bit_of_a_frame_is_put_right() {
        // Fewer under Miri, which is a thousand times slower.
        const STEP: usize = if cfg!(miri) { 97 } else { 1 };
        let whole = frame();
        let mut stored = whole.clone();
        stored.extend([0xFF; 100]);
        for bit in (0..whole.len() * 8).step_by(STEP) {
            stored[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(repair_frame(&stored).as_ref(), Some(&whole), "bit {bit}");
            stored[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn two_flipped_bits_are_never_taken_for_one() {
        // Fewer under Miri, which is a thousand times slower.
        const STEP: usize = if cfg!(miri) { 60 } else { 1 };
        let whole = frame();
        for first in (0..whole.len() * 8).step_by(11 * STEP) {
            for second in (0..whole.len() * 8).step_by(7 * STEP) {
                // A length that points elsewhere is another frame, not this one with two bits flipped.
                let is_length = |bit: usize| FRAME_LENGTH.contains(&(bit / 8));
                if first == second || is_length(first) || is_length(second) {
                    continue;
                }
                let mut flipped = whole.clone();
                flipped[first / 8] ^= 1 << (first % 8);
                flipped[second / 8] ^= 1 << (second % 8);
                assert_eq!(repair_frame(&flipped), None, "bits {first} and {second}");
            }
        }
    }
}
