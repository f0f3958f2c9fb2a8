#![doc = include_str!("FORMAT.md")]

mod container;
mod error;
mod store;
#[cfg(test)]
mod tests;

pub use container::Fault;
pub use error::CheckpointError;
pub(crate) use store::number_in as revision_number;
pub use store::{InvalidRevision, Keep, RevisionReport, RevisionStore};

/// What a store of revisions belongs to. Adapters fit one base model and token ids one tokenizer; both are named by the
/// SHA-256 of their file or definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Of the base model.
    pub base_digest: [u8; 32],
    /// Of the tokenizer.
    pub tokenizer_digest: [u8; 32],
}

/// Why a revision was committed, which decides how long it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RevisionKind {
    /// In the middle of learning, so that a kill loses one step at most.
    Step,
    /// At the end of a learning run: a state to serve, and to go back to.
    Published,
}

/// What is known of a revision without reading its sections.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RevisionInfo {
    /// Its number, increasing from 1.
    pub number: u64,
    /// Why it was committed.
    pub kind: RevisionKind,
    /// The revision it came from.
    pub parent: Option<u64>,
    /// When it was committed, in seconds since 1970 (UTC).
    pub created_unix_s: u64,
    /// Length of its file in bytes.
    pub bytes: u64,
    /// What it belongs to.
    pub identity: Identity,
}

/// A revision to be committed; its number is given by the store.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// Why.
    pub kind: RevisionKind,
    /// The revision it came from.
    pub parent: Option<u64>,
    /// Now, in seconds since 1970 (UTC).
    pub created_unix_s: u64,
    /// The sections, in the order they are stored. Names are 1 to 32 of `a`-`z`, `0`-`9`, `_`, no two alike; at most 64.
    pub sections: &'a [(&'a str, SectionData<'a>)],
}

/// The content of a section to be committed.
#[derive(Debug, Clone, Copy)]
pub enum SectionData<'a> {
    /// Bytes, as they are.
    Bytes(&'a [u8]),
    /// Numbers, stored little-endian.
    F32(&'a [f32]),
}

impl SectionData<'_> {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::F32(values) => 4 * values.len() as u64,
        }
    }
}

/// A revision that was read, every checksum right.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    info: RevisionInfo,
    sections: Vec<(String, Section)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Section {
    Bytes(Vec<u8>),
    F32(Vec<f32>),
}

impl Section {
    fn as_data(&self) -> SectionData<'_> {
        match self {
            Self::Bytes(bytes) => SectionData::Bytes(bytes),
            Self::F32(values) => SectionData::F32(values),
        }
    }
}

impl Revision {
    /// What it is.
    pub fn info(&self) -> &RevisionInfo {
        &self.info
    }

    /// The names of its sections, in stored order.
    pub fn section_names(&self) -> impl Iterator<Item = &str> {
        self.sections.iter().map(|(name, _)| name.as_str())
    }

    /// The section `name`, which was committed as bytes.
    ///
    /// # Errors
    /// [`CheckpointError::NoSection`] if there is none, or it holds numbers.
    pub fn bytes(&self, name: &str) -> Result<&[u8], CheckpointError> {
        match self.section(name) {
            Some(Section::Bytes(bytes)) => Ok(bytes),
            _ => Err(self.no_section(name)),
        }
    }

    /// The section `name`, which was committed as numbers.
    ///
    /// # Errors
    /// [`CheckpointError::NoSection`] if there is none, or it holds bytes.
    pub fn f32s(&self, name: &str) -> Result<&[f32], CheckpointError> {
        match self.section(name) {
            Some(Section::F32(values)) => Ok(values),
            _ => Err(self.no_section(name)),
        }
    }

    /// As [`Revision::f32s`], without a copy; the section is empty afterwards.
    ///
    /// # Errors
    /// As [`Revision::f32s`].
    pub fn take_f32s(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let mut sections = self.sections.iter_mut();
        match sections.find(|(found, _)| found == name) {
            Some((_, Section::F32(values))) => Ok(std::mem::take(values)),
            _ => Err(self.no_section(name)),
        }
    }

    fn section(&self, name: &str) -> Option<&Section> {
        let mut sections = self.sections.iter();
        let found = sections.find(|(found, _)| found == name);
        found.map(|(_, section)| section)
    }

    fn no_section(&self, name: &str) -> CheckpointError {
        CheckpointError::NoSection { number: self.info.number, name: name.to_owned() }
    }
}
