//! Flash in RAM that enforces the contract, counts wear and cuts power.
//!
//! [`SimFlash`] models two media. As built it is raw NOR: calls take effect in order, and a cut tears only the call it
//! hits. [`SimFlash::with_cache`] puts a page cache before it: each page touched since the last sync comes out of a
//! cut in any state it passed through, whatever the others do; that is what a file on a disk may do.
//!
//! It is part of the library, not of its tests, so that an app can put its own log of interactions under power cuts.

use alloc::vec;
use alloc::vec::Vec;

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

use super::Medium;
use crate::example::mix;

/// Why simulated flash refused a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The power is off: it was cut, and [`SimFlash::power_on`] was not called yet.
    #[error("the power is off")]
    PowerCut,
    /// A word was programmed twice without an erase between.
    #[error("the word at offset {offset} is already programmed")]
    ProgrammedTwice {
        /// Byte offset of the word.
        offset: u32,
    },
    /// The call does not fit the medium.
    #[error("the call does not fit the medium: {0}")]
    Misuse(NorFlashErrorKind),
    /// A sync failed because [`SimFlash::fail_next_sync`] asked for it.
    #[error("the sync failed")]
    SyncFailed,
}

impl NorFlashError for SimError {
    fn kind(&self) -> NorFlashErrorKind {
        match self {
            Self::Misuse(kind) => *kind,
            _ => NorFlashErrorKind::Other,
        }
    }
}

/// What a cut leaves of the call it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// Bytes take effect in order; the byte at the cut is half done.
    InOrder,
    /// Each byte of the call is done, half done or untouched, as drawn from the seed.
    Scattered(u64),
}

/// What was done to one erase block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockWear {
    /// Read calls that touched it.
    pub reads: u64,
    /// Words programmed in it.
    pub programmed_words: u64,
    /// Times it was erased.
    pub erases: u64,
}

/// Simulated NOR flash with words of `WORD` bytes and erase blocks of `BLOCK` bytes.
#[derive(Debug, Clone)]
pub struct SimFlash<const WORD: usize, const BLOCK: usize> {
    bytes: Vec<u8>,
    programmed: Vec<bool>,
    wear: Vec<BlockWear>,
    syncs: u64,
    worked_bytes: u64,
    cut: Option<(u64, Tear)>,
    powered: bool,
    fail_sync: bool,
    cache: Option<Cache>,
}

/// A page cache: what is durable, and what was done since.
#[derive(Debug, Clone)]
struct Cache {
    page_bytes: usize,
    seed: u64,
    sync_lies: bool,
    durable: Vec<u8>,
    since: Vec<(usize, Vec<u8>)>,
}

impl<const WORD: usize, const BLOCK: usize> SimFlash<WORD, BLOCK> {
    /// Erased flash of `blocks` erase blocks.
    pub fn new(blocks: usize) -> Self {
        Self::from_image(vec![0xFF; blocks * BLOCK])
    }

    /// Flash that holds `image`.
    ///
    /// # Panics
    /// If the image is not a whole number of blocks.
    pub fn from_image(image: Vec<u8>) -> Self {
        assert!(
            image.len().is_multiple_of(BLOCK),
            "an image of {} bytes is not a whole number of blocks of {BLOCK}",
            image.len()
        );
        let mut flash = Self {
            programmed: Vec::new(),
            wear: vec![BlockWear::default(); image.len() / BLOCK],
            bytes: image,
            syncs: 0,
            worked_bytes: 0,
            cut: None,
            powered: true,
            fail_sync: false,
            cache: None,
        };
        flash.settle();
        flash
    }

    /// Puts a cache of `page_bytes` pages before the flash. At a cut each page touched since the last sync is left
    /// in a state drawn from `seed`. With `sync_lies` a sync reports success and flushes nothing.
    pub fn with_cache(mut self, page_bytes: usize, seed: u64, sync_lies: bool) -> Self {
        self.cache = Some(Cache { page_bytes, seed, sync_lies, durable: self.bytes.clone(), since: Vec::new() });
        self
    }

    /// Cuts the power when `work_bytes` more bytes have been programmed or erased.
    pub fn cut_after(&mut self, work_bytes: u64, tear: Tear) {
        self.cut = Some((work_bytes, tear));
    }

    /// Cuts the power now, between two calls.
    pub fn cut_now(&mut self) {
        self.powered = false;
        self.lose_cache();
    }

    /// Lets the next sync fail. What was done before it survives or not, as at a cut.
    pub fn fail_next_sync(&mut self) {
        self.fail_sync = true;
    }

