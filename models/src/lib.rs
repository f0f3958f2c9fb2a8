//! A quantized model file becomes logits.
//!
//! ```text
//! model file ─ weights ─► config ─► packed matrices (quant) ─► nn, families ─► forward ─► logits
//!                │                                                ▲
//!                ├─► tokenizer ─► ids ──── batch ─────────────────┤
//!                └─► chat_template ─► text      adapter ──────────┘
//! ```
//!
//! Files are hostile until they have been read into a checked plan; every fault is a typed error. Weights stay packed and
//! mapped. An adapter is a thin branch beside them, never merged. This crate does no learning, and keeps no state between
//! calls but what the caller hands in.
//!
//! ```no_run
//! use mynah_models::chat_template::{ChatTemplate, Message};
//! use mynah_models::config::ModelConfig;
//! use mynah_models::tokenizer::{ParseSpecial, Tokenizer};
//! use mynah_models::weights::Gguf;
//!
//! let gguf = Gguf::open("model.gguf".as_ref())?;
//! let config = ModelConfig::from_gguf(&gguf)?;
//! println!("{} layers of width {}", config.num_hidden_layers, config.hidden_size);
//!
//! let tokenizer = Tokenizer::from_gguf(&gguf)?;
//! let template = ChatTemplate::from_gguf(&gguf, &tokenizer)?;
//! let prompt = template.render(&[Message::user("What can a mynah do?")], true)?;
//! let ids = tokenizer.encode(&prompt, ParseSpecial::Yes);
//! assert_eq!(tokenizer.decode(&ids), prompt);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod adapter;
mod batch;
pub mod chat_template;
mod compute_error;
pub mod config;
mod device;
mod device_adapter;
pub mod error;
mod families;
#[cfg(feature = "gpu")]
mod gpu_device;
#[cfg(not(feature = "gpu"))]
#[path = "no_gpu_device.rs"]
mod gpu_device;
#[cfg(feature = "gpu")]
mod gpu_pace;
mod kernels;
mod load;
mod model;
mod nn;
pub mod ops;
mod precision;
pub mod projection;
pub mod quant;
mod tape;
pub mod tokenizer;
pub mod weights;

pub use adapter::{Adapter, AdapterError, AdapterLayout, BaseIdentity, LoraConfig, PairLayout, PeftAdapter};
pub use adapter::{read_peft, write_peft};
pub use batch::TokenBatch;
pub use chat_template::{ChatTemplate, Message, TemplateError};
pub use compute_error::ComputeError;
pub use config::{ModelConfig, RopePairing, RopeScaling};
pub use device::{ComputeDevice, GpuWork};
pub use device_adapter::DeviceAdapter;
pub use error::{FormatFault, LoadError};
pub use model::Model;
pub use nn::{KvCache, Stop};
pub use precision::Precision;
pub use projection::Projection;
pub use quant::{PackedMatrix, TensorType};
pub use tape::{Tape, TapeMemory};
pub use tokenizer::{ParseSpecial, Tokenizer, TokenizerError};
pub use weights::{Gguf, Metadata, TensorInfo};
