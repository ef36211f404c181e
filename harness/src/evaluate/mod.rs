//! Evaluation: language models seen as likelihoods, and the metrics built on them. Cannot tell a quantized model from
//! an original.

pub mod metrics;
