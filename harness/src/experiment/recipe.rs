//! Recipes: from `[recipe.NAME]` blocks to checked lists of steps.

use super::source::{Block, Fault};
use super::{Recipe, Warning, wire};
use crate::names;
use crate::quantize::steps::{self, Order, Stage, Step};

/// Reads the recipe called `name`; what is possible and doubtful goes to `warnings`.
pub(super) fn read(name: &str, block: &Block<'_>, warnings: &mut Vec<Warning>) -> Result<Recipe, Box<Fault>> {
    block.read::<wire::Recipe>()?;
    let blocks = block.list_of_tables("steps", "step")?;
    if blocks.is_empty() {
        let message = "`steps` is empty; the model without steps is `original`, which is always measured";
        return Err(block.fault_of_key(message.into()));
    }
    let steps = blocks.iter().map(read_step).collect::<Result<Vec<_>, _>>()?;
    check_order(name, &steps, &blocks, warnings)?;
    check_claims(&steps, &blocks)?;
    Ok(Recipe::new(name, steps))
}

fn read_step(block: &Block<'_>) -> Result<Step, Box<Fault>> {
    let mut keys = block.clone();
    let names = steps::names();
    let Some((name, place)) = keys.take_word("step")? else {
        let fault = block.fault(block.span.clone(), "the key `step` is missing");
        return Err(fault.note(format!("steps: {}", names.join(", "))));
    };
    if !names.contains(&name.as_str()) {
        let near = names::hint(&name, names.iter().copied());
        let fault = block.fault(place, format!("unknown step `{name}`{near}"));
        return Err(fault.note(format!("steps: {}", names.join(", "))));
    }
    let method = read_method(&name, &mut keys)?;
    let read = |deserializer| Step::read(&name, method.as_deref(), deserializer).transpose();
    let step = keys.read_with(read)?.expect("the step and its method are registered");
    step.method().check().map_err(|message| {
        block
            .fault_of_key(message)
            .note(format!("`quantscope explain {}` describes the step", method.as_deref().unwrap_or(&name)))
    })?;
    Ok(step.resolved())
}

/// Takes the key `method` of a step that has several.
fn read_method(step: &str, keys: &mut Block<'_>) -> Result<Option<String>, Box<Fault>> {
    let methods = steps::methods(step);
    if methods.is_empty() {
        return Ok(None);
    }
    let listing = format!("methods of `{step}`: {}", methods.join(", "));
    let span = keys.span.clone();
    let Some((method, place)) = keys.take_word("method")? else {
        return Err(keys.fault(span, "the key `method` is missing").note(listing));
    };
    if !methods.contains(&method.as_str()) {
        let near = names::hint(&method, methods.iter().copied());
        return Err(keys.fault(place, format!("`{step}` has no method `{method}`{near}")).note(listing));
    }
    Ok(Some(method))
}

fn check_order(
    recipe: &str,
    steps: &[Step],
    blocks: &[Block<'_>],
    warnings: &mut Vec<Warning>,
) -> Result<(), Box<Fault>> {
    let stages: Vec<_> = steps.iter().map(|step| step.method().stage()).collect();
    for (i, j, order) in misplaced(&stages) {
        let [first, second] = [steps[i].name(), steps[j].name()];
        match order {
            Order::Wrong(why) => {
                let message = format!("`{second}` may not stand after `{first}` (step {})", i + 1);
                return Err(blocks[j].fault(blocks[j].place_of("step"), message).note(why));
            }
            Order::Doubtful(why) => {
                warnings.push(Warning::Order { recipe: recipe.to_string(), steps: [first, second], why });
            }
            Order::Fine => {}
        }
    }
    Ok(())
}

/// Every pair of places whose order there is something to say about.
fn misplaced(stages: &[Stage]) -> Vec<(usize, usize, Order)> {
    let pairs = (0..stages.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    pairs
        .map(|(i, j)| (i, j, stages[j].after(stages[i])))
        .filter(|(_, _, order)| *order != Order::Fine)
        .collect()
}

fn check_claims(steps: &[Step], blocks: &[Block<'_>]) -> Result<(), Box<Fault>> {
    let claims: Vec<_> = steps.iter().map(|step| step.method().claims()).collect();
    for (j, claimed) in claims.iter().enumerate() {
        for (i, earlier) in claims[..j].iter().enumerate() {
            if let Some(twice) = claimed.iter().find(|claim| earlier.contains(claim)) {
                let verb = if steps[j].method().stage() < Stage::Keep { "set" } else { "round" };
                let message = format!("steps {} and {} both {verb} {twice}", i + 1, j + 1);
                let fault = blocks[j].fault(blocks[j].place_of("step"), message);
                return Err(fault.note("give the two steps disjoint `sites`, or keep one of them"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_architecture_is_fine_and_every_swap_is_not() {
        use Stage::*;
        let order = [Prefix, Shift, Smooth, Rotate, Keep, Quantize, Quantize, Tune];
        assert_eq!(misplaced(&order), []);
        for i in 1..order.len() {
            let mut swapped = order;
            swapped.swap(i - 1, i);
            let found = misplaced(&swapped);
            match (order[i - 1], order[i]) {
                (Quantize, Quantize) => assert_eq!(found, []),
                // Smoothing what is rotated is possible, and worth a warning.
                (Smooth, Rotate) => assert!(matches!(found[..], [(2, 3, Order::Doubtful(_))]), "{found:?}"),
                _ => {
                    assert!(found.iter().any(|(_, _, order)| matches!(order, Order::Wrong(_))), "{swapped:?}")
                }
            }
        }
    }
}
