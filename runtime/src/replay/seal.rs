//! Sealed frames: XChaCha20-Poly1305 over the payload, after it was compressed.
//!
//! A nonce is the 16-byte salt of the segment and an 8-byte number that the frame carries. Whoever opens the log brings
//! fresh entropy: the salt of the segments it starts, and the number its first frame gets. So two frames share a nonce only
//! if two openings drew the same 64 bits, also after a lying sync, when ids, sequences and places repeat.

use alloc::vec::Vec;
use core::fmt;

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::segment::{FORMAT_VERSION, SegmentSeal};

/// What sealing adds to a payload: the frame's number before it, the tag behind it.
pub(crate) const SEAL_BYTES: usize = NUMBER_BYTES + TAG_BYTES;
const NUMBER_BYTES: usize = 8;
const TAG_BYTES: usize = 16;

/// A key for sealed logs, and entropy for this opening. The key is never stored; both are wiped when dropped.
#[derive(Clone)]
pub struct Seal {
    key: Zeroizing<[u8; 32]>,
    entropy: [u8; 24],
}

impl Seal {
    /// `key` is secret and the same at each opening. `entropy` comes from the system's random generator, fresh for each
    /// opening: with entropy that repeats, what is written may be read without the key.
    pub fn new(key: [u8; 32], entropy: [u8; 24]) -> Self {
        Self { key: Zeroizing::new(key), entropy }
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

/// Where a frame stands: what its seal is bound to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) seal: SegmentSeal,
    pub(crate) sequence: u64,
    pub(crate) first_id: u64,
    pub(crate) span: u16,
}

/// Seals and opens payloads.
#[derive(Clone)]
pub(crate) struct Sealer {
    cipher: XChaCha20Poly1305,
    key_id: u32,
    salt: [u8; 16],
    next_number: u64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(key {:08x})", self.key_id)
    }
}

impl Sealer {
    pub(crate) fn new(seal: &Seal) -> Self {
        let cipher = XChaCha20Poly1305::new((&*seal.key).into());
        // What the key makes of nothing, under a nonce that no frame has: frames have drawn ones.
        let named = cipher.encrypt_in_place_detached(&XNonce::default(), b"mynah replay log key", &mut []);
        let key_id = named.map_or(0, |tag| u32::from_le_bytes([tag[0], tag[1], tag[2], tag[3]]));
        let mut salt = [0; 16];
        salt.copy_from_slice(&seal.entropy[..16]);
        let mut number = [0; NUMBER_BYTES];
        number.copy_from_slice(&seal.entropy[16..]);
        Self { cipher, key_id, salt, next_number: u64::from_le_bytes(number) }
    }

    /// Tells keys apart without telling them.
    pub(crate) fn key_id(&self) -> u32 {
        self.key_id
    }

    /// For the header of a segment that is started now.
    pub(crate) fn segment(&self) -> SegmentSeal {
        SegmentSeal { key_id: self.key_id, salt: self.salt }
    }

    /// The sealed `payload`; no two calls use one nonce.
    pub(crate) fn seal(&mut self, place: &Place, payload: &[u8]) -> Vec<u8> {
        let number = self.next_number.to_le_bytes();
        self.next_number = self.next_number.wrapping_add(1);
        let mut sealed = Vec::with_capacity(payload.len() + SEAL_BYTES);
        sealed.extend(number);
        sealed.extend_from_slice(payload);
        let body = &mut sealed[NUMBER_BYTES..];
        let tag = self.cipher.encrypt_in_place_detached(&nonce(place, number), &bound(place), body);
        // A payload is shorter than the 256 GiB that the cipher takes.
        sealed.extend(tag.expect("a segment is below 4 GiB"));
        sealed
    }

    /// The payload in `sealed`; `None` if it is not what was sealed in this place with this key.
    pub(crate) fn open(&self, place: &Place, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (number, body) = sealed.split_first_chunk::<NUMBER_BYTES>()?;
        let (body, tag) = body.split_last_chunk::<TAG_BYTES>()?;
        let mut payload = Zeroizing::new(body.to_vec());
        let opened =
            self.cipher.decrypt_in_place_detached(&nonce(place, *number), &bound(place), &mut payload, tag.into());
        opened.ok().map(|()| payload)
    }
}

fn nonce(place: &Place, number: [u8; NUMBER_BYTES]) -> XNonce {
    let mut nonce = XNonce::default();
    nonce[..16].copy_from_slice(&place.seal.salt);
    nonce[16..].copy_from_slice(&number);
    nonce
}

/// The associated data of a frame.
fn bound(place: &Place) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[2..4].copy_from_slice(&place.span.to_le_bytes());
    bytes[4..8].copy_from_slice(&place.seal.key_id.to_le_bytes());
    bytes[8..16].copy_from_slice(&place.sequence.to_le_bytes());
    bytes[16..].copy_from_slice(&place.first_id.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seal: SegmentSeal) -> Place {
        Place { seal, sequence: 3, first_id: 77, span: 4 }
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_in_its_place_only() {
        let mut sealer = Sealer::new(&Seal::new([7; 32], [1; 24]));
        let here = place(sealer.segment());
        let sealed = sealer.seal(&here, b"a batch");
        assert_eq!(sealed.len(), 7 + SEAL_BYTES);
        assert_eq!(sealer.open(&here, &sealed).as_deref().map(Vec::as_slice), Some(&b"a batch"[..]));
        for other in [
            Place { sequence: 4, ..here },
            Place { first_id: 78, ..here },
            Place { span: 5, ..here },
            Place { seal: SegmentSeal { salt: [0; 16], ..here.seal }, ..here },
        ] {
            assert!(sealer.open(&other, &sealed).is_none(), "{other:?}");
        }
        let stranger = Sealer::new(&Seal::new([8; 32], [1; 24]));
        assert!(stranger.open(&here, &sealed).is_none());
        assert_ne!(stranger.key_id(), sealer.key_id());
        for at in 0..sealed.len() {
            let mut mangled = sealed.clone();
            mangled[at] ^= 0x10;
            assert!(sealer.open(&here, &mangled).is_none(), "byte {at}");
            assert!(sealer.open(&here, &sealed[..at]).is_none());
        }
    }

    #[test]
    fn the_same_payload_is_never_sealed_the_same() {
        let mut sealer = Sealer::new(&Seal::new([7; 32], [1; 24]));
        let here = place(sealer.segment());
        assert_ne!(sealer.seal(&here, b"x"), sealer.seal(&here, b"x"));
        // Another opening with the same key, the same place and the same salt in the header.
        let mut later = Sealer::new(&Seal::new([7; 32], [2; 24]));
        let mut sealer = Sealer::new(&Seal::new([7; 32], [1; 24]));
        assert_ne!(sealer.seal(&here, b"x"), later.seal(&here, b"x"));
    }

    #[test]
    fn the_key_is_not_printed() {
        let seal = Seal::new([0xAB; 32], [0xCD; 24]);
        let said = format!("{seal:?} {:?}", Sealer::new(&seal));
        assert!(!said.contains("ab, ") && !said.contains("171") && !said.contains("205"), "{said}");
    }
}
