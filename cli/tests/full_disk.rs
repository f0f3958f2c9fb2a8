//! A disk of one mebibyte that fills up while the program learns: an error that says so, everything before it kept, and once
//! there is room again, the bytes of a run that never had to stop.

#![cfg(target_os = "linux")]

mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mynah_tests::skip;
use running::{adapters, document, done, learn, lessons, mynah, text, verify};

/// Steps of a run that commits more than the disk holds.
const STEPS: &str = "6";

/// A file system in memory, as long as it lives.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// None where this process may not mount.
    fn mount(folder: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(folder).expect("a folder");
        let options = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "mynah-test"]).arg(folder).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self { folder: folder.to_owned() })
    }

    fn grow(&self, mebibytes: u32) {
        let options = format!("remount,size={mebibytes}m");
        let grown = Command::new("mount").args(["-o", &options]).arg(&self.folder).status();
        assert!(grown.is_ok_and(|status| status.success()), "the disk grows");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.folder).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.folder.display());
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_learning_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), 1) else {
        return skip("a full disk", "this process may not mount a file system", "MYNAH_REQUIRE_MOUNT");
    };
    let lessons = lessons(folder.path());
    let whole = folder.path().join("whole");
    done(&learn(&whole, &lessons, STEPS));
    let expected = adapters(&whole, folder.path());

    let store = disk.folder.join("store");
    let mut failures = 0;
    for mebibytes in [1, 2, 16] {
        disk.grow(mebibytes);
        let output = mynah(&learn(&store, &lessons, STEPS)).output().expect("mynah runs");
        let found = document(&output);
        if output.status.success() {
            continue;
        }
        failures += 1;
        assert_eq!((output.status.code(), found["error"]["kind"].as_str()), (Some(1), Some("store")), "{found}");
        let message = found["error"]["message"].as_str().expect("a message");
        assert!(message.contains("space") || message.contains("full"), "{message}");
        verify(&store, &format!("on {mebibytes} MiB"));
    }
    assert!(failures > 0, "the disk was never full");
    assert!(adapters(&store, folder.path()) == expected, "another adapter than without a full disk");
    done(&["store", "stat", text(&store)]);
}
