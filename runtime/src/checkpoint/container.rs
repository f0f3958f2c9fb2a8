//! One revision file: sections in, checked bytes out, and back.

use std::fmt;
use std::fs::File;
use std::io;

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

use super::{Draft, Identity, RevisionInfo, RevisionKind, Section, SectionData};
use crate::files::{Files, read_up_to, write_all_at};

/// CRC32C by tables of 16 KiB: revisions are tens of megabytes, and committed after every step.
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

pub(super) const FORMAT_VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"MYNAHREV";
const END_MAGIC: [u8; 8] = *b"MYNAHEND";
const HEADER_BYTES: usize = 128;
const ENTRY_BYTES: usize = 64;
const END_BYTES: u64 = 16;
const NAME_BYTES: usize = 32;
const ALIGNMENT: u64 = 64;
const MAX_SECTIONS: usize = 64;
/// Bytes read or written at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why a file is not a sound revision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is too short to hold a header.
    TooShort,
    /// It does not begin like a revision.
    NoMagic,
    /// Its header fails its checksum.
    Header,
    /// Its length is not the one it was written with.
    Length {
        /// Bytes it was written with.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// A field of its header has no meaning.
    Field(&'static str),
    /// Its section table fails its checksum.
    Table,
    /// The entry of a section breaks a rule.
    Entry {
        /// Position in the table.
        position: usize,
        /// The rule.
        rule: &'static str,
    },
    /// Its end is missing.
    End,
    /// A section fails its checksum.
    Section(String),
    /// What stands between two sections is not zeros.
    Padding,
    /// Its number is not the one in its name.
    Name {
        /// The number inside.
        number: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("it is too short for a revision"),
            Self::NoMagic => f.write_str("it does not begin like a revision"),
            Self::Header => f.write_str("its header fails the checksum"),
            Self::Length { expected, found } => {
                write!(f, "it has {found} bytes and was written with {expected}")
            }
            Self::Field(field) => write!(f, "its {field} has no meaning"),
            Self::Table => f.write_str("its section table fails the checksum"),
            Self::Entry { position, rule } => write!(f, "section {position}: {rule}"),
            Self::End => f.write_str("its end is missing"),
            Self::Section(name) => write!(f, "section `{name}` fails the checksum"),
            Self::Padding => f.write_str("bytes between its sections were changed"),
            Self::Name { number } => write!(f, "it holds revision {number}"),
        }
    }
}

/// Why a file could not be read as a revision.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Newer(u16),
    Fault(Fault),
    OutOfMemory(u64),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Where a section lies, checked against the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    name: String,
    offset: u64,
    len_bytes: u64,
    crc: u32,
    is_f32: bool,
}

/// A revision file of which everything but the sections is checked.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) info: RevisionInfo,
    places: Vec<Place>,
}

/// A rule that the sections of `draft` break, with the section.
pub(super) fn broken_rule<'a>(draft: &Draft<'a>) -> Option<(&'a str, &'static str)> {
    let mut names = std::collections::BTreeSet::new();
    for (position, &(name, _)) in draft.sections.iter().enumerate() {
        if position == MAX_SECTIONS {
            return Some((name, "a revision has at most 64 sections"));
        }
        if !is_name(name.as_bytes()) {
            return Some((name, "a name is 1 to 32 of a-z, 0-9 and _"));
        }
        if !names.insert(name) {
            return Some((name, "another section has this name"));
        }
    }
    None
}

/// Length of the file that `draft` makes.
pub(super) fn file_bytes(draft: &Draft<'_>) -> u64 {
    let front = (HEADER_BYTES + draft.sections.len() * ENTRY_BYTES) as u64;
    let sections = draft.sections.iter();
    let sections = sections.map(|(_, data)| align(data.len_bytes()));
    front + sections.sum::<u64>() + END_BYTES
}

