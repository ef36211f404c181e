//! Rounding weights by what they read: the mathematics on host matrices, and the pass that gives it its inputs.
//!
//! | module | holds |
//! |---|---|
//! | [`clip`] | searches for the range that a scale is chosen from |
//! | [`gptq`] | column-wise rounding with the error carried to the columns that follow |
//! | [`layout`] | channels in an order of their own, some of them apart |
//! | [`blockwise`] | a calibration set led through the model one block after another |
//!
//! A layer reads X, `[tokens, channels]`; H = XᵀX. For a rounded weight Ŵ = W + ΔW, `[out, channels]`, the squared error
//! of the layer's output over the calibration set is tr(ΔW·H·ΔWᵀ): everything here knows X by H alone. Products and factors are
//! those of [`crate::matrix`].

pub mod blockwise;
pub mod clip;
pub mod gptq;
pub mod layout;
