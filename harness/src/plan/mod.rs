//! Expanding an experiment into cells.
