//! The codec as the log uses it: whole frames, with and without a table.

use alloc::vec;
use alloc::vec::Vec;

use super::{MAX_FRAME_TOKENS, TokenStatistics, TokenTable};
use crate::example::mix;

/// Records in the manner of speech: ids by Zipf's law, and phrases that come back.
fn speech(seed: u64, records: usize, vocabulary: u32) -> Vec<Vec<u32>> {
    // About as many ids in each octave.
    let zipf = |bits: u64| (bits >> 8) as u32 % vocabulary.min(2 << (bits % 16));
    let record = |number: u64| {
        let start = mix(seed << 40 | number);
        let mut tokens = vec![1, 50, 7];
        for at in 0..start % 30 {
            tokens.push(zipf(mix(start ^ at)));
            if mix(start ^ at << 9) & 7 == 0 {
                tokens.extend([900, 31, 77]);
            }
        }
        tokens.push(0);
        tokens
    };
    (0..records as u64).map(record).collect()
}

fn slices(records: &[Vec<u32>]) -> impl Iterator<Item = &[u32]> + Clone {
    records.iter().map(Vec::as_slice)
}

fn decoded(table: &TokenTable, bytes: &[u8], records: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut read = Vec::new();
    let lengths = records.iter().map(|record| record.len() as u32);
    table.decode(bytes, lengths, |record| {
        read.push(record.to_vec());
        true
    });
    read
}

fn table_of(records: &[Vec<u32>]) -> TokenTable {
    let mut statistics = TokenStatistics::default();
    records.iter().for_each(|record| statistics.add(record));
    statistics.table()
}

#[test]
fn every_frame_comes_back_with_any_table() {
    // Fewer under Miri, which is a thousand times slower.
    const SEEDS: u64 = if cfg!(miri) { 2 } else { 30 };
    let past = speech(1, 13 * SEEDS as usize, 49_152);
    for table in [TokenTable::untrained(), table_of(&past), table_of(&past[..20])] {
        for seed in 0..SEEDS {
            let records = speech(2 + seed, seed as usize, 49_152);
            let bytes = table.encode(slices(&records));
            assert_eq!(decoded(&table, &bytes, &records), records);
        }
    }
}

#[test]
fn any_ids_and_any_lengths_come_back() {
    // Fewer under Miri, which is a thousand times slower.
    const TOKENS: u64 = if cfg!(miri) { 50 } else { 5000 };
    let extremes = vec![0, u32::MAX, u32::MAX - 1, 55, 56, 57, 1 << 31, 200, u32::MAX, u32::MAX];
    let uniform = (0..TOKENS).map(|at| mix(at) as u32).collect();
    let records = [vec![], extremes, vec![9; TOKENS as usize / 2], uniform, vec![], vec![u32::MAX]];
    for table in [TokenTable::untrained(), table_of(&records)] {
        let bytes = table.encode(slices(&records));
        assert_eq!(decoded(&table, &bytes, &records), records);
    }
}

#[test]
#[cfg_attr(miri, ignore = "as long as a frame may be, it takes hours under Miri")]
fn a_frame_may_be_so_large_that_its_weights_stop_growing() {
    let records = [(0..MAX_FRAME_TOKENS as u64).map(|at| mix(at) as u32 % 40_000).collect::<Vec<u32>>()];
    let table = TokenTable::untrained();
    let bytes = table.encode(slices(&records));
    assert_eq!(decoded(&table, &bytes, &records), records);
    let too_many = [MAX_FRAME_TOKENS as u32, 1];
    assert_eq!(table.decode(&bytes, too_many.into_iter(), |_| true), None);
    assert_eq!(table.decode(&bytes, [u32::MAX; 9].into_iter(), |_| true), None);
}

#[test]
fn reading_stops_where_it_is_told() {
    let records = speech(5, 8, 49_152);
    let table = table_of(&records);
    let bytes = table.encode(slices(&records));
    let mut read = 0;
    let lengths = records.iter().map(|record| record.len() as u32);
    table.decode(&bytes, lengths, |record| {
        assert_eq!(record, records[read]);
        read += 1;
        read < 6
    });
    assert_eq!(read, 6);
}

#[test]
fn hostile_bytes_give_tokens_and_no_panic() {
    // Fewer under Miri, which is a thousand times slower.
    const SEEDS: u64 = if cfg!(miri) { 4 } else { 3000 };
    let table = table_of(&speech(1, SEEDS as usize / 10, 49_152));
    for seed in 0..SEEDS {
        let bytes: Vec<u8> = (0..seed % 60).map(|at| mix(seed << 8 | at) as u8).collect();
        let mut read = 0;
        table.decode(&bytes, [40, 0, 100].into_iter(), |record| {
            read += record.len();
            true
        });
        assert_eq!(read, 140);
    }
}

/// The bytes of a format may never change: these are those of version 1.
#[test]
fn the_bytes_are_those_of_version_1() {
    let past = speech(3, 100, 49_152);
    let table = table_of(&past);
    let digest = |bytes: &[u8]| bytes.iter().fold(0, |sum, &byte| mix(sum ^ u64::from(byte)));
    let frame = speech(4, 16, 49_152);
    let sizes = (table.to_bytes().len(), table.encode(slices(&frame)).len());
    let digests = (digest(&table.to_bytes()), digest(&table.encode(slices(&frame))));
    assert_eq!((sizes, digests), ((40, 374), (5_425_208_701_030_147_457, 15_767_627_139_589_582_740)));
}

/// What the codec is for: a table from the store's own past, and what a frame repeats, make ids cheap.
#[test]
#[cfg_attr(miri, ignore = "measures sizes over more than Miri can do in minutes")]
fn tables_and_repetition_pay() {
    let bits = |table: &TokenTable, records: &[Vec<u32>]| {
        let tokens: usize = records.iter().map(Vec::len).sum();
        table.encode(slices(records)).len() as f64 * 8.0 / tokens as f64
    };
    let frame = speech(9, 16, 49_152);
    let plain = bits(&TokenTable::untrained(), &frame);
    let trained = bits(&table_of(&speech(8, 2000, 49_152)), &frame);
    assert!(trained < plain - 0.3, "{trained} bits a token with a table, {plain} without");
    let twice: Vec<Vec<u32>> = frame.iter().chain(&frame).cloned().collect();
    assert!(bits(&TokenTable::untrained(), &twice) < plain * 0.7);
}
