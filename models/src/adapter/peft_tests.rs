//! PEFT folders: out and in again, and what must be refused.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::config::testing::tiny;
use crate::projection::Projection;

/// A folder of its own under the system's temporary one, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mynah-peft-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    /// Holding an adapter written by us.
    fn written(test: &str) -> Self {
        let folder = Self::new(test);
        write_peft(&folder.0, &adapter(), &base()).unwrap();
        folder
    }

    fn read(&self) -> Result<PeftAdapter, AdapterError> {
        read_peft(&self.0, &tiny(), &base())
    }

    /// Sets one key of the configuration; `Value::Null` counts as any other value.
    fn set(&self, key: &str, value: Value) {
        let path = self.0.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }

    fn weights(&self) -> PathBuf {
        self.0.join("adapter_model.safetensors")
    }

    /// Replaces text in the header by text of the same length.
    fn patch_header(&self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let mut bytes = fs::read(self.weights()).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(self.weights(), bytes).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn base() -> BaseIdentity {
    BaseIdentity { model_name: "tiny".to_owned(), sha256: [0xab; 32] }
}

fn adapter() -> Adapter {
    let config =
        LoraConfig { rank: 2, alpha: 3.0, use_rslora: true, target_modules: vec![Projection::K, Projection::Down] };
    let mut adapter = Adapter::init(&tiny(), &config, 7).unwrap();
    for (number, value) in adapter.values_mut().iter_mut().enumerate() {
        *value += number as f32; // B too, and every value its own
    }
    adapter
}

#[test]
fn an_adapter_comes_back_as_it_was_written() {
    let folder = Folder::written("round-trip");
    let read = folder.read().unwrap();
    assert_eq!(read.adapter, adapter());
    assert!(read.base_is_known);
    assert!(fs::read_dir(&folder.0).unwrap().count() == 2, "no temporary file is left");
}

#[test]
fn the_same_adapter_gives_the_same_bytes() {
    let (first, second) = (Folder::written("bytes-1"), Folder::written("bytes-2"));
    assert_eq!(fs::read(first.weights()).unwrap(), fs::read(second.weights()).unwrap());
}

#[test]
fn another_base_is_refused_and_an_unnamed_one_is_reported() {
    let folder = Folder::written("base");
    let other = BaseIdentity { sha256: [1; 32], ..base() };
    assert!(matches!(read_peft(&folder.0, &tiny(), &other), Err(AdapterError::Base { .. })));
    // The weights carry the digest too.
    folder.set("mynah_base_sha256", Value::Null);
    assert!(matches!(read_peft(&folder.0, &tiny(), &other), Err(AdapterError::Base { .. })));
    assert!(folder.read().unwrap().base_is_known);
    folder.patch_header("mynah_base_sha256", "another_name_of_x");
    assert!(!folder.read().unwrap().base_is_known);
}

#[test]
fn features_that_would_change_the_result_are_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({ "q_proj": 4 })),
        ("alpha_pattern", json!({ "q_proj": 4 })),
        ("fan_in_fan_out", json!(true)),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("something_new", json!(true)),
        ("r", json!("eight")),
        ("target_modules", json!(["q_proj"])),
    ] {
        let folder = Folder::written(&format!("feature-{key}"));
        folder.set(key, value.clone());
        match folder.read() {
            Err(AdapterError::Unsupported { feature, found, .. }) => {
                assert_eq!(feature, key);
                assert!(value.to_string().contains(&found), "{found}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn settings_without_effect_and_patterns_of_targets_are_accepted() {
    let folder = Folder::written("harmless");
    folder.set("lora_dropout", json!(0.1));
    folder.set("use_qalora", json!(false));
    folder.set("target_modules", json!("all-linear"));
    folder.read().unwrap();
    folder.set("target_modules", json!(["model.layers.0.mlp.down_proj", "k_proj"]));
    folder.read().unwrap();
}

#[test]
fn a_wrong_tensor_is_named() {
    let folder = Folder::written("shape");
    folder.set("r", json!(4));
    match folder.read() {
        Err(AdapterError::Shape { name, expected, found, .. }) => {
            assert_eq!(name, "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight");
            assert_eq!((expected, found), (vec![4, 8], vec![2, 8]));
        }
        other => panic!("{other:?}"),
    }

    let folder = Folder::written("missing");
    folder.patch_header("layers.1.mlp", "layers.7.mlp");
    assert!(matches!(folder.read(), Err(AdapterError::MissingTensor { .. })));

    let folder = Folder::written("stranger");
    folder.patch_header("mlp.down_proj.lora_A", "mlp.down_proj.lora_X");
    assert!(matches!(folder.read(), Err(AdapterError::UnexpectedTensor { .. })));

    let folder = Folder::written("type");
    folder.patch_header("\"F32\"", "\"I32\"");
    assert!(matches!(folder.read(), Err(AdapterError::TensorType { .. })));

    let folder = Folder::written("nan");
    let mut bytes = fs::read(folder.weights()).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.weights(), bytes).unwrap();
    assert!(matches!(folder.read(), Err(AdapterError::NotFinite { .. })));
}

#[test]
fn hostile_weights_are_refused_and_never_panic() {
    let folder = Folder::written("hostile");
    let bytes = fs::read(folder.weights()).unwrap();
    for len in (0..bytes.len()).step_by(7) {
        fs::write(folder.weights(), &bytes[..len]).unwrap();
        assert!(folder.read().is_err(), "{len}");
    }
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize + 8;
    for at in 0..header_len {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(folder.weights(), bytes).unwrap();
        let _ = folder.read();
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(folder.weights(), huge).unwrap();
    assert!(matches!(folder.read(), Err(AdapterError::TooLarge { .. })));
    fs::write(folder.weights(), [bytes, vec![0; 5 << 20]].concat()).unwrap();
    assert!(matches!(folder.read(), Err(AdapterError::TooLarge { .. })));
}

#[test]
fn a_hostile_configuration_is_refused() {
    let folder = Folder::written("hostile-config");
    let path = folder.0.join("adapter_config.json");
    for text in ["", "[]", "{}", "{\"peft_type\": \"LORA\"}", &"[".repeat(100_000)] {
        fs::write(&path, text).unwrap();
        assert!(folder.read().is_err(), "{text:.20}");
    }
    for rank in [json!(0), json!(-1), json!(1e9), json!(u64::MAX)] {
        let folder = Folder::written("hostile-rank");
        folder.set("r", rank);
        assert!(folder.read().is_err());
    }
}

/// Folders that PEFT itself wrote, where MYNAH_REFERENCE_DATA names the folder that holds them.
#[test]
fn folders_written_by_peft_are_read() {
    use crate::weights::Gguf;
    let Some(data) = std::env::var_os("MYNAH_REFERENCE_DATA").map(PathBuf::from) else {
        eprintln!("skipped: MYNAH_REFERENCE_DATA is not set");
        return;
    };
    for case in ["llama", "llama3_rope", "smollm", "qwen2", "qwen3", "padded/llama", "padded/qwen2"] {
        let gguf = Gguf::open(&data.join(case.trim_start_matches("padded/")).join("model-q4_1.gguf")).unwrap();
        let config = ModelConfig::from_gguf(&gguf).unwrap();
        let read = read_peft(&data.join(case).join("adapter"), &config, &base()).unwrap();
        assert!(!read.base_is_known);
        let bytes = fs::read(data.join(case).join("adapter/adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let pair = &read.adapter.layout().pairs()[1];
        let b = tensors.tensor("base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight").unwrap();
        let first = f32::from_le_bytes(*b.data().first_chunk().unwrap());
        assert_eq!(read.adapter.values()[pair.b.start], first, "{case}");
    }
}
