//! `config.json` of published checkpoints: what architecture they are, and how many parameters the hub counts.
//!
//! The files under `tests/configs/` hold the published values. Where a head is tied it counts once, as in the hub's
//! "model size" of files that store it once.

use std::fs;
use std::path::Path;

use models::architecture::{
    Activation, Architecture, AttentionBias, Bias, Cap, Head, LocalRope, Logits, MlpForm, Pairs, Positions,
    PostNorms, QkNorm, Rope, RopeScaling, ScoreScale, Window,
};
use models::families::{Config, ConfigError, FAMILIES};
use serde_json::{Value, json};

fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn read(config: Value) -> Result<(&'static str, Architecture), ConfigError> {
    let config = Config(config);
    let family = config.family()?;
    Ok((family.name, (family.read)(&config)?))
}

fn architecture(name: &str) -> Architecture {
    read(file(name)).unwrap().1
}

fn rope(name: &str) -> Rope {
    match architecture(name).positions {
        Positions::Rotary(rope) => rope,
        Positions::Learned(_) => panic!("{name} turns nothing"),
    }
}

/// Checkpoint, family, parameters, blocks, channels, query heads, key heads, channels of a head, of the feed-forward part,
/// tokens of context.
type Row = (&'static str, &'static str, u64, [usize; 7]);

#[rustfmt::skip]
const PUBLISHED: [Row; 27] = [
    ("Llama-2-7b-hf", "llama", 6_738_415_616, [32, 4096, 32, 32, 128, 11008, 4096]),
    ("Llama-2-13b-hf", "llama", 13_015_864_320, [40, 5120, 40, 40, 128, 13824, 4096]),
    ("Meta-Llama-3-8B", "llama", 8_030_261_248, [32, 4096, 32, 8, 128, 14336, 8192]),
    ("Llama-3.1-8B", "llama", 8_030_261_248, [32, 4096, 32, 8, 128, 14336, 131072]),
    ("Llama-3.2-1B", "llama", 1_235_814_400, [16, 2048, 32, 8, 64, 8192, 131072]),
    ("SOLAR-10.7B-v1.0", "llama", 10_731_524_096, [48, 4096, 32, 8, 128, 14336, 4096]),
    ("Mistral-7B-v0.1", "mistral", 7_241_732_096, [32, 4096, 32, 8, 128, 14336, 32768]),
    ("Mistral-7B-v0.3", "mistral", 7_248_023_552, [32, 4096, 32, 8, 128, 14336, 32768]),
    ("Mixtral-8x7B-v0.1", "mixtral", 46_702_792_704, [32, 4096, 32, 8, 128, 14336, 32768]),
    ("Qwen1.5-0.5B", "qwen2", 463_987_712, [24, 1024, 16, 16, 64, 2816, 32768]),
    ("Qwen1.5-7B", "qwen2", 7_721_324_544, [32, 4096, 32, 32, 128, 11008, 32768]),
    ("Qwen2-7B", "qwen2", 7_615_616_512, [28, 3584, 28, 4, 128, 18944, 131072]),
    ("Qwen2.5-0.5B", "qwen2", 494_032_768, [24, 896, 14, 2, 64, 4864, 32768]),
    ("Qwen2.5-1.5B", "qwen2", 1_543_714_304, [28, 1536, 12, 2, 128, 8960, 131072]),
    ("Qwen3-0.6B", "qwen3", 596_049_920, [28, 1024, 16, 8, 128, 3072, 40960]),
    ("Qwen3-8B", "qwen3", 8_190_735_360, [36, 4096, 32, 8, 128, 12288, 40960]),
    ("gemma-2b", "gemma", 2_506_172_416, [18, 2048, 8, 1, 256, 16384, 8192]),
    ("gemma-7b", "gemma", 8_537_680_896, [28, 3072, 16, 16, 256, 24576, 8192]),
    ("gemma-2-2b", "gemma2", 2_614_341_888, [26, 2304, 8, 4, 256, 9216, 8192]),
    ("gemma-2-9b", "gemma2", 9_241_705_984, [42, 3584, 16, 8, 256, 14336, 8192]),
    ("gemma-3-270m", "gemma3", 268_098_176, [18, 640, 4, 1, 256, 2048, 32768]),
    ("gemma-3-1b-pt", "gemma3", 999_885_952, [26, 1152, 4, 1, 256, 6912, 32768]),
    ("opt-125m", "opt", 125_239_296, [12, 768, 12, 12, 64, 3072, 2048]),
    ("opt-1.3b", "opt", 1_315_758_080, [24, 2048, 32, 32, 64, 8192, 2048]),
    ("opt-6.7b", "opt", 6_658_473_984, [32, 4096, 32, 32, 128, 16384, 2048]),
    ("c4ai-command-r-v01", "cohere", 34_980_831_232, [40, 8192, 64, 64, 128, 22528, 8192]),
    ("c4ai-command-r-plus", "cohere", 103_810_674_688, [64, 12288, 96, 8, 128, 33792, 8192]),
];

