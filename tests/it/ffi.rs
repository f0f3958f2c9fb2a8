//! The C border from outside: the header is what the code says, C and C++ compilers take it, and a C program links and
//! runs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mynah_tests::{skip, stories};

/// What a static Rust library asks of the system.
const SYSTEM_LIBRARIES: &[&str] = if cfg!(target_os = "macos") {
    &["-lc++", "-lobjc", "-framework", "Foundation", "-framework", "Metal", "-framework", "QuartzCore"]
} else {
    &["-lm", "-ldl", "-lpthread", "-lrt", "-lgcc_s"]
};

const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];

#[test]
fn the_header_is_what_the_code_says() {
    let crate_folder = repository().join("ffi");
    let config = cbindgen::Config::from_file(crate_folder.join("cbindgen.toml")).unwrap();
    let source = crate_folder.join("src/lib.rs");
    let bindings = cbindgen::Builder::new().with_config(config).with_src(source).generate().unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    if env::var_os("MYNAH_UPDATE_HEADER").is_some() {
        fs::write(header(), &made).unwrap();
    }
    let committed = fs::read_to_string(header()).unwrap();
    assert!(
        made == committed,
        "ffi/include/mynah.h is not what ffi/src says; set MYNAH_UPDATE_HEADER=1 and look at it"
    );
}

#[test]
fn every_symbol_has_the_prefix() {
    let header = fs::read_to_string(header()).unwrap();
    let ours = |name: &str| name.starts_with("mynah_") || name.starts_with("MYNAH_");
    let mut functions = 0;
    for line in header.lines().filter(|line| !line.starts_with(['/', '#', ' '])) {
        if let Some((before, _)) = line.split_once('(')
            && !line.starts_with("typedef")
        {
            let name = before.rsplit([' ', '*']).next().unwrap();
            assert!(ours(name), "{line}");
            functions += 1;
        }
    }
    assert!(functions >= 19, "{functions} functions in the header");
}

#[test]
fn the_header_compiles_as_c99_c11_and_cpp17() {
    for (compiler, language, standard) in
        [("cc", "c", "-std=c99"), ("cc", "c", "-std=c11"), ("c++", "c++", "-std=c++17")]
    {
        if !has(compiler) {
            continue;
        }
        let mut command = Command::new(compiler);
        run(command.args(STRICT).args([standard, "-fsyntax-only", "-x", language]).arg(header()));
    }
}

#[test]
fn a_c_program_links_both_libraries_and_runs() {
    if !has("cc") {
        return;
    }
    let libraries = built_libraries();
    let folder = tempfile::tempdir().unwrap();
    let mut folder_of_shared = OsString::from("-L");
    folder_of_shared.push(&libraries);
    let mut search_path = OsString::from("-Wl,-rpath,");
    search_path.push(&libraries);
    check_smoke(folder.path(), "shared", &[folder_of_shared, "-lmynah".into(), search_path]);
    let mut linked: Vec<OsString> = vec![libraries.join("libmynah.a").into()];
    linked.extend(SYSTEM_LIBRARIES.iter().map(OsString::from));
    check_smoke(folder.path(), "static", &linked);
}

/// Compiles, links and runs `c/smoke.c` on the smallest model with a new store.
fn check_smoke(folder: &Path, name: &str, linked: &[OsString]) {
    let source = repository().join("tests/c/smoke.c");
    let (program, store) = (folder.join(format!("smoke-{name}")), folder.join(format!("store-{name}")));
    let include = repository().join("ffi/include");
    let mut compile = Command::new("cc");
    compile.args(STRICT).args(["-std=c99", "-pthread", "-I"]).arg(include).arg(source);
    run(compile.arg("-o").arg(&program).args(linked));
    run(Command::new(program).arg(stories::file()).arg(store));
}

/// The folder with the shared and the static library, as new as the code.
///
/// `cargo test` builds neither: nothing in Rust links them. The whole workspace is selected here as it is for the
/// tests, so that features are the same and only this one crate is built.
fn built_libraries() -> PathBuf {
    let executable = env::current_exe().unwrap();
    let profile_folder = executable.ancestors().nth(2).unwrap();
    let profile = match profile_folder.file_name().and_then(|name| name.to_str()).unwrap() {
        "debug" => "dev",
        profile => profile,
    };
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--workspace", "--lib", "--profile", profile]);
        run(build.arg("--target-dir").arg(profile_folder.parent().unwrap()).current_dir(repository()));
    }
    profile_folder.to_owned()
}

/// Whether a compiler is there. If not, says so; fails where `MYNAH_REQUIRE_CC` is set.
fn has(compiler: &str) -> bool {
    let is_there = Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there {
        skip("programs in C", &format!("no `{compiler}` here"), "MYNAH_REQUIRE_CC");
    }
    is_there
}

/// Runs a program that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (status, stdout, stderr) = (output.status, text(&output.stdout), text(&output.stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
}

fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn header() -> PathBuf {
    repository().join("ffi/include/mynah.h")
}