    /// Ends a power cut. What was programmed or torn stays; no cut is pending.
    pub fn power_on(&mut self) {
        self.powered = true;
        self.cut = None;
        self.settle();
    }

    /// Whether the power is on.
    pub fn is_powered(&self) -> bool {
        self.powered
    }

    /// Bytes programmed and erased so far: the unit of [`SimFlash::cut_after`].
    pub fn worked_bytes(&self) -> u64 {
        self.worked_bytes
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// What was done to each erase block.
    pub fn wear(&self) -> &[BlockWear] {
        &self.wear
    }

    /// The bytes as they are read.
    pub fn image(&self) -> &[u8] {
        &self.bytes
    }

    /// Flips one bit, as decay does.
    ///
    /// # Panics
    /// If `bit` is past the end.
    pub fn flip_bit(&mut self, bit: usize) {
        self.bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(cache) = &mut self.cache {
            cache.durable[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// A word counts as programmed when it does not read as erased.
    fn settle(&mut self) {
        let word_is_programmed = |word: &[u8]| word.iter().any(|&byte| byte != 0xFF);
        self.programmed = self.bytes.chunks(WORD).map(word_is_programmed).collect();
    }

    /// How many of `len` bytes may still be worked on, and how to tear the call if that is not all of them.
    fn budget(&mut self, len: usize) -> Result<Option<(usize, Tear)>, SimError> {
        if !self.powered {
            return Err(SimError::PowerCut);
        }
        let Some((left, tear)) = &mut self.cut else {
            self.worked_bytes += len as u64;
            return Ok(None);
        };
        let done = (*left).min(len as u64);
        *left -= done;
        let torn = ((done as usize) < len).then_some((done as usize, *tear));
        self.worked_bytes += done;
        Ok(torn)
    }

    /// Changes `target.len()` bytes at `from`, of which a cut may leave a part.
    fn change(&mut self, from: usize, target: &[u8], torn: Option<(usize, Tear)>) -> Result<(), SimError> {
        let mut result = target.to_vec();
        if let Some((done, tear)) = torn {
            let old = &self.bytes[from..from + target.len()];
            for (at, byte) in result.iter_mut().enumerate() {
                *byte = torn_byte(old[at], *byte, at, done, tear);
            }
        }
        if let Some(cache) = &mut self.cache {
            cache.since.push((from, result.clone()));
        }
        self.bytes[from..from + result.len()].copy_from_slice(&result);
        if torn.is_some() {
            self.cut_now();
            return Err(SimError::PowerCut);
        }
        Ok(())
    }

    /// Leaves each page that was touched since the last sync in one of the states it passed through.
    fn lose_cache(&mut self) {
        let Some(cache) = &mut self.cache else {
            return;
        };
        for page in 0..cache.durable.len().div_ceil(cache.page_bytes) {
            let start = page * cache.page_bytes;
            let end = (start + cache.page_bytes).min(cache.durable.len());
            let touching: Vec<&(usize, Vec<u8>)> =
                cache.since.iter().filter(|(from, bytes)| *from < end && from + bytes.len() > start).collect();
            cache.seed = mix(cache.seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let kept = (cache.seed % (touching.len() as u64 + 1)) as usize;
            for (from, bytes) in &touching[..kept] {
                let low = start.max(*from);
                let high = end.min(from + bytes.len());
                cache.durable[low..high].copy_from_slice(&bytes[low - from..high - from]);
            }
        }
        cache.since.clear();
        self.bytes.copy_from_slice(&cache.durable);
    }
}

/// One byte of a call that was cut when `done` bytes were worked on.
fn torn_byte(old: u8, new: u8, at: usize, done: usize, tear: Tear) -> u8 {
    let half = |noise: u64| {
        let mask = noise as u8;
        (old & mask) | (new & !mask)
    };
    match tear {
        Tear::InOrder if at < done => new,
        Tear::InOrder if at == done => half(mix(at as u64 + 1)),
        Tear::InOrder => old,
        Tear::Scattered(seed) => {
            let noise = mix(seed ^ mix(at as u64 + 1));
            match noise >> 62 {
                0 => old,
                1 => new,
                2 => half(noise),
                // Most of a scattered call is done or not by where the cut came.
                _ if at < done => new,
                _ => old,
            }
        }
    }
}

impl<const WORD: usize, const BLOCK: usize> ErrorType for SimFlash<WORD, BLOCK> {
    type Error = SimError;
}

impl<const WORD: usize, const BLOCK: usize> ReadNorFlash for SimFlash<WORD, BLOCK> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), SimError> {
        if !self.powered {
            return Err(SimError::PowerCut);
        }
        check_read(self, offset, bytes.len()).map_err(SimError::Misuse)?;
        let from = offset as usize;
        bytes.copy_from_slice(&self.bytes[from..from + bytes.len()]);
        for block in from / BLOCK..(from + bytes.len()).div_ceil(BLOCK) {
            self.wear[block].reads += 1;
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const WORD: usize, const BLOCK: usize> NorFlash for SimFlash<WORD, BLOCK> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = BLOCK;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), SimError> {
        check_erase(self, from, to).map_err(SimError::Misuse)?;
        let torn = self.budget((to - from) as usize)?;
        for block in from as usize / BLOCK..to as usize / BLOCK {
            self.wear[block].erases += 1;
        }
        let words = from as usize / WORD..to as usize / WORD;
        self.programmed[words].fill(false);
        self.change(from as usize, &vec![0xFF; (to - from) as usize], torn)
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), SimError> {
        check_write(self, offset, bytes.len()).map_err(SimError::Misuse)?;
        let words = offset as usize / WORD..(offset as usize + bytes.len()) / WORD;
        if let Some(word) = words.clone().find(|&word| self.programmed[word]) {
            return Err(SimError::ProgrammedTwice { offset: (word * WORD) as u32 });
        }
        let torn = self.budget(bytes.len())?;
        for word in words.clone() {
            self.wear[word * WORD / BLOCK].programmed_words += 1;
        }
        self.programmed[words].fill(true);
        self.change(offset as usize, bytes, torn)
    }
}

impl<const WORD: usize, const BLOCK: usize> Medium for SimFlash<WORD, BLOCK> {
    fn sync(&mut self) -> Result<(), SimError> {
        if !self.powered {
            return Err(SimError::PowerCut);
        }
        if core::mem::take(&mut self.fail_sync) {
            self.lose_cache();
            return Err(SimError::SyncFailed);
        }
        self.syncs += 1;
        if let Some(cache) = &mut self.cache
            && !cache.sync_lies
        {
            cache.durable.copy_from_slice(&self.bytes);
            cache.since.clear();
        }
        Ok(())
    }

    fn is_write_through(&self) -> bool {
        self.cache.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::check_medium;

    type Flash = SimFlash<8, 256>;

    #[test]
    fn simulated_flash_meets_the_contract_at_each_word_size() {
        check_medium(&mut SimFlash::<1, 64>::new(3)).unwrap();
        check_medium(&mut SimFlash::<8, 256>::new(1)).unwrap();
        check_medium(&mut SimFlash::<16, 256>::new(2)).unwrap();
        check_medium(&mut SimFlash::<32, 1024>::new(5).with_cache(512, 1, false)).unwrap();
    }

    #[test]
    fn a_second_program_of_a_word_is_refused_until_it_is_erased() {
        let mut flash = Flash::new(1);
        flash.write(8, &[0xFF; 8]).unwrap();
        let again = flash.write(0, &[0; 16]);
        assert_eq!(again, Err(SimError::ProgrammedTwice { offset: 8 }));
        flash.erase(0, 256).unwrap();
        flash.write(0, &[0; 16]).unwrap();
        assert_eq!(flash.wear()[0].programmed_words, 3);
        assert_eq!(flash.wear()[0].erases, 1);
    }

    #[test]
    fn a_cut_tears_the_word_and_stops_everything() {
        let mut flash = Flash::new(1);
        flash.cut_after(11, Tear::InOrder);
        assert_eq!(flash.write(0, &[0; 16]), Err(SimError::PowerCut));
        assert_eq!(flash.read(0, &mut [0; 1]), Err(SimError::PowerCut));
        assert_eq!(flash.sync(), Err(SimError::PowerCut));
        flash.power_on();
        assert_eq!(flash.image()[..11], [0; 11]);
        assert_eq!(flash.image()[12..], [0xFF; 256 - 12]);
        assert!(flash.write(8, &[0; 8]).is_err(), "the torn word is used");
        flash.write(16, &[0; 8]).unwrap();
    }

    #[test]
    fn a_cache_keeps_what_was_synced_and_any_part_of_the_rest() {
        let mut first_page_lost_second_kept = false;
        for seed in 0..64 {
            let mut flash = Flash::new(4).with_cache(512, seed, false);
            flash.write(0, &[1; 8]).unwrap();
            flash.sync().unwrap();
            flash.write(8, &[2; 8]).unwrap();
            flash.write(512, &[3; 8]).unwrap();
            flash.cut_now();
            flash.power_on();
            assert_eq!(flash.image()[..8], [1; 8]);
            first_page_lost_second_kept |= flash.image()[8] == 0xFF && flash.image()[512] == 3;
        }
        assert!(first_page_lost_second_kept);
    }
}
