//! Corners of CPython on which the numbers of lm-evaluation-harness depend: white space and capitals of `str`, literals
//! of `ast.literal_eval`, and the generator behind `random.Random`.

pub mod literal;
pub mod random;
pub mod text;
