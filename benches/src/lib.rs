//! What the measuring programs share: how a time is summed up, what machine it was taken on, and what there is to measure.
//!
//! One program a question, in `src/bin/`; README.md beside this crate lists them. Nothing here is part of the product, and all
//! of it goes through the public interfaces of `mynah` and `mynah-models`.

pub mod arguments;
pub mod corpus;
pub mod machine;
pub mod model;
pub mod ops;
pub mod peaks;
pub mod peers;
pub mod race;
pub mod report;
pub mod spread;
pub mod steps;
pub mod store;
pub mod worker;
