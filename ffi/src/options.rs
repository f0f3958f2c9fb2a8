//! Options: what a session is opened with, set one by one, so that more of them never change a layout.

use std::ffi::c_char;
use std::path::PathBuf;
use std::{ptr, slice};

use runtime::Precision as RuntimePrecision;
use runtime::store::StoreKey;
use runtime::{DeviceChoice, Session, SessionBuilder};

use crate::status::{Failure, Status};
use crate::text::text;
use crate::{guard, handle};

/// Where a session computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Device {
    /// The CPU.
    Cpu = 0,
    /// The GPU; where there is none, or the library was built without it, the CPU.
    Gpu = 1,
}

/// How exactly the CPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Precision {
    /// In bf16 and 8 bits where the processor has instructions for them.
    #[default]
    Fast = 0,
    /// In f32 on the weights as they are.
    Exact = 1,
}

/// How prompts and answers become the text that the model sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum PromptFormat {
    /// As Chat where the model has a chat template, else as Raw.
    #[default]
    Auto = 0,
    /// As a question and its answer in the model's chat template.
    Chat = 1,
    /// As they are: the prompt, one space, the answer.
    Raw = 2,
}

/// What a session is opened with. One thread at a time may use it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    model: Option<PathBuf>,
    store: Option<PathBuf>,
    store_key: Option<StoreKey>,
    device: DeviceChoice,
    precision: Precision,
    threads: u32,
    seed: u64,
    context_tokens: Option<u32>,
    pub(crate) prompt_format: PromptFormat,
}

impl Options {
    /// The settings of a session.
    pub(crate) fn builder(&self) -> Result<SessionBuilder, Failure> {
        let no_model = || Failure::new(Status::INVALID_ARGUMENT, "no model path is set");
        let model = self.model.clone().ok_or_else(no_model)?;
        let mut builder = Session::builder(model).device(self.device).threads(self.threads as usize).seed(self.seed);
        builder = builder.precision(match self.precision {
            Precision::Fast => RuntimePrecision::Fast,
            Precision::Exact => RuntimePrecision::Exact,
        });
        if let Some(store) = &self.store {
            builder = builder.store(store);
        }
        if let Some(key) = &self.store_key {
            builder = builder.store_key(key.clone());
        }
        if let Some(tokens) = self.context_tokens {
            builder = builder.context_tokens(tokens as usize);
        }
        Ok(builder)
    }
}

/// Makes options, all at their defaults. Free them with mynah_options_free.
///
/// # Safety
/// `out_options` is NULL or points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_create(out_options: *mut *mut Options) -> Status {
    // SAFETY: the caller promises NULL or a pointer that can be written.
    unsafe { handle::set(out_options, ptr::null_mut()) };
    guard::entry(|| {
        if out_options.is_null() {
            return Err(Failure::null("out_options"));
        }
        // SAFETY: as above.
        unsafe { handle::set(out_options, handle::give(Options::default())) };
        Ok(())
    })
}

/// Frees options. NULL does nothing. Sessions opened with them stay open.
///
/// # Safety
/// `options` is NULL, or came from mynah_options_create and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_free(options: *mut Options) {
    guard::entry(|| {
        // SAFETY: the caller promises NULL or live options that nobody uses any more.
        drop(unsafe { handle::take(options) });
        Ok(())
    });
}

/// Sets the model: the path of a GGUF file. There is no default.
///
/// # Safety
/// `options` is NULL or live. `path` has `path_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_model_path(
    options: *mut Options,
    path: *const c_char,
    path_len: usize,
) -> Status {
    // SAFETY: the caller promises live options and `path_len` bytes.
    unsafe { set(options, |options| &mut options.model, || Ok(Some(text(path, path_len, "path")?.into()))) }
}

/// Sets the folder that keeps what is taught and learned; it is made if it is not there. Default: none, nothing is
/// kept.
///
/// # Safety
/// `options` is NULL or live. `path` has `path_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_store_path(
    options: *mut Options,
    path: *const c_char,
    path_len: usize,
) -> Status {
    // SAFETY: the caller promises live options and `path_len` bytes.
    unsafe { set(options, |options| &mut options.store, || Ok(Some(text(path, path_len, "path")?.into()))) }
}

/// Sets the key that what is taught is sealed with: 32 bytes, which are copied, and wiped when the options and the sessions
/// opened with them are freed. A sealed store opens with its key only; without it, nothing can be had back. Default, and NULL
/// with a length of 0: no key, nothing is encrypted.
///
/// # Safety
/// `options` is NULL or live. `key` has `key_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_store_key(options: *mut Options, key: *const u8, key_len: usize) -> Status {
    let value = || match (key.is_null(), key_len) {
        (true, 0) => Ok(None),
        (true, _) => Err(Failure::null("key")),
        (false, length) => {
            // SAFETY: the caller promises `key_len` bytes.
            let key = StoreKey::from_slice(unsafe { slice::from_raw_parts(key, length) });
            let wrong = || Failure::new(Status::INVALID_ARGUMENT, format!("`key` has {length} bytes, expected 32"));
            key.ok_or_else(wrong).map(Some)
        }
    };
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.store_key, value) }
}

