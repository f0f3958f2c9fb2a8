//! Pointers over the border: every cast of an object and of a struct with a layout.

use std::mem::size_of;
use std::ptr;

use crate::status::{Failure, Status};

/// Makes an object of the caller's.
pub(crate) fn give<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Takes an object back; nothing for NULL.
///
/// # Safety
/// `pointer` is NULL, or came from [`give`], was not taken back yet, and nobody uses it any more.
pub(crate) unsafe fn take<T>(pointer: *mut T) -> Option<Box<T>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: `give` made it from a box, and the caller gives its ownership back once.
    Some(unsafe { Box::from_raw(pointer) })
}

/// An object of the caller's, shared.
///
/// # Safety
/// `pointer` is NULL, or came from [`give`] and is not taken back during `'a`, nor borrowed by [`borrow_mut`].
///
/// # Errors
/// [`Status::INVALID_ARGUMENT`] for NULL, with the argument's `name`.
pub(crate) unsafe fn borrow<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: NULL, or a live object of `give`, by the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::null(name))
}

/// An object of the caller's, to be changed.
///
/// # Safety
/// `pointer` is NULL, or came from [`give`] and nobody else uses it during `'a`.
///
/// # Errors
/// [`Status::INVALID_ARGUMENT`] for NULL, with the argument's `name`.
pub(crate) unsafe fn borrow_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: NULL, or a live object of `give` that is ours alone, by the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::null(name))
}

/// Sets a caller's variable, if there is one.
///
/// # Safety
/// `out` is NULL or good for writing a `T`.
pub(crate) unsafe fn set<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not NULL, so the caller promises that it can be written.
        unsafe { out.write(value) };
    }
}

/// A struct with a layout that both sides know. Fields are only added at its end.
///
/// # Safety
/// The type is `repr(C)`, starts with `struct_size: u32`, has no padding, and every field may be zero.
pub(crate) unsafe trait Pod: Copy {
    /// Its bytes in the first version that had it, the least that a caller can know of.
    const FIRST_SIZE_BYTES: usize;
}

/// No struct will be larger: what is, is an uninitialised `struct_size`.
const MAX_SIZE_BYTES: usize = 4096;

/// What a caller filled in; zeros for NULL, and for fields that its version does not know.
///
/// # Safety
/// `pointer` is NULL, or has as many readable bytes as its first field says.
///
/// # Errors
/// [`Status::INVALID_ARGUMENT`] for an impossible `struct_size`, and for fields of a later version that are not zero.
pub(crate) unsafe fn read_pod<T: Pod>(pointer: *const T, name: &str) -> Result<T, Failure> {
    // SAFETY: a Pod may be all zeros.
    let mut value = unsafe { std::mem::zeroed::<T>() };
    if pointer.is_null() {
        return Ok(value);
    }
    // SAFETY: not NULL, so the caller promises as many bytes as the first field says.
    let size_bytes = unsafe { checked_size(pointer, name) }?;
    let known = size_bytes.min(size_of::<T>());
    let bytes = pointer.cast::<u8>();
    // SAFETY: the rest lies within the caller's `size_bytes`.
    let is_zero = (known..size_bytes).all(|at| unsafe { bytes.add(at).read() } == 0);
    if !is_zero {
        let message = format!("`{name}` has settings that this version does not know, beyond its {known} bytes");
        return Err(Failure::new(Status::INVALID_ARGUMENT, message));
    }
    // SAFETY: both sides have `known` bytes; the copy is ours, and a Pod may hold any numbers that C can put into it.
    unsafe { ptr::copy_nonoverlapping(bytes, (&raw mut value).cast::<u8>(), known) };
    Ok(value)
}

/// Sets all but the first field of a caller's struct to zero; nothing for NULL.
///
/// # Safety
/// `out` is NULL, or has as many writable bytes as its first field says.
///
/// # Errors
/// [`Status::INVALID_ARGUMENT`] for an impossible `struct_size`; nothing is written then.
pub(crate) unsafe fn clear_pod<T: Pod>(out: *mut T, name: &str) -> Result<(), Failure> {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: not NULL, so the caller promises as many bytes as the first field says.
    let size_bytes = unsafe { checked_size(out, name) }?;
    // SAFETY: the bytes after the first field lie within the caller's `size_bytes`.
    unsafe { ptr::write_bytes(out.cast::<u8>().add(size_of::<u32>()), 0, size_bytes - size_of::<u32>()) };
    Ok(())
}

