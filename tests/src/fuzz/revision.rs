//! A revision file of any content.

use std::fs;

use mynah::checkpoint::{Draft, Identity, RevisionKind, RevisionStore, SectionData};

use super::{TOKENIZER, crc32c};

/// Opens a folder whose one revision holds `data`, reads what can be read, and commits another.
///
/// # Panics
/// If the store cannot be opened but for a newer format, or if the revision committed last is not the newest.
pub fn revision(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut bytes = data.to_vec();
    put_checksums_right(&mut bytes);
    fs::write(folder.path().join("00000001.rev"), bytes).expect("room for a file");
    let identity = Identity { base_digest: [0xBA; 32], tokenizer_digest: TOKENIZER };
    // A newer format is refused, as it should be: going on from an older state would lose it.
    let Ok((mut store, report)) = RevisionStore::open(folder.path(), &identity) else { return };
    if let Some(newest) = &report.newest {
        let revision =
            store.load(newest.number).expect("the newest revision was read in full when the store was opened");
        for name in revision.section_names() {
            revision
                .bytes(name)
                .map(<[u8]>::len)
                .or_else(|_| revision.f32s(name).map(<[f32]>::len))
                .expect("one of the two");
        }
    }
    let sections = [("state", SectionData::Bytes(data)), ("fast", SectionData::F32(&[1.0, -2.5]))];
    let draft = Draft { kind: RevisionKind::Step, parent: None, created_unix_s: 1, sections: &sections };
    let committed = store.commit(&draft).expect("a sound draft");
    let (store, report) = RevisionStore::open(folder.path(), &identity).expect("it was open a moment ago");
    assert_eq!(report.newest.as_ref(), Some(&committed));
    assert_eq!(store.load(committed.number).expect("just committed").bytes("state").expect("of bytes"), data);
}

/// Makes the checksums of header, section table, end and sections those of what they cover, wherever they lie in the file.
fn put_checksums_right(bytes: &mut [u8]) {
    const HEADER_BYTES: usize = 128;
    const ENTRY_BYTES: usize = 64;
    if bytes.len() < HEADER_BYTES {
        return;
    }
    bytes[..8].copy_from_slice(b"MYNAHREV");
    bytes[80..112].copy_from_slice(&TOKENIZER);
    let number = |bytes: &[u8], at: usize| {
        let field: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(field)).unwrap_or(usize::MAX)
    };
    let sections = usize::from(bytes[12]).min((bytes.len() - HEADER_BYTES) / ENTRY_BYTES);
    let table = HEADER_BYTES..HEADER_BYTES + sections * ENTRY_BYTES;
    for at in table.clone().step_by(ENTRY_BYTES) {
        let start = number(bytes, at + 32).min(bytes.len());
        let end = start.saturating_add(number(bytes, at + 40)).min(bytes.len());
        let crc = crc32c(&[&bytes[start..end]]);
        bytes[at + 48..at + 52].copy_from_slice(&crc);
    }
    let length = (bytes.len() as u64).to_le_bytes();
    bytes[40..48].copy_from_slice(&length);
    let crc = crc32c(&[&bytes[table.clone()]]);
    bytes[112..116].copy_from_slice(&crc);
    let crc = crc32c(&[&bytes[..124]]);
    bytes[124..128].copy_from_slice(&crc);
    if let Some(end) = bytes.len().checked_sub(16).filter(|&end| end >= table.end) {
        let crc = crc32c(&[&bytes[..table.end]]);
        bytes[end..end + 8].copy_from_slice(b"MYNAHEND");
        bytes[end + 8..end + 12].copy_from_slice(&crc);
    }
}
