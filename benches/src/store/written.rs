//! What this process has written, as the system counts it.

use anyhow::{Context, bail};

/// Bytes since the process started.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Handed to the system in calls.
    pub handed_over: u64,
    /// Of pages that have to reach a device.
    pub to_device: u64,
}

impl Written {
    /// Now.
    ///
    /// # Errors
    /// If the system does not count: Linux does.
    pub fn so_far() -> anyhow::Result<Self> {
        let file = "/proc/self/io";
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}; this needs Linux"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no {name} in {file}"))
        };
        Ok(Self { handed_over: field("wchar:")?, to_device: field("write_bytes:")? })
    }

    /// What was written since `before`.
    ///
    /// # Errors
    /// If nothing reached a device: then the folder is in memory, and the figures would mean nothing.
    pub fn since(before: Self) -> anyhow::Result<Self> {
        let now = Self::so_far()?;
        let since =
            Self { handed_over: now.handed_over - before.handed_over, to_device: now.to_device - before.to_device };
        if since.handed_over > 0 && since.to_device == 0 {
            bail!("nothing reached a device; choose a --folder that is not in memory");
        }
        Ok(since)
    }
}
