//! Text over the border: pointer and length in, a caller's buffer out.

use std::ffi::c_char;
use std::{ptr, slice, str};

use crate::status::{Failure, Status};

/// The text at a pointer; NULL with length 0 is the empty text.
///
/// # Safety
/// `pointer` is NULL or is good for reading `len` bytes that nobody changes during `'a`.
///
/// # Errors
/// [`Status::INVALID_ARGUMENT`] and [`Status::INVALID_UTF8`], with the argument's `name`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, len: usize, name: &str) -> Result<&'a str, Failure> {
    if len == 0 {
        return Ok("");
    }
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    if isize::try_from(len).is_err() {
        return Err(Failure::new(Status::INVALID_ARGUMENT, format!("`{name}` cannot have {len} bytes")));
    }
    // SAFETY: not NULL, so the caller promises `len` readable bytes for `'a`; `len` fits an isize, and bytes need no
    // alignment.
    let bytes = unsafe { slice::from_raw_parts(pointer.cast::<u8>(), len) };
    str::from_utf8(bytes).map_err(|error| {
        let message = format!("`{name}` is not UTF-8 from byte {} on", error.valid_up_to());
        Failure::new(Status::INVALID_UTF8, message)
    })
}

/// Copies as many whole characters as fit before a NUL, and gives the bytes of all of them.
///
/// # Safety
/// `buffer` is NULL or is good for writing `buffer_len` bytes.
pub(crate) unsafe fn copy_out(text: &str, buffer: *mut c_char, buffer_len: usize) -> usize {
    if !buffer.is_null() && buffer_len > 0 {
        let fitting = text.floor_char_boundary(buffer_len - 1);
        // SAFETY: `fitting` is at most the text's length and less than the buffer's, which the caller promises; the
        // text is ours, so the two do not overlap.
        unsafe {
            ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), buffer, fitting);
            buffer.add(fitting).write(0);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8]) -> Result<&str, Failure> {
        // SAFETY: pointer and length are one slice's.
        unsafe { text(bytes.as_ptr().cast(), bytes.len(), "prompt") }
    }

    #[test]
    fn only_utf8_is_text() {
        assert_eq!(check(b"").as_deref(), Ok(""));
        assert_eq!(check("grün\0".as_bytes()).as_deref(), Ok("grün\0"));
        let failure = check(b"gr\xfcn").unwrap_err();
        assert_eq!(
            (failure.status, failure.message.as_str()),
            (Status::INVALID_UTF8, "`prompt` is not UTF-8 from byte 2 on")
        );
    }

    #[test]
    fn null_is_the_empty_text_only_without_length() {
        // SAFETY: NULL is allowed with any length.
        let read = |len| unsafe { text(ptr::null(), len, "prompt") };
        assert_eq!(read(0), Ok(""));
        assert_eq!(read(1), Err(Failure::null("prompt")));
    }

    #[test]
    fn an_absurd_length_is_refused_unread() {
        let byte = b'a';
        // SAFETY: nothing is read, as the length is refused.
        let failure = unsafe { text((&raw const byte).cast(), usize::MAX, "prompt") }.unwrap_err();
        assert_eq!(failure.status, Status::INVALID_ARGUMENT);
    }
}