/// Writes `draft` as revision `number` to the empty file `file`.
pub(super) fn write(
    files: &dyn Files,
    file: &File,
    number: u64,
    identity: &Identity,
    draft: &Draft<'_>,
) -> io::Result<RevisionInfo> {
    let info = RevisionInfo {
        number,
        kind: draft.kind,
        parent: draft.parent,
        created_unix_s: draft.created_unix_s,
        bytes: file_bytes(draft),
        identity: *identity,
    };
    let mut places = Vec::with_capacity(draft.sections.len());
    let mut offset = (HEADER_BYTES + draft.sections.len() * ENTRY_BYTES) as u64;
    for &(name, data) in draft.sections {
        let crc = write_section(files, file, offset, data)?;
        let len_bytes = data.len_bytes();
        places.push(Place {
            name: name.to_owned(),
            offset,
            len_bytes,
            crc,
            is_f32: matches!(data, SectionData::F32(_)),
        });
        let padding = (align(len_bytes) - len_bytes) as usize;
        let zeros = &[0; ALIGNMENT as usize][..padding];
        write_all_at(files, file, offset + len_bytes, zeros)?;
        offset += align(len_bytes);
    }
    let front = encode_front(&info, &places);
    let mut end = [0; END_BYTES as usize];
    end[..8].copy_from_slice(&END_MAGIC);
    end[8..12].copy_from_slice(&CRC32C.checksum(&front).to_le_bytes());
    write_all_at(files, file, offset, &end)?;
    write_all_at(files, file, 0, &front)?;
    Ok(info)
}

fn write_section(files: &dyn Files, file: &File, mut offset: u64, data: SectionData<'_>) -> io::Result<u32> {
    let mut digest = CRC32C.digest();
    let mut put = |digest: &mut Digest<'_, u32, Table<16>>, bytes: &[u8]| {
        digest.update(bytes);
        let written = write_all_at(files, file, offset, bytes);
        offset += bytes.len() as u64;
        written
    };
    match data {
        SectionData::Bytes(bytes) => {
            for chunk in bytes.chunks(CHUNK_BYTES) {
                put(&mut digest, chunk)?;
            }
        }
        SectionData::F32(values) => {
            let mut bytes = Vec::with_capacity(CHUNK_BYTES);
            for chunk in values.chunks(CHUNK_BYTES / 4) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                put(&mut digest, &bytes)?;
            }
        }
    }
    Ok(digest.finalize())
}

