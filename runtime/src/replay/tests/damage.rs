//! Flash that decays, and flash that never held a log: never a panic, never wrong data.

use super::*;

/// Fills a log and returns its flash and what it holds.
fn filled(batches: u64) -> (SimFlash<8, 512>, Vec<Example>) {
    let (mut log, _) = open(SimFlash::<8, 512>::new(12), 1);
    let mut stored = Vec::new();
    for at in 0..batches {
        let batch = [example(2 * at), example(2 * at + 1)];
        log.append(&batch).unwrap();
        stored.extend(batch);
    }
    (log.into_medium(), stored)
}

/// Whatever is listed can be read and is what was stored under that id.
fn check_only_truth<M: Medium>(log: &mut ReplayLog<M>, stored: &[Example]) -> usize {
    let ids: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
    for &id in &ids {
        assert_eq!(log.read(id).unwrap(), stored[id.0 as usize - 1]);
    }
    ids.len()
}

#[test]
fn a_flipped_bit_costs_the_last_batch_at_most_and_is_reported() {
    // Fewer under Miri, which is a thousand times slower.
    const STEP: usize = if cfg!(miri) { 9001 } else { 1 };
    let (flash, stored) = filled(20);
    let (log, _) = open(flash.clone(), 1);
    let used_bytes = flash.image().iter().rposition(|&byte| byte != 0xFF).unwrap();
    let last_frame_at = log.index.iter().last().unwrap().frame_at as usize;
    for bit in (0..flash.image().len() * 8).step_by(STEP) {
        let mut flipped = flash.clone();
        flipped.flip_bit(bit);
        let (mut log, report) = open(flipped, 1);
        let kept = check_only_truth(&mut log, &stored);
        // Nothing behind the last frame shows that it was whole once; it holds two records.
        let is_in_last = (last_frame_at..=used_bytes).contains(&(bit / 8));
        assert_eq!(kept, stored.len() - if is_in_last { 2 } else { 0 }, "bit {bit}");
        let is_unused = flash.image()[bit / 8..].iter().take(512 - bit / 8 % 512).all(|&b| b == 0xFF);
        assert!(!report.dropped.is_empty() || is_unused, "bit {bit}");
        // It can still be appended to.
        let id = log.append(&[example(999)]).unwrap()[0];
        let (mut log, _) = open(log.into_medium(), 1);
        assert_eq!(log.read(id).unwrap(), example(999));
        assert_eq!(log.len(), kept + 1);
    }
}

#[test]
fn what_is_lost_is_counted_and_its_ids_are_not_given_out_again() {
    let (flash, stored) = filled(20);
    let image = flash.image().to_vec();
    let last_frame_at = open(flash, 1).0.index.get(40).unwrap().frame_at as usize;
    let last_segment_at = last_frame_at / 512 * 512;
    assert!(last_frame_at > last_segment_at + 96, "a frame stands before it");
    let destroyed =
        [(0, 96), (100, 140), (512 + 90, 512 + 110), (1024, 1536), (last_segment_at + 100, last_segment_at + 140)];
    for (from, to) in destroyed {
        let mut image = image.clone();
        image[from..to].fill(0x5A);
        let (mut log, report) = open(SimFlash::<8, 512>::from_image(image), 1);
        let kept = check_only_truth(&mut log, &stored);
        let is_prefix = log.iter().map(|info| info.id.0).eq(1..=kept as u64);
        assert!(is_prefix && kept < stored.len());
        let lost: u64 = report.dropped.iter().filter_map(|d| d.records).sum();
        assert_eq!(kept as u64 + lost, stored.len() as u64, "{report:?}");
        let id = log.append(&[example(999)]).unwrap()[0];
        assert_eq!(id.0, stored.len() as u64 + 1);
        assert!(!log.verify().unwrap().is_ok(), "the loss is said again");
        let (mut log, report) = open(log.into_medium(), 1);
        assert_eq!(log.len(), kept + 1);
        assert_eq!(log.read(id).unwrap(), example(999));
        let said = report.dropped.iter().any(|d| d.records == Some(lost));
        assert!(said, "{report:?}");
    }
}

#[test]
fn a_bit_that_flips_while_the_log_is_open_is_put_right_when_it_is_read() {
    // Fewer under Miri, which is a thousand times slower.
    const STEP: usize = if cfg!(miri) { 901 } else { 3 };
    let (flash, stored) = filled(3);
    for bit in (0..512 * 8).step_by(STEP) {
        let (log, _) = open(flash.clone(), 1);
        let mut flash = log.into_medium();
        let (_, before) = ReplayLog::open(&mut flash, &config(1)).unwrap();
        assert!(before.dropped.is_empty());
        let (mut log, _) = ReplayLog::open(Flipping(flash, None), &config(1)).unwrap();
        log.medium.1 = Some(bit);
        assert_eq!(check_only_truth(&mut log, &stored), stored.len());
        let report = log.verify().unwrap();
        let is_unused = bit / 8 >= log.bytes() as usize;
        assert_eq!(report.is_ok(), is_unused, "bit {bit}: {report:?}");
    }
}

