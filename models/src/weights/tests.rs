//! Files that must open, and hostile files that must not: one per pattern that has broken a GGUF reader before.

use super::testing::GgufWriter;
use super::*;
use crate::error::{FormatFault, LoadError};
use crate::quant::{PackedMatrix, TensorType};

fn small() -> GgufWriter {
    GgufWriter::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 1e4)
        .bool("tokenizer.ggml.add_bos_token", true)
        .strs("tokenizer.ggml.tokens", &["a", "", "né"])
        .i32s("tokenizer.ggml.token_type", &[1, -3, 6])
        .f32s("tokenizer.ggml.scores", &[0.5])
        .tensor("norm", &[3], TensorType::F32, &[1.0, 2.0, 3.0])
        .tensor("matrix", &[2, 32], TensorType::Q4_1, &[0.5; 64])
}

#[track_caller]
fn check_refused(file: Vec<u8>, field: &str, expected: FormatFault) {
    match Gguf::from_bytes(file) {
        Err(LoadError::Format { field: at, fault, .. }) => {
            assert_eq!((at.as_str(), fault), (field, expected));
        }
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

#[test]
fn a_small_file_gives_back_what_was_written() {
    let gguf = Gguf::from_bytes(small().finish()).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.str("general.architecture"), Some("llama"));
    assert_eq!(metadata.u64("llama.block_count"), Some(2));
    assert_eq!(metadata.f64("llama.rope.freq_base"), Some(1e4));
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token"), Some(true));
    let tokens = metadata.str_array("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), 3);
    assert_eq!(tokens.collect::<Vec<_>>(), ["a", "", "né"]);
    assert_eq!(metadata.i32_array("tokenizer.ggml.token_type").unwrap().collect::<Vec<_>>(), [1, -3, 6]);
    assert_eq!(metadata.f32_array("tokenizer.ggml.scores").unwrap().collect::<Vec<_>>(), [0.5]);
    assert_eq!(metadata.u64("general.architecture"), None, "another type is not converted");
    assert_eq!(metadata.keys().count(), 7);

    assert_eq!(gguf.vector_f32("norm", 3).unwrap(), [1.0, 2.0, 3.0]);
    let matrix = PackedMatrix::from_gguf(&gguf, "matrix", [2, 32]).unwrap();
    let mut values = [0.0; 64];
    matrix.dequantize_rows(0..2, &mut values);
    assert_eq!(values, [0.5; 64]);
    assert!(matches!(PackedMatrix::from_gguf(&gguf, "matrix", [32, 2]), Err(LoadError::Shape { .. })));
    assert!(matches!(gguf.vector_f32("bias", 3), Err(LoadError::MissingTensor { .. })));
    gguf.verify().unwrap();
}

#[test]
fn a_file_opens_the_same_by_path_and_in_memory() {
    let path = std::env::temp_dir().join(format!("mynah-weights-{}.gguf", std::process::id()));
    std::fs::write(&path, small().finish()).unwrap();
    let (by_path, in_memory) = (Gguf::open(&path).unwrap(), Gguf::from_bytes(small().finish()).unwrap());
    assert_eq!(by_path.tensors(), in_memory.tensors());
    assert_eq!(by_path.digest(), in_memory.digest());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_folder_and_a_missing_file_are_told_apart() {
    assert!(matches!(Gguf::open(&std::env::temp_dir()), Err(LoadError::NotARegularFile { .. })));
    assert!(matches!(Gguf::open("no/such.gguf".as_ref()), Err(LoadError::Io { .. })));
}

#[test]
fn a_vocabulary_without_tensors_is_a_model_file() {
    let file = GgufWriter::default().strs("tokenizer.ggml.tokens", &["a"]).finish();
    assert!(Gguf::from_bytes(file).unwrap().tensors().is_empty());
}

#[test]
fn the_digest_is_that_of_the_whole_file() {
    let gguf = Gguf::from_bytes(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice()).unwrap();
    // printf 'GGUF\3\0\0\0' and 16 zero bytes, through sha256sum
    let hex: String = gguf.digest().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "a4e5e156ddec27e286f75328784d7106b60a4eb1d246e950a001a3f944fbda99");
}

#[test]
fn a_file_cut_at_any_byte_is_refused_or_opens_and_never_panics() {
    let file = small().finish();
    for len in 0..file.len() {
        // Cuts inside the last tensor's data are refused as well: every byte of it is needed.
        assert!(Gguf::from_bytes(file[..len].to_vec()).is_err(), "{len}");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_opens_and_never_panics() {
    let file = small().finish();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut file = file.clone();
            file[at] ^= 1 << bit;
            if let Ok(gguf) = Gguf::from_bytes(file) {
                let metadata = gguf.metadata();
                metadata.keys().for_each(|key| {
                    metadata.str_array(key).into_iter().flatten().for_each(drop);
                    metadata.str(key);
                });
                gguf.tensors().iter().for_each(|tensor| drop(gguf.bytes(tensor).to_vec()));
                let _ = gguf.verify();
            }
        }
    }
}

#[test]
fn counts_and_lengths_above_the_caps_are_refused_before_anything_is_allocated() {
    let huge = u64::MAX;
    let mut file = small().finish();
    file[8..16].copy_from_slice(&huge.to_le_bytes());
    check_refused(file, "tensor count", FormatFault::AboveLimit { found: huge, limit: 4096 });

    let mut file = small().finish();
    file[16..24].copy_from_slice(&huge.to_le_bytes());
    check_refused(file, "key count", FormatFault::AboveLimit { found: huge, limit: 4096 });

    let mut file = small().finish();
    file[24..32].copy_from_slice(&huge.to_le_bytes());
    check_refused(file, "key number 0", FormatFault::AboveLimit { found: huge, limit: 256 });

    let array = [&4u32.to_le_bytes()[..], &huge.to_le_bytes()].concat();
    let file = GgufWriter::default().raw_value("a", 9, &array).finish();
    check_refused(file, "a", FormatFault::AboveLimit { found: huge, limit: 1 << 20 });
}

#[test]
fn types_that_gguf_does_not_define_are_refused() {
    let file = GgufWriter::default().raw_value("a", 13, &[0; 8]).finish();
    check_refused(file, "value of `a`", FormatFault::ValueType { found: 13 });
    let file = GgufWriter::default().raw_value("a", 7, &[2]).finish();
    check_refused(file, "value of `a`", FormatFault::Bool { found: 2 });
    let nested = [&9u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
    let file = GgufWriter::default().raw_value("a", 9, &nested).finish();
    check_refused(file, "value of `a`", FormatFault::Nested);
    let file = small().listed("q", &[256], 12, 128).finish();
    check_refused(file, "tensor `q`", FormatFault::TensorType { id: 12, name: Some("Q4_K") });
    let file = GgufWriter::default().raw_value("a", 8, b"\x01\0\0\0\0\0\0\0\xff").finish();
    check_refused(file, "a", FormatFault::Utf8);
}

#[test]
fn alignment_is_a_small_power_of_two() {
    for alignment in [0, 24, 8192, 0x8000_0000] {
        let file = GgufWriter::default().u32("general.alignment", alignment).finish();
        check_refused(file, "value of `general.alignment`", FormatFault::Alignment { limit: 4096 });
    }
    let file = GgufWriter::default().f32("general.alignment", 32.0).finish();
    check_refused(file, "value of `general.alignment`", FormatFault::Alignment { limit: 4096 });
}

#[test]
fn names_and_keys_are_unique_and_not_empty() {
    let file = GgufWriter::default().u32("a", 1).u32("a", 2).finish();
    check_refused(file, "key `a`", FormatFault::Duplicate);
    let file = GgufWriter::default().u32("", 1).finish();
    check_refused(file, "key number 0", FormatFault::Empty);
    let file = small().tensor("norm", &[1], TensorType::F32, &[0.0]).finish();
    check_refused(file, "tensor `norm`", FormatFault::Duplicate);
}

#[test]
fn sizes_that_overflow_or_do_not_divide_are_refused() {
    let file = GgufWriter::default().listed("t", &[1 << 40, 1 << 40], 0, 0).finish();
    check_refused(file, "tensor `t`", FormatFault::Overflow);
    let file = GgufWriter::default().listed("t", &[u64::MAX / 4], 0, 0).finish();
    check_refused(file, "tensor `t`", FormatFault::Truncated { needed: u64::MAX / 4 * 4, available: 0 });
    let file = GgufWriter::default().listed("t", &[0, 32], 0, 0).finish();
    check_refused(file, "tensor `t`", FormatFault::ZeroDimension);
    let file = GgufWriter::default().listed("t", &[], 0, 0).finish();
    check_refused(file, "tensor `t`", FormatFault::ZeroDimension);
    let file = GgufWriter::default().listed("t", &[1; 5], 0, 0).finish();
    check_refused(file, "tensor `t`", FormatFault::AboveLimit { found: 5, limit: 4 });
    let file = GgufWriter::default().listed("t", &[32, 16], 3, 0).data(&[0; 640]).finish();
    check_refused(file, "tensor `t`", FormatFault::Blocks { row_len: 16, block_len: 32 });
}

#[test]
fn tensors_tile_the_data_exactly() {
    let two = |second: u64| GgufWriter::default().listed("a", &[8], 0, 0).listed("b", &[8], 0, second);
    assert!(Gguf::from_bytes(two(32).data(&[0; 64]).finish()).is_ok());
    let misplaced = |found| FormatFault::Misplaced { expected: 32, found };
    check_refused(two(16).data(&[0; 64]).finish(), "tensor `b`", misplaced(16)); // overlap
    check_refused(two(64).data(&[0; 96]).finish(), "tensor `b`", misplaced(64)); // hole
    check_refused(two(0).data(&[0; 64]).finish(), "tensor `b`", misplaced(0)); // the same bytes twice
    check_refused(two(u64::MAX).data(&[0; 64]).finish(), "tensor `b`", misplaced(u64::MAX));
    check_refused(two(32).data(&[0; 65]).finish(), "end of the file", FormatFault::Trailing { len_bytes: 1 });
    let short = FormatFault::Truncated { needed: 32, available: 31 };
    check_refused(two(32).data(&[0; 63]).finish(), "tensor `b`", short);
}

#[test]
fn other_versions_and_byte_orders_are_named() {
    let mut file = small().finish();
    file[4] = 1;
    check_refused(file.clone(), "version", FormatFault::Version { found: 1 });
    file[4..8].copy_from_slice(&[0, 0, 0, 3]);
    check_refused(file, "version", FormatFault::Version { found: 0x0300_0000 });
    check_refused(b"GGML\0\0\0\0".to_vec(), "magic", FormatFault::Magic);
}

#[test]
fn a_scale_that_is_not_finite_is_found_by_verify() {
    let mut file = small().finish();
    let last_block = file.len() - 20;
    file[last_block..last_block + 2].copy_from_slice(&[0x00, 0x7c]);
    match Gguf::from_bytes(file).unwrap().verify() {
        Err(LoadError::NotFinite { name, block, .. }) => {
            assert_eq!((name.as_str(), block), ("matrix", 1))
        }
        other => panic!("{other:?}"),
    }
}
