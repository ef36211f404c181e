//! What items say, beside what they ask: halves of a task, and its questions with their right answers as text.

use super::{Item, Items, Prompt};
use crate::data::half::Half;
use crate::evaluate::requests::{Request, requests};

impl Prompt {
    /// What decides the half that an item stands in: all that is asked, without the answers. WinoGrande's twins, which
    /// differ in the words behind the blank, ask the same.
    fn question(&self) -> String {
        match self {
            Prompt::Choices { text, .. } | Prompt::Target { text, .. } | Prompt::Text { text, .. } => {
                text.clone()
            }
            Prompt::Contexts { texts, .. } => texts.join("\n"),
        }
    }

    /// The question with its right answer, as a request without examples has it.
    fn answered(&self) -> String {
        let gold = match self {
            Prompt::Choices { gold, .. } | Prompt::Contexts { gold, .. } => *gold,
            Prompt::Target { .. } | Prompt::Text { .. } => 0,
        };
        match requests(self, "").swap_remove(gold) {
            Request::Pair { context, continuation } => context + &continuation,
            Request::Text { text } => text,
        }
    }
}

impl Items {
    /// The items of one half, and of these the first `limit` of each part.
    pub fn half(self, half: Half, limit: Option<usize>) -> Self {
        let mut taken: Vec<(Option<String>, usize)> = Vec::new();
        let mut room = |item: &Item| {
            let at = taken.iter().position(|(part, _)| *part == item.part).unwrap_or_else(|| {
                taken.push((item.part.clone(), 0));
                taken.len() - 1
            });
            taken[at].1 += 1;
            limit.is_none_or(|limit| taken[at].1 <= limit)
        };
        let of_half = self.items.into_iter().filter(|item| Half::of(&item.prompt.question()) == half);
        let items: Vec<Item> = of_half.filter(|item| room(item)).collect();
        let hash = super::hash(&items);
        Self { items, full: false, hash, ..self }
    }

    /// The questions with their right answers, one text an item.
    pub fn answered(&self) -> Vec<String> {
        self.items.iter().map(|item| item.prompt.answered()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::items::Form;

    fn item(id: usize, text: &str) -> Item {
        let choices = vec!["no".to_owned(), "yes".to_owned()];
        let prompt = Prompt::Choices { text: text.to_owned(), choices, gold: 1 };
        Item { id: id.to_string(), part: None, prompt, document: id.to_string() }
    }

    #[test]
    fn halves_are_apart_and_items_that_ask_the_same_stay_together() {
        let items: Vec<Item> = (0..40).map(|i| item(i, &format!("question {}", i / 2))).collect();
        let all = Items { hash: String::new(), items, form: Form::Hub, full: true };
        let ids = |items: &Items| items.items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
        let (first, second) = (all.clone().half(Half::First, None), all.clone().half(Half::Second, None));
        assert_eq!(first.items.len() + second.items.len(), 40);
        assert!(!first.items.is_empty() && !second.items.is_empty());
        assert!(ids(&first).iter().all(|id| !ids(&second).contains(id)));
        for pair in first.items.chunks(2) {
            assert_eq!(pair[0].prompt, pair[1].prompt);
        }
        let few = all.clone().half(Half::Second, Some(3));
        assert_eq!(ids(&few), ids(&second)[..3]);
        // The order of a file decides nothing but the order.
        let mut reversed = all;
        reversed.items.reverse();
        let mut again = ids(&reversed.half(Half::First, None));
        again.reverse();
        assert_eq!(again, ids(&first));
    }

    #[test]
    fn answers_read_as_the_request_does() {
        let choices = item(0, "Is water wet?").prompt;
        assert_eq!(choices.answered(), "Is water wet? yes");
        let texts = vec!["The cup".to_owned(), "The ball".to_owned()];
        let contexts = Prompt::Contexts { texts, target: "rolls.".into(), gold: 1 };
        assert_eq!(contexts.answered(), "The ball rolls.");
        let target = Prompt::Target { text: "once upon a".into(), target: " time".into() };
        assert_eq!(target.answered(), "once upon a time");
    }
}
