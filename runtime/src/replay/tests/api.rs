//! What the log answers when nothing fails, and how it refuses.

use super::*;
use crate::replay::Compact;
use crate::storage::sim::Tear;

#[test]
fn an_empty_medium_is_an_empty_log() {
    let (mut log, report) = open(SimFlash::<8, 512>::new(2), 1);
    assert_eq!((report.records, report.segments), (0, 0));
    assert!(report.dropped.is_empty());
    assert!(log.is_empty() && log.tokens() == 0 && log.bytes() == 0);
    assert_eq!(log.append(&[]).unwrap(), []);
    assert!(log.verify().unwrap().is_ok());
    let nothing = log.into_medium();
    assert_eq!(nothing.worked_bytes(), 0, "opening writes nothing");
}

#[test]
fn a_batch_is_one_frame_and_one_sync() {
    let (mut log, _) = open(SimFlash::<8, 4096>::new(2), 1);
    let before = log.medium().syncs();
    let batch: Vec<Example> = (0..16).map(example).collect();
    log.append(&batch).unwrap();
    assert_eq!(log.medium().syncs() - before, 1);
    let (_, report) = open(log.into_medium(), 1);
    assert_eq!((report.frames, report.records), (1, 16));
}

#[test]
fn a_batch_larger_than_a_segment_takes_several() {
    let (mut log, _) = open(SimFlash::<8, 512>::new(16), 1);
    let batch: Vec<Example> = (0..60).map(example).collect();
    let ids = log.append(&batch).unwrap();
    assert_eq!(ids.len(), 60);
    let live: BTreeMap<_, _> = ids.iter().copied().zip(&batch).collect();
    check_contents(&mut log, &live);
    let (mut log, report) = open(log.into_medium(), 1);
    assert!(report.segments > 3 && report.dropped.is_empty());
    check_contents(&mut log, &live);
}

#[test]
fn the_longest_example_fits_a_segment_of_the_file_medium() {
    let longest = vec![u32::MAX; crate::example::MAX_EXAMPLE_TOKENS - 2];
    let example = Example::new(&[1], &longest, 2, &"t".repeat(64), u64::MAX).unwrap();
    let (mut log, _) = open(SimFlash::<8, 65536>::new(2), 1);
    let ids = log.append(&[example.clone(), example.clone()]).unwrap();
    assert_eq!(log.read(ids[1]).unwrap(), example);
}

#[test]
fn too_large_and_full_are_told_apart_and_change_nothing() {
    let (mut log, _) = open(SimFlash::<8, 256>::new(2), 1);
    let answer: Vec<u32> = (0..60).map(|at| mix(at) as u32).collect();
    let large = Example::new(&[1], &answer, 2, "t", 0).unwrap();
    let refused = log.append(&[example(1), large.clone()]).unwrap_err();
    let ReplayError::TooLarge { position, bytes, limit_bytes } = refused else { panic!("{refused}") };
    assert_eq!((position, limit_bytes), (1, 256 - 160));
    assert!(bytes > limit_bytes);
    assert!(log.is_empty());

    let mut stored = Vec::new();
    let refused = loop {
        match log.append(&[example(stored.len() as u64)]) {
            Ok(ids) => stored.extend(ids),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ReplayError::Full { capacity_bytes: 512, needed_bytes } if needed_bytes > 0));
    let many: Vec<Example> = (0..40).map(example).collect();
    let work = log.medium().worked_bytes();
    assert!(matches!(log.append(&many).unwrap_err(), ReplayError::Full { .. }));
    assert_eq!(log.medium().worked_bytes(), work);
    // Full is not dead: what fits is still taken.
    let (log, _) = open(log.into_medium(), 1);
    assert_eq!(log.len(), stored.len());

    // With segments of two blocks the large one fits.
    let (mut log, _) = open(SimFlash::<8, 256>::new(4), 2);
    log.append(&[large]).unwrap();
}

#[test]
fn removal_hides_a_record_at_once_and_for_good() {
    let (mut log, _) = open(SimFlash::<8, 512>::new(4), 1);
    let batch = [example(1), example(2), example(1)];
    log.append(&batch).unwrap();
    assert_eq!(log.contains(batch[0].key()).unwrap(), Some(ExampleId(1)));
    log.remove(ExampleId(1)).unwrap();
    assert_eq!(log.contains(batch[0].key()).unwrap(), Some(ExampleId(3)));
    assert!(matches!(log.read(ExampleId(1)).unwrap_err(), ReplayError::NotFound { id: ExampleId(1) }));
    let both = [ExampleId(2), ExampleId(1)];
    assert!(log.remove_all(&both).is_err());
    assert_eq!(log.len(), 2, "all or none");
    let (mut log, report) = open(log.into_medium(), 1);
    assert_eq!((report.records, log.next_id()), (2, ExampleId(5)));
    assert!(log.info(ExampleId(1)).is_none());
    assert_eq!(log.append(&[example(9)]).unwrap(), [ExampleId(5)]);
}