/// Flash of which one bit reads wrong.
struct Flipping(SimFlash<8, 512>, Option<usize>);

mod flipping {
    use super::*;
    use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

    impl ErrorType for Flipping {
        type Error = SimError;
    }
    impl ReadNorFlash for Flipping {
        const READ_SIZE: usize = 1;
        fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), SimError> {
            self.0.read(offset, bytes)?;
            if let Some(bit) = self.1
                && let Some(byte) = (bit / 8).checked_sub(offset as usize)
                && let Some(byte) = bytes.get_mut(byte)
            {
                *byte ^= 1 << (bit % 8);
            }
            Ok(())
        }
        fn capacity(&self) -> usize {
            self.0.capacity()
        }
    }
    impl NorFlash for Flipping {
        const WRITE_SIZE: usize = 8;
        const ERASE_SIZE: usize = 512;
        fn erase(&mut self, from: u32, to: u32) -> Result<(), SimError> {
            self.0.erase(from, to)
        }
        fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), SimError> {
            self.0.write(offset, bytes)
        }
    }
    impl Medium for Flipping {
        fn sync(&mut self) -> Result<(), SimError> {
            self.0.sync()
        }
    }
}

/// Several random flips and overwritten stretches at once.
fn check_mangled(flash: &SimFlash<8, 512>, stored: &[Example], seed: u64) {
    let mut image = flash.image().to_vec();
    for nth in 0..1 + mix(seed) % 6 {
        let noise = mix(seed ^ mix(nth + 1));
        let at = (noise >> 16) as usize % image.len();
        let end = (at + noise as usize % 40).min(image.len());
        match noise % 3 {
            0 => image[at] ^= 1 << (noise >> 60 & 7),
            1 => image[at..end].fill(0xFF),
            _ => image[at..end].fill(noise as u8),
        }
    }
    let Ok((mut log, _)) = ReplayLog::open(SimFlash::<8, 512>::from_image(image), &config(1)) else {
        return;
    };
    check_only_truth(&mut log, stored);
    let _ = log.verify().unwrap();
    if let Ok(ids) = log.append(&[example(5000)]) {
        assert_eq!(log.read(ids[0]).unwrap(), example(5000));
    }
}

