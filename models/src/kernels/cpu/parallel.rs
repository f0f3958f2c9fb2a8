//! Work shared among the threads of a pool.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Does `work(0)` to `work(tasks - 1)` on the threads of the current pool, in any order.
///
/// Threads take the next task when they are done with one: where another process holds a core, the others do its share, and
/// where a thread does not wake in time, the caller does everything.
pub(crate) fn for_each(tasks: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let drain = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(task);
        }
    };
    on_threads(rayon::current_num_threads().min(tasks), &drain);
}

/// Does `work` on a thread of the current pool, so that what it shares among threads begins without waking one.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

fn on_threads(threads: usize, work: &(impl Fn() + Sync)) {
    match threads {
        0 => (),
        1 => work(),
        _ => {
            let half = threads / 2;
            rayon::join(|| on_threads(threads - half, work), || on_threads(half, work));
        }
    }
}