#[test]
fn what_is_staged_is_there_but_not_listed_until_it_is_flushed() {
    let (mut log, _) = open(SimFlash::<8, 4096>::new(4), 1);
    let staged: Vec<Example> = (0..6).map(example).collect();
    for (example, id) in staged.iter().zip(1..) {
        assert_eq!(log.stage(example).unwrap(), ExampleId(id));
    }
    assert_eq!((log.len(), log.next_id(), log.bytes()), (0, ExampleId(7), 0));
    assert_eq!(log.read(ExampleId(3)).unwrap(), staged[2]);
    assert_eq!(log.contains(staged[4].key()).unwrap(), Some(ExampleId(5)));
    // What is taken back leaves a gap and no bytes.
    log.remove_all(&[ExampleId(2), ExampleId(6)]).unwrap();
    assert!(matches!(log.remove(ExampleId(2)).unwrap_err(), ReplayError::NotFound { id: ExampleId(2) }));
    assert_eq!(log.contains(staged[1].key()).unwrap(), None);
    let syncs = log.medium().syncs();
    assert_eq!(log.append(&[example(9)]).unwrap(), [ExampleId(7)]);
    assert_eq!(log.medium().syncs(), syncs + 1, "with what was staged");
    log.stage(&example(10)).unwrap();
    log.remove(ExampleId(1)).unwrap();
    assert_eq!(log.medium().syncs(), syncs + 2);
    // Lost by a cut.
    assert_eq!(log.stage(&example(11)).unwrap(), ExampleId(10));
    let (mut log, report) = open(log.into_medium(), 1);
    assert!(report.dropped.is_empty());
    let others = [example(9), example(10)];
    let kept = [(3, &staged[2]), (4, &staged[3]), (5, &staged[4]), (7, &others[0]), (8, &others[1])];
    check_contents(&mut log, &kept.into_iter().map(|(id, example)| (ExampleId(id), example)).collect());
}

#[test]
fn a_full_buffer_and_a_large_example_are_flushed_by_themselves() {
    let (mut log, _) = open(SimFlash::<8, 65536>::new(4), 1);
    let long = |seed: u32| Example::new(&[seed], &vec![70_000 + seed; 400], 2, "t", 5).unwrap();
    let mut live = BTreeMap::new();
    for seed in 0..10 {
        live.insert(log.stage(&long(seed)).unwrap(), long(seed));
    }
    assert!(log.len() >= 6, "{}", log.len());
    let huge = Example::new(&[1], &[5_000_000; 4000], 2, "t", 5).unwrap();
    live.insert(log.stage(&huge).unwrap(), huge);
    assert_eq!(log.len(), 11);
    check_contents(&mut log, &live.iter().map(|(&id, example)| (id, example)).collect());
}

#[test]
fn times_are_found_without_reading_tokens() {
    let (mut log, _) = open(SimFlash::<8, 512>::new(20), 1);
    let examples: Vec<Example> = (0..30).map(example).collect();
    for batch in examples.chunks(4) {
        log.append(batch).unwrap();
    }
    log.remove(ExampleId(3)).unwrap();
    let before = log.ids_before(1_700_000_010).unwrap();
    assert_eq!(before, [1, 2, 4, 5, 6, 7, 8, 9, 10].map(ExampleId));
}

#[test]
fn a_failed_sync_ends_the_handle_but_not_the_log() {
    let mut flash = SimFlash::<8, 512>::new(4).with_cache(64, 3, false);
    for attempt in 0..8 {
        let (mut log, report) = open(flash, 1);
        let kept = log.len();
        assert!(report.dropped.iter().all(|d| d.reason.is_interruption()));
        let first = log.append(&[example(attempt)]).unwrap()[0];
        flash = log.into_medium();
        flash.fail_next_sync();
        let failed = ReplayLog::open(&mut flash, &config(1));
        assert!(matches!(failed, Err(ReplayError::Medium { .. })));
        let (mut log, _) = open(flash, 1);
        assert_eq!(log.len(), kept + 1);
        log.remove(first).unwrap();
        let mut medium = log.into_medium();
        let (mut log, _) = ReplayLog::open(&mut medium, &config(1)).unwrap();
        let _ = log.append(&[]);
        drop(log);
        flash = medium;
    }

    // The sync of an append fails.
    let (log, _) = open(SimFlash::<8, 512>::new(4), 1);
    let mut flash = log.into_medium();
    let (mut log, _) = ReplayLog::open(Wrapped(&mut flash, 1), &config(1)).unwrap();
    assert!(matches!(log.append(&[example(1)]).unwrap_err(), ReplayError::WriteFailed { doing: "sync", .. }));
    assert!(log.is_empty(), "not acknowledged, not listed");
    for _ in 0..2 {
        let refused = log.append(&[example(1)]).unwrap_err();
        assert!(matches!(refused, ReplayError::Dead));
    }
}

