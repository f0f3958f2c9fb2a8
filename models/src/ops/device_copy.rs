//! Room for a device's copy of something that lives on the host.

use std::any::{Any, type_name};
use std::fmt;
use std::sync::OnceLock;

/// A copy made at first use, of whatever type the device keeps. One model lives on one device, so there is one copy.
#[derive(Default)]
pub(crate) struct DeviceCopy(OnceLock<Box<dyn Any + Send + Sync>>);

impl DeviceCopy {
    /// The copy that `upload` made at the first call.
    ///
    /// # Panics
    /// If called for two types of copies: a mistake of ours.
    pub(crate) fn get<T: Send + Sync + 'static>(&self, upload: impl FnOnce() -> T) -> &T {
        match self.0.get_or_init(|| Box::new(upload())).downcast_ref() {
            Some(copy) => copy,
            None => panic!("there is one kind of device copy, asked for {}", type_name::<T>()),
        }
    }
}

impl fmt::Debug for DeviceCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "on the device" } else { "on the host only" })
    }
}