#[test]
fn published_checkpoints_have_their_shapes_and_parameter_counts() {
    for (name, family, parameters, shape) in PUBLISHED {
        let (found, a) = read(file(name)).unwrap();
        assert_eq!(found, family, "{name}");
        let t = &a.attention;
        let shapes = [a.layers, a.hidden, t.heads, t.kv_heads, t.head_dim, a.mlp.intermediate, a.context];
        assert_eq!(shapes, shape, "{name}");
        assert_eq!(a.parameters(), parameters, "{name}");
    }
}

#[test]
fn what_a_family_adds_is_read() {
    let window = |name: &str| architecture(name).attention.window;
    assert_eq!(window("Mistral-7B-v0.1"), Window::Everywhere { tokens: 4096 });
    for none in ["Mistral-7B-v0.3", "Mixtral-8x7B-v0.1", "Qwen1.5-7B", "Qwen2-7B", "Qwen3-8B"] {
        assert_eq!(window(none), Window::Absent, "{none}");
    }
    let Window::Blocks { tokens: 4096, blocks } = window("gemma-2-2b") else { panic!("every other block") };
    assert_eq!(blocks, (0..26).step_by(2).collect::<Vec<_>>());
    for (name, layers) in [("gemma-3-270m", 18), ("gemma-3-1b-pt", 26)] {
        let Window::Blocks { tokens: 512, blocks } = window(name) else { panic!("five of six blocks") };
        assert_eq!(blocks, (0..layers).filter(|layer| layer % 6 != 5).collect::<Vec<_>>(), "{name}");
        assert_eq!(rope(name), Rope { local: LocalRope::Theta(10_000.0), ..Rope::plain(1_000_000.0) });
        assert_eq!(architecture(name).attention.qk_norm, QkNorm::Shared);
    }
    let llama3 = |factor| RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original_context: 8192 };
    assert_eq!(rope("Llama-3.1-8B"), Rope { scaling: llama3(8.0), ..Rope::plain(500_000.0) });
    assert_eq!(rope("Llama-3.2-1B"), Rope { scaling: llama3(32.0), ..Rope::plain(500_000.0) });
    for (name, theta) in [
        ("Llama-2-7b-hf", 10_000.0),
        ("Mistral-7B-v0.1", 10_000.0),
        ("Mistral-7B-v0.3", 1_000_000.0),
        ("Mixtral-8x7B-v0.1", 1_000_000.0),
        ("Qwen2.5-0.5B", 1_000_000.0),
        ("gemma-2-9b", 10_000.0),
    ] {
        assert_eq!(rope(name), Rope::plain(theta), "{name}");
    }
    let command = Rope { pairs: Pairs::Neighbours, ..Rope::plain(8_000_000.0) };
    assert_eq!(rope("c4ai-command-r-v01"), command);

    let head = |name: &str| architecture(name).head;
    for tied in ["Llama-3.2-1B", "Qwen2.5-0.5B", "Qwen3-0.6B", "gemma-2b", "opt-125m", "c4ai-command-r-v01"] {
        assert_eq!(head(tied), Head::Tied, "{tied}");
    }
    for untied in ["Llama-2-7b-hf", "Qwen2-7B", "Qwen3-8B", "Mixtral-8x7B-v0.1"] {
        assert_eq!(head(untied), Head::Untied, "{untied}");
    }
    assert_eq!(architecture("Qwen2-7B").attention.bias, AttentionBias::Qkv);
    let opt = architecture("opt-6.7b");
    assert_eq!((opt.attention.bias, opt.mlp.bias), (AttentionBias::All, Bias::Present));
    assert_eq!(opt.mlp.form, MlpForm::Plain(Activation::Relu));
    let gemma = architecture("gemma-2-9b");
    assert_eq!(gemma.mlp.form, MlpForm::Gated(Activation::GeluTanh));
    assert_eq!((gemma.logits, gemma.post_norms), (Logits::Capped(30.0), PostNorms::Present));
    assert_eq!((gemma.attention.cap, gemma.attention.scale), (Cap::Tanh(50.0), ScoreScale::Of(256.0)));
    let mixtral = MlpForm::Experts { count: 8, chosen: 2, activation: Activation::Silu };
    assert_eq!(architecture("Mixtral-8x7B-v0.1").mlp.form, mixtral);
    let command = architecture("c4ai-command-r-v01");
    assert_eq!((command.logits, command.attention.qk_norm), (Logits::Scaled(0.0625), QkNorm::Absent));
    assert_eq!(command.mlp.form, MlpForm::Parallel(Activation::Silu));
    assert_eq!(architecture("c4ai-command-r-plus").attention.qk_norm, QkNorm::PerHead);
}

/// A published file with one field changed.
fn with(name: &str, field: &str, value: Value) -> Result<Architecture, ConfigError> {
    let mut config = file(name);
    config[field] = value;
    Ok(read(config)?.1)
}

