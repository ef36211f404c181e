//! What requests share: a context common to several continuations goes through the model once, logits are computed only
//! where a token is scored, and passes are ordered by length. Pure: the plan says what to run, a model runs it.

use std::collections::BTreeSet;

use crate::evaluate::windows::Sequence;

/// Sequences that begin alike, usually the requests of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The tokens that all inputs begin with, encoded once. Empty for a sequence alone, whose inputs are one branch.
    pub prefix: Vec<u32>,
    /// Places in `prefix` whose logits are needed, ascending.
    pub prefix_places: Vec<usize>,
    /// What follows, each after the prefix and not after each other. Sequences whose inputs are the same share a branch:
    /// one-token continuations of one context all share the empty branch, which needs no pass at all.
    pub branches: Vec<Branch>,
}

/// Inputs after a shared prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The inputs.
    pub tokens: Vec<u32>,
    /// Places in `tokens` whose logits are needed, ascending.
    pub places: Vec<usize>,
    /// The sequences that are read off here.
    pub readings: Vec<Reading>,
}

/// The scored tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which sequence, by its place among those planned.
    pub sequence: usize,
    /// Each scored token with the place of the logits that predict it.
    pub scores: Vec<(Place, u32)>,
}

/// Where logits stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At this token of the prefix.
    Prefix(usize),
    /// At this token of the branch.
    Branch(usize),
}

impl Shared {
    /// Tokens that go through the model.
    pub fn tokens(&self) -> usize {
        self.prefix.len() + self.branches.iter().map(|branch| branch.tokens.len()).sum::<usize>()
    }

    /// The longest of its inputs, prefix included.
    pub fn length(&self) -> usize {
        self.prefix.len() + self.branches.iter().map(|branch| branch.tokens.len()).max().unwrap_or_default()
    }
}

/// Plans the sequences of one item: the longest common beginning of all inputs becomes the prefix. `first` is the number
/// of the first sequence. Sequences without a common token stand alone.
pub fn share(sequences: &[Sequence], first: usize) -> Vec<Shared> {
    let Some(one) = sequences.first() else { return Vec::new() };
    let inputs = one.inputs();
    let common = sequences.iter().skip(1).fold(inputs.len(), |common, sequence| {
        let pairs = inputs[..common].iter().zip(sequence.inputs());
        pairs.take_while(|(a, b)| a == b).count()
    });
    match (common, sequences.len()) {
        (0, 2..) => {
            let alone = sequences.iter().enumerate();
            alone.map(|(i, sequence)| branch_off(std::slice::from_ref(sequence), 0, first + i)).collect()
        }
        (_, 1) => vec![branch_off(sequences, 0, first)],
        _ => vec![branch_off(sequences, common, first)],
    }
}

fn branch_off(sequences: &[Sequence], common: usize, first: usize) -> Shared {
    let mut branches: Vec<Branch> = Vec::new();
    let mut prefix_places = BTreeSet::new();
    for (i, sequence) in sequences.iter().enumerate() {
        let tokens = &sequence.inputs()[common..];
        let scores: Vec<(Place, u32)> = sequence
            .scored
            .clone()
            .map(|scored| {
                let at = scored - 1;
                let place = if at < common { Place::Prefix(at) } else { Place::Branch(at - common) };
                (place, sequence.tokens[scored])
            })
            .collect();
        prefix_places.extend(scores.iter().filter_map(|(place, _)| match place {
            Place::Prefix(at) => Some(*at),
            Place::Branch(_) => None,
        }));
        let index = branches.iter().position(|branch| branch.tokens == tokens).unwrap_or_else(|| {
            branches.push(Branch { tokens: tokens.to_vec(), places: Vec::new(), readings: Vec::new() });
            branches.len() - 1
        });
        branches[index].readings.push(Reading { sequence: first + i, scores });
    }
    for branch in &mut branches {
        let scores = branch.readings.iter().flat_map(|reading| &reading.scores);
        let places: BTreeSet<usize> = scores
            .filter_map(|(place, _)| match place {
                Place::Branch(at) => Some(*at),
                Place::Prefix(_) => None,
            })
            .collect();
        branch.places = places.into_iter().collect();
    }
    Shared {
        prefix: sequences[0].inputs()[..common].to_vec(),
        prefix_places: prefix_places.into_iter().collect(),
        branches,
    }
}

/// Plans the sequences of many items, numbered through.
pub fn plan<'a>(items: impl IntoIterator<Item = &'a [Sequence]>) -> Vec<Shared> {
    let mut first = 0;
    let mut plan = Vec::new();
    for sequences in items {
        plan.extend(share(sequences, first));
        first += sequences.len();
    }
    plan
}