/// Header and section table.
fn encode_front(info: &RevisionInfo, places: &[Place]) -> Vec<u8> {
    let mut front = vec![0; HEADER_BYTES];
    for place in places {
        let mut entry = [0; ENTRY_BYTES];
        entry[..place.name.len()].copy_from_slice(place.name.as_bytes());
        entry[32..40].copy_from_slice(&place.offset.to_le_bytes());
        entry[40..48].copy_from_slice(&place.len_bytes.to_le_bytes());
        entry[48..52].copy_from_slice(&place.crc.to_le_bytes());
        entry[52] = u8::from(place.is_f32);
        front.extend_from_slice(&entry);
    }
    let table_crc = CRC32C.checksum(&front[HEADER_BYTES..]);
    let header = &mut front[..HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[10] = match info.kind {
        RevisionKind::Step => 1,
        RevisionKind::Published => 2,
    };
    header[12..16].copy_from_slice(&(places.len() as u32).to_le_bytes());
    header[16..24].copy_from_slice(&info.number.to_le_bytes());
    header[24..32].copy_from_slice(&info.parent.unwrap_or(0).to_le_bytes());
    header[32..40].copy_from_slice(&info.created_unix_s.to_le_bytes());
    header[40..48].copy_from_slice(&info.bytes.to_le_bytes());
    header[48..80].copy_from_slice(&info.identity.base_digest);
    header[80..112].copy_from_slice(&info.identity.tokenizer_digest);
    header[112..116].copy_from_slice(&table_crc.to_le_bytes());
    let crc = CRC32C.checksum(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    front
}

impl Container {
    /// Reads and checks header, table and end of `file`.
    pub(super) fn open(files: &dyn Files, file: &File) -> Result<Self, ReadError> {
        let file_bytes = crate::files::retry(|| files.len_bytes(file))?;
        let mut front = vec![0; HEADER_BYTES];
        if read_up_to(files, file, 0, &mut front)? < HEADER_BYTES {
            return Err(Fault::TooShort.into());
        }
        let (info, table_crc, count) = parse_header(&front, file_bytes)?;
        front.resize(HEADER_BYTES + count * ENTRY_BYTES, 0);
        let table = &mut front[HEADER_BYTES..];
        let read = read_up_to(files, file, HEADER_BYTES as u64, table)?;
        if read < table.len() || CRC32C.checksum(table) != table_crc {
            return Err(Fault::Table.into());
        }
        let places = parse_table(&front[HEADER_BYTES..], file_bytes)?;
        let mut end = [0; END_BYTES as usize];
        read_up_to(files, file, file_bytes - END_BYTES, &mut end)?;
        let mut expected = [0; END_BYTES as usize];
        expected[..8].copy_from_slice(&END_MAGIC);
        expected[8..12].copy_from_slice(&CRC32C.checksum(&front).to_le_bytes());
        if end != expected {
            return Err(Fault::End.into());
        }
        Ok(Self { info, places })
    }

    /// Reads every section and checks it; keeps nothing.
    pub(super) fn verify(&self, files: &dyn Files, file: &File) -> Result<(), ReadError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        for place in &self.places {
            let mut digest = CRC32C.digest();
            let mut at = 0;
            while at < place.len_bytes {
                let now = chunk.len().min((place.len_bytes - at) as usize);
                let read = read_up_to(files, file, place.offset + at, &mut chunk[..now])?;
                digest.update(&chunk[..read]);
                at += now as u64;
            }
            check_section(files, file, place, digest.finalize())?;
        }
        Ok(())
    }

    /// Reads every section.
    pub(super) fn load(&self, files: &dyn Files, file: &File) -> Result<Vec<(String, Section)>, ReadError> {
        let section = |place: &Place| Ok((place.name.clone(), read_section(files, file, place)?));
        self.places.iter().map(section).collect()
    }

    /// Reads the section `name`, if there is one.
    pub(super) fn section(&self, files: &dyn Files, file: &File, name: &str) -> Result<Option<Section>, ReadError> {
        let place = self.places.iter().find(|place| place.name == name);
        place.map(|place| read_section(files, file, place)).transpose()
    }
}

fn read_section(files: &dyn Files, file: &File, place: &Place) -> Result<Section, ReadError> {
    let mut bytes = Vec::new();
    let len_bytes =
        usize::try_from(place.len_bytes).ok().filter(|&len_bytes| bytes.try_reserve_exact(len_bytes).is_ok());
    let Some(len_bytes) = len_bytes else {
        return Err(ReadError::OutOfMemory(place.len_bytes));
    };
    bytes.resize(len_bytes, 0);
    let read = read_up_to(files, file, place.offset, &mut bytes)?;
    check_section(files, file, place, CRC32C.checksum(&bytes[..read]))?;
    Ok(match place.is_f32 {
        true => Section::F32(decode_f32s(&bytes)),
        false => Section::Bytes(bytes),
    })
}

fn check_section(files: &dyn Files, file: &File, place: &Place, crc: u32) -> Result<(), ReadError> {
    if crc != place.crc {
        return Err(Fault::Section(place.name.clone()).into());
    }
    let mut padding = [0; ALIGNMENT as usize];
    let end = place.offset + place.len_bytes;
    let padding = &mut padding[..(align(place.len_bytes) - place.len_bytes) as usize];
    read_up_to(files, file, end, padding)?;
    match padding.iter().all(|&byte| byte == 0) {
        true => Ok(()),
        false => Err(Fault::Padding.into()),
    }
}

fn decode_f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

/// Checks the header of a file of `file_bytes` bytes; returns table CRC and number of sections with it.
fn parse_header(header: &[u8], file_bytes: u64) -> Result<(RevisionInfo, u32, usize), ReadError> {
    if header[..8] != MAGIC {
        return Err(Fault::NoMagic.into());
    }
    if u32_at(header, 124) != CRC32C.checksum(&header[..124]) {
        return Err(Fault::Header.into());
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version != FORMAT_VERSION || header[11] != 0 {
        return Err(ReadError::Newer(version));
    }
    let expected = u64_at(header, 40);
    if expected != file_bytes {
        let found = file_bytes;
        return Err(Fault::Length { expected, found }.into());
    }
    let count = u32_at(header, 12) as usize;
    let front_bytes = (HEADER_BYTES + count.min(MAX_SECTIONS) * ENTRY_BYTES) as u64;
    if count > MAX_SECTIONS || file_bytes < front_bytes + END_BYTES {
        return Err(Fault::Field("number of sections").into());
    }
    let kind = match header[10] {
        1 => RevisionKind::Step,
        2 => RevisionKind::Published,
        _ => return Err(Fault::Field("kind").into()),
    };
    let number = u64_at(header, 16);
    if number == 0 {
        return Err(Fault::Field("number").into());
    }
    let info = RevisionInfo {
        number,
        kind,
        parent: Some(u64_at(header, 24)).filter(|&parent| parent != 0),
        created_unix_s: u64_at(header, 32),
        bytes: file_bytes,
        identity: Identity { base_digest: digest_at(header, 48), tokenizer_digest: digest_at(header, 80) },
    };
    Ok((info, u32_at(header, 112), count))
}

/// Checks that the sections in `table` fill a file of `file_bytes` bytes exactly.
fn parse_table(table: &[u8], file_bytes: u64) -> Result<Vec<Place>, Fault> {
    let mut places: Vec<Place> = Vec::with_capacity(table.len() / ENTRY_BYTES);
    let mut next = (HEADER_BYTES + table.len()) as u64;
    for (position, entry) in table.chunks_exact(ENTRY_BYTES).enumerate() {
        let broken = |rule| Fault::Entry { position, rule };
        let name = &entry[..NAME_BYTES];
        let name_bytes = name.iter().position(|&byte| byte == 0);
        let (name, rest) = name.split_at(name_bytes.unwrap_or(NAME_BYTES));
        if !is_name(name) || rest.iter().any(|&byte| byte != 0) {
            return Err(broken("its name has no meaning"));
        }
        let name = String::from_utf8_lossy(name).into_owned();
        if places.iter().any(|place| place.name == name) {
            return Err(broken("its name is taken"));
        }
        let is_f32 = match entry[52] {
            0 => false,
            1 => true,
            _ => return Err(broken("its encoding has no meaning")),
        };
        let offset = u64_at(entry, 32);
        let len_bytes = u64_at(entry, 40);
        if is_f32 && !len_bytes.is_multiple_of(4) {
            return Err(broken("its length is not a whole number of values"));
        }
        let end = offset.checked_add(len_bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        let Some(end) = end.filter(|&end| offset == next && end <= file_bytes) else {
            return Err(broken("it does not follow the section before it"));
        };
        next = end;
        places.push(Place { name, offset, len_bytes, crc: u32_at(entry, 48), is_f32 });
    }
    match next.checked_add(END_BYTES) == Some(file_bytes) {
        true => Ok(places),
        false => Err(Fault::Field("length")),
    }
}

fn is_name(name: &[u8]) -> bool {
    let is_allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (1..=NAME_BYTES).contains(&name.len()) && name.iter().all(is_allowed)
}

fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn digest_at(bytes: &[u8], at: usize) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(&bytes[at..at + 32]);
    digest
}