#[test]
fn more_than_a_flipped_bit_in_an_open_log_is_an_error_that_names_the_record() {
    let (mut flash, stored) = filled(3);
    let (log, _) = ReplayLog::open(&mut flash, &config(1)).unwrap();
    let frame_at = log.index.get(3).unwrap().frame_at;
    drop(log);
    let (mut log, _) = open(flash, 1);
    log.medium.flip_bit((frame_at as usize + 30) * 8);
    log.medium.flip_bit((frame_at as usize + 40) * 8 + 5);
    for id in (1..=6).map(ExampleId) {
        match log.read(id) {
            Ok(example) => assert_eq!(example, stored[id.0 as usize - 1]),
            Err(ReplayError::Damaged { id: named, offset }) => {
                assert_eq!((named, offset), (id, frame_at));
                assert!(id == ExampleId(3) || id == ExampleId(4));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(log.read(ExampleId(3)).is_err());
    let missing = log.verify().unwrap().missing;
    assert_eq!(missing, [3, 4, 5, 6].map(ExampleId), "the log ends before it");
}

#[test]
fn a_frame_from_an_earlier_use_of_its_place_never_joins_the_log() {
    let write = |first: u64| {
        let (mut log, _) = open(SimFlash::<8, 512>::new(2), 1);
        let same_size = |seed: u64| Example::new(&[7], &[seed as u32], 2, "t", 5).unwrap();
        log.append(&[same_size(first)]).unwrap();
        log.append(&[same_size(first + 1)]).unwrap();
        let second_at = log.index.get(2).unwrap().frame_at as usize;
        (log.into_medium().image().to_vec(), second_at)
    };
    let (old, old_at) = write(10);
    let (mut new, new_at) = write(20);
    assert_eq!(old_at, new_at);
    // Whole, in the right place, with the right id, and written before the frame it follows now.
    new[new_at..].copy_from_slice(&old[new_at..]);
    let (log, report) = open(SimFlash::<8, 512>::from_image(new), 1);
    assert_eq!(log.len(), 1);
    assert_eq!(report.dropped.len(), 1);
}

#[test]
fn a_frame_with_a_wrong_id_never_joins_the_log() {
    use crate::replay::segment::FrameHeader;
    let (mut log, _) = open(SimFlash::<8, 512>::new(2), 1);
    log.append(&[example(1)]).unwrap();
    let frame_at = log.index.get(1).unwrap().frame_at as usize;
    let end = log.bytes() as usize;
    let mut image = log.into_medium().image().to_vec();
    let (first, payload) = FrameHeader::parse(&image[frame_at..]).unwrap();
    let mut second = FrameHeader { previous_crc: first.crc, first_id: 7, ..first };
    let mut digest = second.start_crc();
    digest.update(payload);
    second.crc = digest.finalize();
    let payload = payload.to_vec();
    image[end..end + 24].copy_from_slice(&second.encode());
    image[end + 24..end + 24 + payload.len()].copy_from_slice(&payload);
    let (log, report) = open(SimFlash::<8, 512>::from_image(image), 1);
    assert_eq!((log.len(), report.dropped.len()), (1, 1));
}

#[test]
fn mangled_images_never_give_wrong_data() {
    // Fewer under Miri, which is a thousand times slower.
    const SEEDS: u64 = if cfg!(miri) { 5 } else { 20_000 };
    let (flash, stored) = filled(20);
    for seed in 0..SEEDS {
        check_mangled(&flash, &stored, seed);
    }
}

/// A million mangled images: a minute or two.
#[test]
#[ignore = "takes minutes"]
fn mangled_images_many() {
    let (flash, stored) = filled(20);
    for seed in 1_000_000..2_000_000 {
        check_mangled(&flash, &stored, seed);
    }
}

/// Random bytes with real headers, frames and their checksums strewn in.
#[test]
fn random_images_never_panic() {
    // Fewer under Miri, which is a thousand times slower.
    const SEEDS: u64 = if cfg!(miri) { 5 } else { 20_000 };
    let (flash, _) = filled(20);
    for seed in 0..SEEDS {
        let mut image: Vec<u8> = (0..2048 / 8).flat_map(|at| mix(seed ^ mix(at)).to_le_bytes()).collect();
        for nth in 0..mix(seed) % 5 {
            let noise = mix(seed ^ mix(nth + 77));
            let from = (noise as usize % flash.image().len()) & !7;
            let len = ((noise >> 20) as usize % 300).min(flash.image().len() - from);
            let to = ((noise >> 40) as usize % image.len()) & !7;
            let len = len.min(image.len() - to);
            image[to..to + len].copy_from_slice(&flash.image()[from..from + len]);
        }
        if let Ok((mut log, _)) = ReplayLog::open(SimFlash::<8, 512>::from_image(image), &config(1)) {
            let _ = log.verify().unwrap();
            let _ = log.append(&[example(seed)]);
        }
    }
}

/// Headers and frames whose checksums are right and whose contents are not.
#[test]
fn crafted_images_never_panic() {
    use crate::replay::segment::{FrameHeader, Moved, SegmentHeader};
    // Fewer under Miri, which is a thousand times slower.
    const SEEDS: u64 = if cfg!(miri) { 5 } else { 20_000 };
    for seed in 0..SEEDS {
        let noise = |nth: u64| mix(seed ^ mix(nth));
        let small_or_huge = |nth: u64| match noise(nth) % 4 {
            0 => u64::MAX - noise(nth + 50) % 3,
            _ => noise(nth + 50) % 6,
        };
        let mut flash = SimFlash::<8, 512>::new(4);
        let mut image = flash.image().to_vec();
        for slot in 0..4_u64 {
            let header = SegmentHeader {
                version: 1 + (noise(slot + 30) % 2) as u16,
                word_bytes: 8,
                segment_bytes: 512,
                sequence: small_or_huge(slot),
                end_id: small_or_huge(slot + 20),
                first_id: small_or_huge(slot + 4),
                chain: noise(slot) as u32 % 2,
                tokenizer_digest: DIGEST,
                first_crc: 0,
                moved: (noise(slot + 31) % 3 == 0).then(|| Moved {
                    until_id: small_or_huge(slot + 32),
                    chain: noise(slot) as u32 % 2,
                    last_crc: 0,
                }),
                seal: None,
            };
            let payload: Vec<u8> = (0..noise(slot + 8) % 200).map(|at| (noise(at + 100) % 4) as u8).collect();
            let mut frame = FrameHeader {
                codec: (noise(slot + 12) % 4 == 0) as u8,
                records: 1 + (noise(slot + 16) % 3) as u16,
                payload_bytes: payload.len() as u32,
                crc: 0,
                previous_crc: header.crc(),
                first_id: header.first_id.max(1),
            };
            let mut digest = frame.start_crc();
            digest.update(&payload);
            frame.crc = digest.finalize();
            let header = SegmentHeader { first_crc: frame.crc, ..header };
            let base = slot as usize * 512;
            let frames_at = base + header.len_bytes();
            image[base..frames_at].copy_from_slice(&header.encode()[..header.len_bytes()]);
            image[frames_at..frames_at + 24].copy_from_slice(&frame.encode());
            image[frames_at + 24..frames_at + 24 + payload.len()].copy_from_slice(&payload);
        }
        flash = SimFlash::from_image(image);
        if let Ok((mut log, _)) = ReplayLog::open(flash, &config(1)) {
            let ids: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
            for id in ids {
                let _ = log.read(id);
            }
            let _ = log.verify().unwrap();
            let _ = log.append(&[example(seed)]);
        }
    }
}
