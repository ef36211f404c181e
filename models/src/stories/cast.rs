//! Who and what a story is about: one value per slot, and other values of the same kind as wrong answers.

use rand_chacha::ChaCha8Rng;

use super::{below, pick, shuffle, words};

/// The values of a story's slots.
pub(super) struct Cast {
    slots: Vec<(&'static str, &'static str)>,
}

/// `n` different items of `pool`, in random order.
fn distinct<'a, T>(rng: &mut ChaCha8Rng, pool: &'a [T], n: usize) -> Vec<&'a T> {
    let mut chosen: Vec<usize> = Vec::with_capacity(n);
    while chosen.len() < n {
        let index = below(rng, pool.len());
        if !chosen.contains(&index) {
            chosen.push(index);
        }
    }
    chosen.into_iter().map(|index| &pool[index]).collect()
}

impl Cast {
    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        let mut slots = Vec::with_capacity(40);
        let people = distinct(rng, words::PEOPLE, 3);
        for (role, person) in ["hero", "friend", "third"].into_iter().zip(&people) {
            slots.push((role, person.name));
        }
        let of = |female: bool, she: &'static str, he: &'static str| if female { she } else { he };
        let [hero, friend, third] = [people[0].female, people[1].female, people[2].female];
        slots.push(("he", of(hero, "she", "he")));
        slots.push(("him", of(hero, "her", "him")));
        slots.push(("his", of(hero, "her", "his")));
        slots.push(("child", of(hero, "girl", "boy")));
        slots.push(("friend_his", of(friend, "her", "his")));
        slots.push(("third_him", of(third, "her", "him")));

        let mut several = |names: &[&'static str], pool: &[&'static str], rng: &mut ChaCha8Rng| {
            for (name, value) in names.iter().zip(distinct(rng, pool, names.len())) {
                slots.push((name, value));
            }
        };
        several(&["object", "object2", "object3"], words::OBJECTS, rng);
        several(&["colour", "colour2", "colour3"], words::COLOURS, rng);
        several(&["spot", "spot2", "spot3"], words::SPOTS, rng);
        several(&["material", "material2", "material3"], words::MATERIALS, rng);
        several(&["town", "town2"], words::TOWNS, rng);
        several(&["trait"], words::TRAITS, rng);
        several(&["animal"], words::ANIMALS, rng);
        several(&["pet"], words::PETS, rng);
        several(&["weather"], words::WEATHER, rng);
        several(&["day"], words::DAYS, rng);
        several(&["food", "food2"], words::FOODS, rng);
        several(&["number"], words::NUMBERS, rng);
        several(&["job", "job2"], words::JOBS, rng);
        several(&["feeling", "feeling2"], words::FEELINGS, rng);
        Self { slots }
    }

    /// The value of `slot`; a slot the plots name but the cast lacks is a mistake in this module.
    pub(super) fn value(&self, slot: &str) -> &'static str {
        let found = self.slots.iter().find(|(name, _)| *name == slot);
        found.unwrap_or_else(|| panic!("a plot names the slot `{slot}`, which no cast has")).1
    }

    /// `n` values of the slot's kind other than its own, among them the values its sibling slots have in this story
    /// (a colour that was named, but of another thing), so that knowing the kind is not enough.
    pub(super) fn distractors(&self, slot: &str, n: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
        let own = self.value(slot);
        let kind = match slot {
            "hero" | "friend" | "third" => "person",
            other => other.trim_end_matches(char::is_numeric),
        };
        let siblings: Vec<&'static str> = match kind {
            "person" => vec![self.value("hero"), self.value("friend"), self.value("third")],
            _ => self
                .slots
                .iter()
                .filter(|(name, _)| name.starts_with(kind))
                .map(|(_, value)| *value)
                .collect(),
        };
        let pool: Vec<&'static str> = match kind {
            "person" => words::PEOPLE.iter().map(|person| person.name).collect(),
            "object" => words::OBJECTS.to_vec(),
            "colour" => words::COLOURS.to_vec(),
            "spot" => words::SPOTS.to_vec(),
            "material" => words::MATERIALS.to_vec(),
            "town" => words::TOWNS.to_vec(),
            "day" => words::DAYS.to_vec(),
            "food" => words::FOODS.to_vec(),
            "number" => words::NUMBERS.to_vec(),
            "job" => words::JOBS.to_vec(),
            other => panic!("a plot asks for the slot kind `{other}`, for which there are no wrong answers"),
        };
        let mut wrong: Vec<&'static str> = siblings.into_iter().filter(|value| *value != own).collect();
        shuffle(rng, &mut wrong);
        wrong.truncate(n);
        while wrong.len() < n {
            let value = pick(rng, &pool);
            if *value != own && !wrong.contains(value) {
                wrong.push(value);
            }
        }
        wrong.into_iter().map(str::to_owned).collect()
    }
}
