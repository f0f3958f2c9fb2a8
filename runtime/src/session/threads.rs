//! On how many threads a session computes.

use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of one session's own, or rayon's global one.
#[derive(Debug, Default)]
pub(crate) struct Threads(Option<ThreadPool>);

impl Threads {
    /// A pool of `count` threads; 0 takes the global pool, which has one per core.
    ///
    /// # Errors
    /// The system's reason if it gives no more threads.
    pub(crate) fn new(count: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        if count == 0 {
            return Ok(Self(None));
        }
        let name = |index| format!("mynah-{index}");
        Ok(Self(Some(ThreadPoolBuilder::new().num_threads(count).thread_name(name).build()?)))
    }

    /// Does `work` there, and waits for it.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Some(pool) => pool.install(work),
            // On a thread of the pool: each of the many small pieces of work would otherwise be handed over to it, and waited for.
            None => rayon::scope(|_| work()),
        }
    }
}
