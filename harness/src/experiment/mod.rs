//! The experiment file: wire types and domain types.