/// Sets where to compute, a mynah_device. Default: MYNAH_DEVICE_CPU.
///
/// # Safety
/// `options` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_device(options: *mut Options, device: i32) -> Status {
    let device = match device {
        _ if device == Device::Cpu as i32 => Ok(DeviceChoice::Cpu),
        _ if device == Device::Gpu as i32 => Ok(DeviceChoice::Gpu),
        _ => Err(unknown("device", device)),
    };
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.device, || device) }
}

/// Sets how exactly the CPU computes, a mynah_precision. Default: MYNAH_PRECISION_FAST.
///
/// # Safety
/// `options` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_precision(options: *mut Options, precision: i32) -> Status {
    let found = [Precision::Fast, Precision::Exact].into_iter().find(|known| *known as i32 == precision);
    let found = found.ok_or_else(|| unknown("precision", precision));
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.precision, || found) }
}

/// Sets how prompts are put, a mynah_prompt_format. Default: MYNAH_PROMPT_FORMAT_AUTO.
///
/// # Safety
/// `options` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_prompt_format(options: *mut Options, prompt_format: i32) -> Status {
    let all = [PromptFormat::Auto, PromptFormat::Chat, PromptFormat::Raw];
    let found = all.into_iter().find(|format| *format as i32 == prompt_format);
    let found = found.ok_or_else(|| unknown("prompt_format", prompt_format));
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.prompt_format, || found) }
}

/// Sets the number of threads to compute on. Default, and 0: one per core.
///
/// # Safety
/// `options` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_threads(options: *mut Options, threads: u32) -> Status {
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.threads, || Ok(threads)) }
}

/// Sets where the randomness of adapters and learning starts. Default 0. Sampling has a seed of its own.
///
/// # Safety
/// `options` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_seed(options: *mut Options, seed: u64) -> Status {
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.seed, || Ok(seed)) }
}

/// Sets how many tokens prompt and answer can have together, at most what the model was made for. Default, and 0: 2048.
///
/// # Safety
/// `options` is NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_options_set_context_tokens(options: *mut Options, context_tokens: u32) -> Status {
    let tokens = Some(context_tokens).filter(|tokens| *tokens > 0);
    // SAFETY: the caller promises live options.
    unsafe { set(options, |options| &mut options.context_tokens, || Ok(tokens)) }
}

/// Sets one of the options; it stays as it is if there is no value for it.
///
/// # Safety
/// `options` is NULL or live, and nobody else uses it.
unsafe fn set<T>(
    options: *mut Options,
    option: impl FnOnce(&mut Options) -> &mut T,
    value: impl FnOnce() -> Result<T, Failure>,
) -> Status {
    guard::entry(|| {
        // SAFETY: the caller promises NULL or live options.
        let options = unsafe { handle::borrow_mut(options, "options") }?;
        *option(options) = value()?;
        Ok(())
    })
}

fn unknown(name: &str, value: i32) -> Failure {
    Failure::new(Status::INVALID_ARGUMENT, format!("{value} is no `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_one_by_one() {
        let mut options = ptr::null_mut();
        let path = "model.gguf";
        // SAFETY: `options` is live between create and free, and the text has its length.
        let made = unsafe {
            assert_eq!(mynah_options_create(&raw mut options), Status::OK);
            assert_eq!(mynah_options_set_model_path(options, path.as_ptr().cast(), path.len()), Status::OK);
            let key = [7; 32];
            assert_eq!(mynah_options_set_store_key(options, key.as_ptr(), 31), Status::INVALID_ARGUMENT);
            assert_eq!(mynah_options_set_store_key(options, ptr::null(), 32), Status::INVALID_ARGUMENT);
            assert_eq!(mynah_options_set_store_key(options, key.as_ptr(), 32), Status::OK);
            assert_eq!(mynah_options_set_device(options, 1), Status::OK);
            assert_eq!(mynah_options_set_device(options, 9), Status::INVALID_ARGUMENT);
            assert_eq!(mynah_options_set_precision(options, 1), Status::OK);
            assert_eq!(mynah_options_set_precision(options, 2), Status::INVALID_ARGUMENT);
            assert_eq!(mynah_options_set_prompt_format(options, 2), Status::OK);
            assert_eq!(mynah_options_set_prompt_format(options, -1), Status::INVALID_ARGUMENT);
            assert_eq!(mynah_options_set_threads(options, 2), Status::OK);
            assert_eq!(mynah_options_set_seed(options, 7), Status::OK);
            assert_eq!(mynah_options_set_context_tokens(options, 0), Status::OK);
            assert_eq!(mynah_options_set_seed(ptr::null_mut(), 7), Status::INVALID_ARGUMENT);
            let made = handle::borrow(options, "options").unwrap().clone();
            mynah_options_free(options);
            mynah_options_free(ptr::null_mut());
            made
        };
        assert_eq!((made.model, made.store, made.store_key.is_some()), (Some(path.into()), None, true));
        assert_eq!((made.device, made.threads, made.seed), (DeviceChoice::Gpu, 2, 7));
        assert_eq!((made.context_tokens, made.prompt_format), (None, PromptFormat::Raw));
        assert_eq!(made.precision, Precision::Exact);
    }
}
