//! The conformance test for media: what can be checked without cutting power.

use alloc::vec;
use alloc::vec::Vec;

use super::Medium;

/// What [`check_medium`] found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediumFault<E: core::error::Error + 'static> {
    /// A call that must work failed.
    #[error("{call} at offset {offset} failed")]
    Call {
        /// The call: `erase`, `write`, `read` or `sync`.
        call: &'static str,
        /// Byte offset it was given, 0 for sync.
        offset: u32,
        /// The medium's error.
        #[source]
        source: E,
    },
    /// A rule of the contract does not hold.
    #[error("{rule}, broken at offset {offset}")]
    Broken {
        /// The rule, as a sentence.
        rule: &'static str,
        /// First byte offset that shows it.
        offset: u32,
    },
}

/// Runs a medium through every promise that needs no power cut: geometry, erase, program, neighbours untouched,
/// refusal of misaligned and out-of-bounds calls. **Everything stored on it is lost.**
///
/// # Errors
/// The first broken rule, as [`MediumFault`].
pub fn check_medium<M: Medium>(medium: &mut M) -> Result<(), MediumFault<M::Error>> {
    check_geometry(medium)?;
    let mut probe = Probe { medium };
    let blocks = probe.medium.capacity() / M::ERASE_SIZE;
    for block in 0..blocks {
        probe.erase(block)?;
    }
    // The first, the second and the last block: the edges are where drivers go wrong.
    let mut chosen = vec![0, 1.min(blocks - 1), blocks - 1];
    chosen.dedup();
    for &block in &chosen {
        probe.program_whole_block(block)?;
    }
    probe.single_words(chosen[0])?;
    probe.sync()?;
    for &block in &chosen {
        probe.erase_leaves_neighbours(block, blocks)?;
    }
    probe.refuses_bad_calls()
}

fn check_geometry<M: Medium>(medium: &M) -> Result<(), MediumFault<M::Error>> {
    let rules = [
        ("READ_SIZE is at least 1", M::READ_SIZE >= 1),
        ("WRITE_SIZE is a power of two of at most 32 bytes", M::WRITE_SIZE.is_power_of_two() && M::WRITE_SIZE <= 32),
        ("READ_SIZE divides WRITE_SIZE", M::READ_SIZE >= 1 && M::WRITE_SIZE.is_multiple_of(M::READ_SIZE)),
        ("WRITE_SIZE divides ERASE_SIZE", M::ERASE_SIZE > 0 && M::ERASE_SIZE.is_multiple_of(M::WRITE_SIZE.max(1))),
        (
            "capacity is a whole, positive number of erase blocks within 32 bits",
            M::ERASE_SIZE > 0
                && medium.capacity() > 0
                && medium.capacity().is_multiple_of(M::ERASE_SIZE)
                && u32::try_from(medium.capacity()).is_ok(),
        ),
    ];
    match rules.into_iter().find(|(_, holds)| !holds) {
        Some((rule, _)) => Err(MediumFault::Broken { rule, offset: 0 }),
        None => Ok(()),
    }
}

struct Probe<'a, M: Medium> {
    medium: &'a mut M,
}