/// Lets the sync after the first `.1` fail.
struct Wrapped<'a>(&'a mut SimFlash<8, 512>, u32);

mod wrapped {
    use super::*;
    use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

    impl ErrorType for Wrapped<'_> {
        type Error = SimError;
    }
    impl ReadNorFlash for Wrapped<'_> {
        const READ_SIZE: usize = 1;
        fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), SimError> {
            self.0.read(offset, bytes)
        }
        fn capacity(&self) -> usize {
            self.0.capacity()
        }
    }
    impl NorFlash for Wrapped<'_> {
        const WRITE_SIZE: usize = 8;
        const ERASE_SIZE: usize = 512;
        fn erase(&mut self, from: u32, to: u32) -> Result<(), SimError> {
            self.0.erase(from, to)
        }
        fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), SimError> {
            self.0.write(offset, bytes)
        }
    }
    impl Medium for Wrapped<'_> {
        fn sync(&mut self) -> Result<(), SimError> {
            match self.1.checked_sub(1) {
                Some(left) => self.1 = left,
                None => return Err(SimError::SyncFailed),
            }
            self.0.sync()
        }
    }
}

#[test]
fn a_log_made_differently_is_refused() {
    let (mut log, _) = open(SimFlash::<8, 512>::new(4), 1);
    log.append(&[example(1)]).unwrap();
    let image = log.into_medium().image().to_vec();

    let other = LogConfig::new([0xD2; 32]);
    let refused = ReplayLog::open(SimFlash::<8, 512>::from_image(image.clone()), &other);
    let Err(ReplayError::OtherTokenizer { expected, found }) = refused else { panic!() };
    assert_eq!((expected, found), ([0xD2; 32], DIGEST));

    let refused = ReplayLog::open(SimFlash::<8, 512>::from_image(image.clone()), &config(2));
    assert!(matches!(refused, Err(ReplayError::OtherGeometry { segment_bytes: 512, word_bytes: 8 })));
    let refused = ReplayLog::open(SimFlash::<16, 512>::from_image(image), &config(1));
    assert!(matches!(refused, Err(ReplayError::OtherGeometry { .. })));

    let too_small = ReplayLog::open(SimFlash::<8, 64>::new(4), &config(1));
    assert!(matches!(too_small, Err(ReplayError::Unsuitable { .. })));
}

/// The bytes of a golden image, of which the erased end is left out.
fn golden(hex: &str, bytes: usize) -> Vec<u8> {
    let digits = hex.replace('\n', "");
    let mut image: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    image.resize(bytes, 0xFF);
    image
}

#[test]
fn a_version_1_log_is_read_and_goes_on_in_version_2() {
    let image = golden(include_str!("golden_v1.hex"), 256);
    let (log, report) = open(SimFlash::<8, 256>::from_image(image.clone()), 1);
    assert!(report.dropped.is_empty() && log.is_empty(), "one example and its removal: {report:?}");
    assert_eq!(log.next_id(), ExampleId(3));

    // Without the removal.
    let mut image = image;
    image[152..].fill(0xFF);
    image.resize(1024, 0xFF);
    let example = Example::new(&[1, 200], &[3], 2, "math", 1_700_000_000).unwrap();
    let (mut log, _) = open(SimFlash::<8, 256>::from_image(image), 1);
    assert_eq!(log.read(ExampleId(1)).unwrap(), example);
    assert_eq!(log.contains(example.key()).unwrap(), Some(ExampleId(1)));
    log.append(&[super::example(7)]).unwrap();
    log.compact(Compact::All).unwrap();
    let (mut log, report) = open(log.into_medium(), 1);
    assert!(report.dropped.is_empty() && log.len() == 2);
    assert_eq!(log.read(ExampleId(1)).unwrap(), example);
    assert_eq!(log.read(ExampleId(2)).unwrap(), super::example(7));
}

#[test]
fn the_bytes_on_flash_are_these() {
    // A golden image: if this test fails, the format changed and old logs are unreadable.
    let (mut log, _) = open(SimFlash::<8, 512>::new(1), 1);
    let example = Example::new(&[1, 200], &[3], 2, "math", 1_700_000_000).unwrap();
    let other = Example::new(&[9], &[200, 3], 2, "code", 1_700_000_060).unwrap();
    log.append_scored(&[(&example, 2.5), (&other, f32::NAN)]).unwrap();
    log.remove(ExampleId(1)).unwrap();
    let flash = log.into_medium();
    let hex: String = flash.image()[..256].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_v2.hex").replace('\n', ""));
}

#[test]
fn a_log_behind_a_reference_to_its_medium_works_too() {
    let mut flash = SimFlash::<8, 512>::new(2);
    let (mut log, _) = ReplayLog::open(&mut flash, &config(1)).unwrap();
    log.append(&[example(1)]).unwrap();
    drop(log);
    flash.cut_after(0, Tear::InOrder);
    flash.power_on();
    assert_eq!(open(flash, 1).0.len(), 1);
}
