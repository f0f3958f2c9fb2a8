//! Packing held against files that other tools packed, where MYNAH_REFERENCE_DATA names the folder that holds them.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;

use crate::config::ModelConfig;
use crate::projection::Projection;
use crate::quant::{PackedMatrix, TensorType};
use crate::weights::Gguf;

#[test]
fn matrices_unpack_to_what_packing_the_checkpoint_gives() {
    let Some(data) = std::env::var_os("MYNAH_REFERENCE_DATA").map(PathBuf::from) else {
        eprintln!("skipped: MYNAH_REFERENCE_DATA is not set");
        return;
    };
    for case in ["llama", "llama3_rope", "smollm", "qwen2", "qwen3"] {
        let checkpoint = fs::read(data.join(case).join("model.safetensors")).unwrap();
        let checkpoint = SafeTensors::deserialize(&checkpoint).unwrap();
        for &tensor_type in TensorType::ALL.iter().filter(|&&t| t != TensorType::BF16) {
            let name = format!("model-{}.gguf", tensor_type.name().to_lowercase());
            let gguf = Gguf::open(&data.join(case).join(name)).unwrap();
            let config = ModelConfig::from_gguf(&gguf).unwrap();
            for projection in Projection::ALL {
                let [rows, cols] = config.projection_shape(projection);
                let name = format!("blk.1.{}.weight", projection.gguf_name());
                let mut packed = PackedMatrix::from_gguf(&gguf, &name, [rows, cols]).unwrap();
                assert_eq!(packed.tensor_type(), tensor_type);
                if let Some(order) = config.file_row_order(projection) {
                    packed = packed.select_rows(order);
                }
                let name = format!("model.layers.1.{}.{projection}.weight", projection.parent());
                let tensor = checkpoint.tensor(&name).unwrap();
                let mut values = vec![0.0; rows * cols];
                TensorType::F32.dequantize(tensor.data(), &mut values);
                let ours = PackedMatrix::quantize(tensor_type, [rows, cols], &values);
                assert!(ours.bytes() == packed.bytes(), "{case} {tensor_type} {name}");
            }
        }
    }
}