/// Fills a caller's struct as far as the caller knows its fields, and leaves the first one as it is; nothing for NULL.
///
/// # Safety
/// `out` is NULL, or has as many writable bytes as its first field says.
///
/// # Errors
/// [`Status::INVALID_ARGUMENT`] for an impossible `struct_size`; nothing is written then.
pub(crate) unsafe fn set_pod<T: Pod>(out: *mut T, value: &T, name: &str) -> Result<(), Failure> {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: not NULL, so the caller promises as many bytes as the first field says.
    let size_bytes = unsafe { checked_size(out, name) }?;
    let (start, end) = (size_of::<u32>(), size_bytes.min(size_of::<T>()));
    let from = ptr::from_ref(value).cast::<u8>();
    // SAFETY: both sides have `end` bytes; `value` has no padding, and is borrowed, so the two do not overlap.
    unsafe { ptr::copy_nonoverlapping(from.add(start), out.cast::<u8>().add(start), end - start) };
    Ok(())
}

/// The first field, if it can be true.
///
/// # Safety
/// `pointer` is good for reading a `u32`.
unsafe fn checked_size<T: Pod>(pointer: *const T, name: &str) -> Result<usize, Failure> {
    // SAFETY: the caller promises a readable u32; `read_unaligned` asks for no more.
    let size_bytes = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    if (T::FIRST_SIZE_BYTES..=MAX_SIZE_BYTES).contains(&size_bytes) {
        return Ok(size_bytes);
    }
    let message = format!("struct_size of `{name}` is {size_bytes}, its first version has {}", T::FIRST_SIZE_BYTES);
    Err(Failure::new(Status::INVALID_ARGUMENT, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    #[repr(C)]
    struct Pair {
        struct_size: u32,
        left: u32,
        right: u64,
    }

    // SAFETY: repr(C), 4 + 4 + 8 bytes, numbers only.
    unsafe impl Pod for Pair {
        const FIRST_SIZE_BYTES: usize = 8;
    }

    /// What a caller of a later version has.
    #[repr(C)]
    struct Later {
        pair: Pair,
        new: u64,
    }

    fn later(new: u64) -> Later {
        Later { pair: Pair { struct_size: 24, left: 1, right: 2 }, new }
    }

    #[test]
    fn an_object_goes_out_and_comes_back() {
        let pointer = give(String::from("a"));
        // SAFETY: `pointer` is live until `take`, and used by one at a time.
        unsafe {
            borrow_mut(pointer, "it").unwrap().push('b');
            assert_eq!(borrow(pointer, "it").unwrap(), "ab");
            assert_eq!(take(pointer).as_deref().map(String::as_str), Some("ab"));
            assert!(take(ptr::null_mut::<String>()).is_none());
            assert_eq!(borrow(ptr::null::<String>(), "it"), Err(Failure::null("it")));
        }
    }

    #[test]
    fn an_older_caller_means_zeros() {
        let mut pair = Pair { struct_size: 8, left: 1, right: 2 };
        // SAFETY: `pair` has more than the 8 bytes that it claims.
        unsafe {
            assert_eq!(read_pod(&raw const pair, "pair"), Ok(Pair { struct_size: 8, left: 1, right: 0 }));
            set_pod(&raw mut pair, &Pair { struct_size: 16, left: 3, right: 4 }, "pair").unwrap();
            assert_eq!(pair, Pair { struct_size: 8, left: 3, right: 2 });
            clear_pod(&raw mut pair, "pair").unwrap();
            assert_eq!(pair, Pair { struct_size: 8, left: 0, right: 2 });
            assert_eq!(read_pod(ptr::null::<Pair>(), "pair"), Ok(Pair { struct_size: 0, left: 0, right: 0 }));
        }
    }

    #[test]
    fn a_later_caller_is_understood_unless_it_asks_for_more() {
        let read = |later: &Later| {
            // SAFETY: `later` has the 24 bytes that it claims.
            unsafe { read_pod(ptr::from_ref(later).cast::<Pair>(), "pair") }
        };
        assert_eq!(read(&later(0)), Ok(later(0).pair));
        assert_eq!(read(&later(1)).unwrap_err().status, Status::INVALID_ARGUMENT);
        let mut out = later(7);
        // SAFETY: `out` has the 24 bytes that it claims.
        unsafe { clear_pod((&raw mut out).cast::<Pair>(), "pair") }.unwrap();
        assert_eq!((out.pair, out.new), (Pair { struct_size: 24, left: 0, right: 0 }, 0));
    }

    #[test]
    fn an_impossible_size_is_refused() {
        for struct_size in [0, 7, 4097, u32::MAX] {
            let mut pair = Pair { struct_size, left: 1, right: 2 };
            // SAFETY: only the first field is read, as it is refused.
            unsafe {
                assert!(read_pod(&raw const pair, "pair").is_err());
                assert!(clear_pod(&raw mut pair, "pair").is_err());
            }
            assert_eq!(pair, Pair { struct_size, left: 1, right: 2 });
        }
    }
}