impl<M: Medium> Probe<'_, M> {
    fn erase(&mut self, block: usize) -> Result<(), MediumFault<M::Error>> {
        let from = (block * M::ERASE_SIZE) as u32;
        self.medium.erase(from, from + M::ERASE_SIZE as u32).map_err(|source| MediumFault::Call {
            call: "erase",
            offset: from,
            source,
        })?;
        let read = self.read(from, M::ERASE_SIZE)?;
        expect(&read, from, "an erased block reads as 0xFF", |_| 0xFF)
    }

    fn read(&mut self, offset: u32, len: usize) -> Result<Vec<u8>, MediumFault<M::Error>> {
        let mut bytes = vec![0; len];
        self.medium.read(offset, &mut bytes).map_err(|source| MediumFault::Call { call: "read", offset, source })?;
        Ok(bytes)
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), MediumFault<M::Error>> {
        self.medium.write(offset, bytes).map_err(|source| MediumFault::Call { call: "write", offset, source })
    }

    fn sync(&mut self) -> Result<(), MediumFault<M::Error>> {
        self.medium.sync().map_err(|source| MediumFault::Call { call: "sync", offset: 0, source })
    }

    fn program_whole_block(&mut self, block: usize) -> Result<(), MediumFault<M::Error>> {
        let from = (block * M::ERASE_SIZE) as u32;
        let bytes: Vec<u8> = (0..M::ERASE_SIZE).map(|at| pattern(from, at)).collect();
        self.write(from, &bytes)?;
        self.sync()?;
        let read = self.read(from, M::ERASE_SIZE)?;
        expect(&read, from, "a programmed block reads back", |at| pattern(from, at))
    }

    fn single_words(&mut self, block: usize) -> Result<(), MediumFault<M::Error>> {
        self.erase(block)?;
        let from = (block * M::ERASE_SIZE) as u32;
        // Every second word: the ones between must stay erased.
        for at in (0..M::ERASE_SIZE).step_by(2 * M::WRITE_SIZE) {
            let offset = from + at as u32;
            let word: Vec<u8> = (at..at + M::WRITE_SIZE).map(|a| pattern(from, a)).collect();
            self.write(offset, &word)?;
        }
        let programmed = |at: usize| (at / M::WRITE_SIZE).is_multiple_of(2);
        for at in (0..M::ERASE_SIZE).step_by(M::READ_SIZE) {
            let read = self.read(from + at as u32, M::READ_SIZE)?;
            let rule = "a word is programmed alone and its neighbours stay";
            expect(&read, from + at as u32, rule, |inner| {
                if programmed(at + inner) { pattern(from, at + inner) } else { 0xFF }
            })?;
        }
        self.erase(block)?;
        self.program_whole_block(block)
    }

    fn erase_leaves_neighbours(&mut self, block: usize, blocks: usize) -> Result<(), MediumFault<M::Error>> {
        let neighbours: Vec<usize> = [block.checked_sub(1), Some(block + 1)]
            .into_iter()
            .flatten()
            .filter(|&neighbour| neighbour < blocks)
            .collect();
        let mut before = Vec::new();
        for &neighbour in &neighbours {
            before.push(self.read((neighbour * M::ERASE_SIZE) as u32, M::ERASE_SIZE)?);
        }
        self.erase(block)?;
        for (&neighbour, before) in neighbours.iter().zip(&before) {
            let from = (neighbour * M::ERASE_SIZE) as u32;
            let after = self.read(from, M::ERASE_SIZE)?;
            expect(&after, from, "erase leaves other blocks alone", |at| before[at])?;
        }
        Ok(())
    }

    fn refuses_bad_calls(&mut self) -> Result<(), MediumFault<M::Error>> {
        let end = self.medium.capacity() as u32;
        let word = vec![0; M::WRITE_SIZE];
        let block = M::ERASE_SIZE as u32;
        let past_the_end = [
            self.medium.write(end, &word).is_err(),
            self.medium.erase(end, end + block).is_err(),
            self.medium.read(end, &mut vec![0; M::READ_SIZE]).is_err(),
            self.medium.erase(block, 0).is_err(),
        ];
        if past_the_end.contains(&false) {
            return Err(MediumFault::Broken { rule: "a call past the end is refused", offset: end });
        }
        let misaligned = [
            M::WRITE_SIZE == 1 || self.medium.write(1, &word).is_err(),
            M::WRITE_SIZE == 1 || self.medium.write(0, &word[1..]).is_err(),
            M::ERASE_SIZE == 1 || self.medium.erase(0, 1).is_err(),
            M::READ_SIZE == 1 || self.medium.read(1, &mut vec![0; M::READ_SIZE]).is_err(),
        ];
        if misaligned.contains(&false) {
            return Err(MediumFault::Broken { rule: "a misaligned call is refused", offset: 0 });
        }
        Ok(())
    }
}

/// A byte that differs between blocks, between neighbouring words and from 0xFF in most places.
fn pattern(from: u32, at: usize) -> u8 {
    (at as u32).wrapping_mul(31).wrapping_add(from >> 8).wrapping_add(at as u32 >> 8) as u8
}

fn expect<E: core::error::Error + 'static>(
    read: &[u8],
    offset: u32,
    rule: &'static str,
    expected: impl Fn(usize) -> u8,
) -> Result<(), MediumFault<E>> {
    match (0..read.len()).find(|&at| read[at] != expected(at)) {
        Some(at) => Err(MediumFault::Broken { rule, offset: offset + at as u32 }),
        None => Ok(()),
    }
}