/// The order in which to run a plan, in batches: longest first, so that what does not fit fails at once; a batch holds
/// at most `tokens` tokens (but always one entry), and where `equal` is asked for, entries of one length. The order depends
/// on the plan alone.
pub fn batches(plan: &[Shared], tokens: usize, equal: bool) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..plan.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse((plan[i].length(), plan[i].tokens())), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut used = 0;
    for i in order {
        let own = plan[i].tokens();
        if let Some(batch) = batches.last_mut() {
            let alike = !equal || plan[batch[0]].length() == plan[i].length();
            if alike && used + own <= tokens {
                used += own;
                batch.push(i);
                continue;
            }
        }
        used = own;
        batches.push(vec![i]);
    }
    batches
}

/// Tokens through the model with a plan, and without: what sharing saves.
pub fn saved(plan: &[Shared], sequences: &[Sequence]) -> (usize, usize) {
    let with = plan.iter().map(Shared::tokens).sum();
    (with, sequences.iter().map(|sequence| sequence.inputs().len()).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(tokens: &[u32], scored: usize) -> Sequence {
        Sequence { tokens: tokens.to_vec(), scored: tokens.len() - scored..tokens.len() }
    }

    /// A sequence's number, and its scored tokens, each with all tokens before it.
    type Replayed = (usize, Vec<(Vec<u32>, u32)>);

    /// What the plan would feed.
    fn replay(plan: &[Shared]) -> Vec<Replayed> {
        let mut read = Vec::new();
        for shared in plan {
            for branch in &shared.branches {
                for reading in &branch.readings {
                    let scores = reading.scores.iter().map(|&(place, target)| {
                        let history = match place {
                            Place::Prefix(at) => {
                                assert!(shared.prefix_places.contains(&at));
                                shared.prefix[..=at].to_vec()
                            }
                            Place::Branch(at) => {
                                assert!(branch.places.contains(&at));
                                [&shared.prefix[..], &branch.tokens[..=at]].concat()
                            }
                        };
                        (history, target)
                    });
                    read.push((reading.sequence, scores.collect()));
                }
            }
        }
        read.sort();
        read
    }

    proptest! {
        #[test]
        fn a_plan_feeds_every_scored_token_its_own_history(
            items in prop::collection::vec(
                prop::collection::vec((prop::collection::vec(0u32..3, 2..9), 1usize..4), 1..5), 0..5)
        ) {
            let items: Vec<Vec<Sequence>> = items
                .iter()
                .map(|item| item.iter().map(|(tokens, n)| sequence(tokens, (*n).min(tokens.len() - 1))).collect())
                .collect();
            let all: Vec<Sequence> = items.concat();
            let plan = plan(items.iter().map(Vec::as_slice));
            let expected: Vec<Replayed> = all
                .iter()
                .enumerate()
                .map(|(i, s)| (i, s.scored.clone().map(|at| (s.tokens[..at].to_vec(), s.tokens[at])).collect()))
                .collect();
            prop_assert_eq!(replay(&plan), expected);
            let (with, without) = saved(&plan, &all);
            prop_assert!(with <= without);

            for equal in [false, true] {
                let batches = batches(&plan, 12, equal);
                let mut seen: Vec<usize> = batches.concat();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..plan.len()).collect::<Vec<_>>());
                for batch in batches.iter().filter(|batch| batch.len() > 1) {
                    prop_assert!(batch.iter().map(|&i| plan[i].tokens()).sum::<usize>() <= 12);
                    let longest = plan[batch[0]].length();
                    prop_assert!(!equal || batch.iter().all(|&i| plan[i].length() == longest));
                }
            }
        }
    }

    #[test]
    fn one_token_continuations_need_one_pass_and_one_place() {
        let shared = share(&[sequence(&[1, 2, 3, 7], 1), sequence(&[1, 2, 3, 8], 1)], 4);
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].prefix, [1, 2, 3]);
        assert_eq!(shared[0].prefix_places, [2]);
        assert_eq!(shared[0].branches.len(), 1);
        assert_eq!(shared[0].branches[0].readings[1].scores, [(Place::Prefix(2), 8)]);
        assert_eq!(shared[0].branches[0].readings[1].sequence, 5);
    }

    #[test]
    fn a_beginning_that_continuations_share_is_encoded_once_too() {
        // The context is [1, 2]; both continuations begin with 5.
        let shared = share(&[sequence(&[1, 2, 5, 6, 7], 3), sequence(&[1, 2, 5, 9], 2)], 0);
        assert_eq!(shared[0].prefix, [1, 2, 5]);
        assert_eq!(shared[0].prefix_places, [1, 2]);
        assert_eq!((shared[0].tokens(), shared[0].length()), (4, 4));
    }
}