#[test]
fn what_changes_the_result_and_is_not_there_is_refused_by_name() {
    let message = read(file("opt-350m")).unwrap_err().to_string();
    assert!(message.contains("do_layer_norm_before"), "{message}");
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    let longrope = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]});
    let refused = [
        ("Llama-2-7b-hf", "rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("Llama-2-7b-hf", "pretraining_tp", json!(2)),
        ("Llama-2-7b-hf", "partial_rotary_factor", json!(0.5)),
        ("Llama-2-7b-hf", "quantization_config", json!({"quant_method": "gptq"})),
        ("Qwen2-7B", "rope_scaling", yarn.clone()),
        ("Qwen2-7B", "use_mrope", json!(true)),
        ("Qwen2-7B", "layer_types", json!(["full_attention"])),
        ("Qwen3-8B", "rope_scaling", yarn),
        ("Qwen3-8B", "hidden_act", json!("gelu")),
        ("Mistral-7B-v0.1", "rope_scaling", longrope),
        ("Mistral-7B-v0.1", "attention_bias", json!(true)),
        ("Mistral-7B-v0.1", "layer_types", json!(["full_attention"])),
        ("Mixtral-8x7B-v0.1", "num_experts_per_tok", json!(9)),
        ("gemma-7b", "hidden_activation", json!("relu")),
        ("gemma-7b", "use_bidirectional_attention", json!(true)),
        ("gemma-2-2b", "attn_logit_softcapping", json!(-1.0)),
        ("gemma-2-2b", "query_pre_attn_scalar", json!(0.0)),
        ("gemma-3-1b-pt", "attn_logit_softcapping", json!(50.0)),
        ("gemma-3-1b-pt", "rope_parameters", json!({"rope_theta": 1e6})),
        ("opt-125m", "word_embed_proj_dim", json!(512)),
        ("opt-125m", "_remove_final_layer_norm", json!(true)),
        ("opt-125m", "activation_function", json!("gelu")),
        ("opt-125m", "layer_norm_elementwise_affine", json!(false)),
        ("c4ai-command-r-v01", "rope_theta", json!(null)),
        ("c4ai-command-r-v01", "hidden_act", json!("relu")),
    ];
    for (name, field, value) in refused {
        let message = with(name, field, value).unwrap_err().to_string();
        assert!(message.contains(field), "{name}: {message}");
    }
    for other in ["Gemma3ForConditionalGeneration", "Cohere2ForCausalLM", "Qwen2MoeForCausalLM"] {
        let message = with("gemma-2b", "architectures", json!([other])).unwrap_err().to_string();
        assert!(message.contains(other) && message.contains("MixtralForCausalLM"), "{message}");
    }
}

#[test]
fn fields_that_change_the_result_change_the_architecture() {
    let window = |name: &str, field: &str, value: Value| with(name, field, value).unwrap().attention.window;
    assert_eq!(window("Mistral-7B-v0.1", "sliding_window", json!(null)), Window::Absent);
    let tokens = 131_072;
    assert_eq!(window("Qwen2-7B", "use_sliding_window", json!(true)), Window::Absent, "no block from 28 on");
    let mut sliding = file("Qwen2-7B");
    sliding["use_sliding_window"] = json!(true);
    sliding["max_window_layers"] = json!(26);
    let expected = Window::Blocks { tokens, blocks: vec![26, 27] };
    assert_eq!(read(sliding.clone()).unwrap().1.attention.window, expected);
    sliding["max_window_layers"] = json!(0);
    assert_eq!(read(sliding).unwrap().1.attention.window, Window::Everywhere { tokens });
    assert_eq!(with("gemma-2-2b", "attn_logit_softcapping", json!(null)).unwrap().attention.cap, Cap::Absent);
    assert_eq!(with("gemma-2-2b", "final_logit_softcapping", json!(null)).unwrap().logits, Logits::Plain);
    let biased = with("gemma-2-2b", "attention_bias", json!(true)).unwrap();
    assert_eq!(biased.attention.bias, AttentionBias::All);

    // As transformers 5 writes Gemma 3: parameters of rotary embedding for each type of block.
    let mut newer = file("gemma-3-1b-pt");
    newer.as_object_mut().unwrap().retain(|field, _| !field.starts_with("rope_"));
    newer["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
    });
    let Positions::Rotary(rope) = read(newer).unwrap().1.positions else { panic!("rotary") };
    assert_eq!(rope.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((rope.theta, rope.local), (1_000_000.0, LocalRope::Theta(20_000.0)));
    assert_eq!(rope.in_windows().unwrap().scaling, RopeScaling::Plain);
}

#[test]
fn families_stand_in_order_and_read_different_architectures() {
    assert!(FAMILIES.is_sorted_by_key(|family| family.name));
    let mut all: Vec<_> = FAMILIES.iter().flat_map(|family| family.architectures).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
}
