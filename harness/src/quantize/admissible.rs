//! What a step may say: the checks that steps share.
//!
//! A complaint begins with the key it is about, in backticks, so that whoever holds the file can point at it.

use models::Port;
use models::architecture::Architecture;

use crate::names;
use crate::quantize::grid::{CONVENTIONS, Convention, FLOATS, Granularity, Grid};
use crate::quantize::{StepError, acts_at};

/// Sites of which linears of the model read at least one: the default sites are some of every model.
///
/// # Errors
/// [`StepError::NoSites`].
pub fn sites_of_model(sites: Option<&[String]>, architecture: &Architecture) -> Result<(), StepError> {
    let groups = architecture.first_groups();
    let is_there = |port: &Port| groups.iter().any(|(site, _)| site.port == *port);
    let there: Vec<Port> = Port::ALL.into_iter().filter(is_there).collect();
    if there.iter().any(|port| acts_at(sites, *port)) {
        return Ok(());
    }
    let there: Vec<&str> = there.into_iter().map(Port::as_str).collect();
    Err(StepError::NoSites { sites: sites.unwrap_or_default().join(", "), there: there.join(", ") })
}

/// 2 to 8, or 16 for no rounding.
pub fn bits(bits: u8) -> Result<(), String> {
    bits_of("bits", bits)
}

/// As [`bits`], under another key.
pub fn bits_of(key: &str, bits: u8) -> Result<(), String> {
    match bits {
        2..=8 | 16 => Ok(()),
        _ => Err(format!("`{key}` must be 2 to 8, or 16 for no rounding, not {bits}")),
    }
}

/// A factor on the range: 0 < clip ≤ 1.
pub fn clip(clip: f32) -> Result<(), String> {
    match clip {
        c if c > 0.0 && c <= 1.0 => Ok(()),
        _ => Err(format!("`clip` must be above 0 and at most 1, not {clip}")),
    }
}

/// `granularity` where only some make sense: `allowed` is what `holds` accepts, in words.
pub fn granularity(given: Granularity, allowed: &str, holds: fn(Granularity) -> bool) -> Result<(), String> {
    match holds(given) {
        true => Ok(()),
        false => Err(format!("`granularity` must be {allowed} in this step, not {given}")),
    }
}

/// A convention that agrees with `symmetric`.
pub fn convention(given: Option<Convention>, symmetric: bool) -> Result<(), String> {
    let Some(given) = given else { return Ok(()) };
    if given.is_symmetric() == symmetric {
        return Ok(());
    }
    let word = |symmetric| if symmetric { "symmetric" } else { "asymmetric" };
    let names: Vec<_> = CONVENTIONS
        .into_iter()
        .chain(FLOATS)
        .filter(|c| c.is_symmetric() == symmetric)
        .map(Convention::name)
        .collect();
    Err(format!(
        "`convention` {} is {}, but this step says symmetric = {symmetric}; {} conventions are {}",
        given.name(),
        word(given.is_symmetric()),
        word(symmetric),
        names.join(", "),
    ))
}

/// Bits and granularity of a floating-point format, which fixes them.
pub fn format(given: Option<Convention>, bits: u8, granularity: Granularity) -> Result<(), String> {
    let Some((convention, (_, share))) = given.and_then(|c| Some((c, c.float()?))) else { return Ok(()) };
    let (name, meant) = (convention.name(), if convention == Convention::Fp8E4m3 { 8 } else { 4 });
    if bits != meant && bits != 16 {
        return Err(format!("`bits` must be {meant} with convention = \"{name}\", not {bits}"));
    }
    match share.map(Granularity::Group) {
        Some(meant) if meant != granularity => {
            Err(format!("`granularity` must be {meant} with convention = \"{name}\", not {granularity}"))
        }
        _ => Ok(()),
    }
}

/// The convention of a step that names none.
pub fn default_convention(symmetric: bool) -> Convention {
    if symmetric { Convention::Absmax } else { Convention::ZeroInRange }
}

/// The grid that a step asks for, or `None` at 16 bits.
pub fn grid(bits: u8, symmetric: bool, convention: Option<Convention>) -> Option<Grid> {
    (bits < 16).then(|| Grid::new(bits, convention.unwrap_or(default_convention(symmetric))))
}

/// Sites that linear layers read, each at most once.
pub fn linear_sites(given: Option<&[String]>) -> Result<(), String> {
    let Some(given) = given else { return Ok(()) };
    let linear: Vec<_> = Port::ALL.into_iter().filter(|port| port.has_linears()).map(Port::as_str).collect();
    let here = linear.join(", ");
    if given.is_empty() {
        return Err(
            "`sites` is empty, so the step would do nothing; leave the key out for the default".into()
        );
    }
    for (i, site) in given.iter().enumerate() {
        match Port::parse(site) {
            None => {
                let near = names::hint(site, Port::ALL.into_iter().map(Port::as_str));
                return Err(format!("`sites` names the unknown site `{site}`{near}; sites here: {here}"));
            }
            Some(port) if !port.has_linears() => {
                return Err(format!(
                    "`sites` names `{site}`, which no linear layer reads; sites here: {here}"
                ));
            }
            Some(_) if given[..i].contains(site) => return Err(format!("`sites` names `{site}` twice")),
            Some(_) => {}
        }
    }
    Ok(())
}

/// The sites meant, in the order of the forward pass.
pub fn resolve_linear_sites(given: Option<&[String]>) -> Vec<String> {
    let meant = Port::ALL.into_iter().filter(|port| acts_at(given, *port));
    meant.map(|port| port.as_str().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_resolve_to_the_order_of_the_forward_pass() {
        let given = ["down_in".to_string(), "attn_in".to_string()];
        assert_eq!(resolve_linear_sites(Some(&given)), ["attn_in", "down_in"]);
        assert_eq!(resolve_linear_sites(None), ["attn_in", "o_in", "mlp_in", "down_in"]);
    }

    #[test]
    fn bounds_are_where_the_format_puts_them() {
        for good in [2, 8, 16] {
            assert_eq!(bits(good), Ok(()));
        }
        for bad in [0, 1, 9, 15, 17, 32] {
            assert_eq!(bits(bad), Err(format!("`bits` must be 2 to 8, or 16 for no rounding, not {bad}")));
        }
        assert_eq!((clip(1.0), clip(f32::MIN_POSITIVE)), (Ok(()), Ok(())));
        for bad in [0.0, -0.5, 1.01, f32::NAN, f32::INFINITY] {
            assert!(clip(bad).is_err(), "{bad}");
        }
    }
}
