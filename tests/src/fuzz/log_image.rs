//! A medium of any content, and a frame of any content in a sound log.

use mynah::example::{Example, ExampleId};
use mynah::replay::{LogConfig, ReplayLog};
use mynah::storage::sim::SimFlash;

use super::{TOKENIZER, crc32c};

const BLOCK_BYTES: usize = 1024;
const BLOCKS: usize = 4;
const SEGMENT_HEADER_BYTES: usize = 128;
const FRAME_HEADER_BYTES: usize = 24;
type Flash = SimFlash<8, BLOCK_BYTES>;

/// Opens a medium that holds `data` and uses the log on it.
///
/// # Panics
/// If a promise of the log is broken, see `use_log`.
pub fn log_image(data: &[u8]) {
    let mut image = vec![0xFF; BLOCKS * BLOCK_BYTES];
    let bytes = data.len().min(image.len());
    image[..bytes].copy_from_slice(&data[..bytes]);
    for segment in image.chunks_mut(BLOCK_BYTES) {
        put_checksums_right(segment);
    }
    use_log(image);
}

/// Opens a log whose one frame has the codec `data[0]`, `data[1]` records and the rest as its payload.
///
/// # Panics
/// If a promise of the log is broken, see `use_log`.
pub fn record(data: &[u8]) {
    let [codec, records, payload @ ..] = data else { return };
    let (mut log, _) = ReplayLog::open(Flash::new(BLOCKS), &config()).expect("erased flash is an empty log");
    log.append(&[example(1)]).expect("room for one example");
    let mut image = log.into_medium().image().to_vec();
    let frame = &mut image[SEGMENT_HEADER_BYTES..BLOCK_BYTES];
    let payload = &payload[..payload.len().min(frame.len() - FRAME_HEADER_BYTES)];
    frame[1] = *codec;
    frame[2] = *records;
    frame[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    frame[FRAME_HEADER_BYTES..].fill(0xFF);
    frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    put_checksums_right(&mut image[..BLOCK_BYTES]);
    use_log(image);
}

fn config() -> LogConfig {
    LogConfig::new(TOKENIZER)
}

fn example(seed: u32) -> Example {
    Example::new(&[seed, 40_000, 7], &[seed ^ 1, 9], 0, "fuzz", seed.into()).expect("within all limits")
}

/// Lists, reads, verifies, appends, opens again.
///
/// # Panics
/// If a listed record changes its id, task or length between list and content, or if an acknowledged example is not
/// there after the log is opened again.
fn use_log(image: Vec<u8>) {
    let Ok((mut log, _)) = ReplayLog::open(Flash::from_image(image), &config()) else { return };
    let listed: Vec<(ExampleId, u32)> = log.iter().map(|info| (info.id, info.tokens)).collect();
    for &(id, tokens) in &listed {
        // Tokens that do not decode are an error; tokens that do are those that were listed.
        if let Ok(example) = log.read(id) {
            assert_eq!(example.tokens().len() as u32, tokens);
        }
    }
    log.verify().expect("this medium can always be read");
    // Flash full of remains takes no more.
    let Ok(ids) = log.append(&[example(5), example(6)]) else { return };
    assert_eq!(log.read(ids[0]).expect("just appended"), example(5));
    if let Some(&(id, _)) = listed.first() {
        drop(log.remove(id));
    }
    let listed: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
    let (mut log, _) = ReplayLog::open(log.into_medium(), &config()).expect("it was open a moment ago");
    assert_eq!(log.iter().map(|info| info.id).collect::<Vec<_>>(), listed);
    assert_eq!(log.read(ids[1]).expect("acknowledged"), example(6));
}

/// Makes the checksums of the header and of the frames after it those of what they cover, and their links those of
/// what stands before them. The version is 1 or 2, as a bit of the bytes says.
fn put_checksums_right(segment: &mut [u8]) {
    segment[..8].copy_from_slice(b"MYNAHLOG");
    let version = 1 + (segment[8] & 1);
    segment[8..10].copy_from_slice(&[version, 0]);
    let flags = if version == 1 { 0 } else { segment[10] & 3 };
    segment[10..12].copy_from_slice(&[flags, 0]);
    segment[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    segment[44..46].copy_from_slice(&8_u16.to_le_bytes());
    segment[48..80].copy_from_slice(&TOKENIZER);
    let link = crc32c(&[&segment[..92]]);
    segment[92..96].copy_from_slice(&link);
    let header_bytes = if version == 1 { 96 } else { SEGMENT_HEADER_BYTES };
    let (header, frames) = segment.split_at_mut(header_bytes);
    let [first, last] = link_frames(frames, link);
    if version == 2 {
        header[116..120].copy_from_slice(&last);
        header[120..124].copy_from_slice(&first);
        let crc = crc32c(&[&header[92..124]]);
        header[124..128].copy_from_slice(&crc);
    }
}

/// Puts checksums and links of frames right; returns the first and the last checksum.
fn link_frames(mut rest: &mut [u8], mut link: [u8; 4]) -> [[u8; 4]; 2] {
    let mut first = None;
    while rest.len() >= FRAME_HEADER_BYTES && rest[0] != 0xFF {
        rest[0] = 0xA5;
        let payload_bytes = usize::from(u16::from_le_bytes([rest[4], rest[5]])).min(rest.len() - FRAME_HEADER_BYTES);
        rest[4..8].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
        rest[12..16].copy_from_slice(&link);
        let end = FRAME_HEADER_BYTES + payload_bytes;
        link = crc32c(&[&rest[..8], &rest[12..end]]);
        rest[8..12].copy_from_slice(&link);
        first.get_or_insert(link);
        let next = end.next_multiple_of(8).min(rest.len());
        rest = &mut rest[next..];
    }
    [first.unwrap_or(link), link]
}
