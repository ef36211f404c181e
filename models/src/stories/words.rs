//! The word pools the stories draw from. Their order is part of the text a seed produces: append, never reorder.

/// A person: name and the pronouns that go with it.
pub(super) struct Person {
    pub name: &'static str,
    pub female: bool,
}

const fn she(name: &'static str) -> Person {
    Person { name, female: true }
}

const fn he(name: &'static str) -> Person {
    Person { name, female: false }
}

pub(super) const PEOPLE: &[Person] = &[
    she("Mira"),
    she("Anna"),
    she("Lily"),
    she("Rosa"),
    she("Nora"),
    she("Ella"),
    she("Ida"),
    she("Clara"),
    she("Ruth"),
    she("Maya"),
    she("Hanna"),
    she("Greta"),
    she("Alice"),
    she("Vera"),
    she("Tessa"),
    she("June"),
    she("Sofia"),
    she("Wilma"),
    she("Pia"),
    she("Dora"),
    she("Lena"),
    she("Amara"),
    she("Kaya"),
    she("Zoe"),
    he("Tom"),
    he("Ben"),
    he("Oskar"),
    he("Felix"),
    he("Hugo"),
    he("Max"),
    he("Leo"),
    he("Sam"),
    he("Peter"),
    he("Jonas"),
    he("Omar"),
    he("Emil"),
    he("Finn"),
    he("Karl"),
    he("David"),
    he("Nils"),
    he("Henry"),
    he("Theo"),
    he("Anton"),
    he("Ravi"),
    he("Jack"),
    he("Milo"),
    he("Viktor"),
    he("Otto"),
];

pub(super) const TRAITS: &[&str] = &[
    "clever", "shy", "brave", "patient", "lazy", "kind", "stubborn", "careful", "curious", "cheerful",
    "quiet", "proud", "gentle", "restless", "honest", "dreamy",
];

pub(super) const TOWNS: &[&str] = &[
    "Millbrook",
    "Eastwick",
    "Stonebridge",
    "Harrow",
    "Oldport",
    "Fernhill",
    "Redcliff",
    "Whitby",
    "Larkfield",
    "Northgate",
    "Ashford",
    "Windmere",
];

pub(super) const ANIMALS: &[&str] = &[
    "dog", "cat", "goat", "rabbit", "parrot", "donkey", "hen", "mouse", "fox", "pony", "turtle", "crow",
    "duck", "lamb", "squirrel", "owl",
];

pub(super) const PETS: &[&str] = &[
    "Pepper", "Button", "Biscuit", "Shadow", "Clover", "Pickle", "Ginger", "Patch", "Bramble", "Pebble",
    "Snowy", "Tulip",
];

pub(super) const OBJECTS: &[&str] = &[
    "kite",
    "lantern",
    "drum",
    "scarf",
    "ball",
    "book",
    "boat",
    "umbrella",
    "flute",
    "basket",
    "bucket",
    "clock",
    "hat",
    "blanket",
    "ring",
    "map",
    "puppet",
    "cup",
    "ladder",
    "coat",
    "button",
    "ribbon",
    "whistle",
    "candle",
    "mirror",
    "box",
    "key",
    "spoon",
    "wagon",
    "violin",
    "rope",
    "apron",
    "bell",
    "feather",
    "pencil",
    "shovel",
    "teapot",
    "compass",
    "marble",
    "telescope",
];

pub(super) const COLOURS: &[&str] = &[
    "red", "blue", "green", "yellow", "white", "black", "brown", "orange", "purple", "grey", "silver",
    "golden",
];

pub(super) const MATERIALS: &[&str] = &["wood", "glass", "paper", "iron", "straw", "wool", "clay", "leather"];

/// Places with the preposition that goes before them.
pub(super) const SPOTS: &[&str] = &[
    "under the bridge",
    "behind the mill",
    "in the barn",
    "near the river",
    "beside the well",
    "in the attic",
    "under the bed",
    "on the roof",
    "behind the church",
    "in the cellar",
    "at the market",
    "near the lake",
    "under the stairs",
    "in the garden",
    "at the harbour",
    "behind the bakery",
    "in the forest",
    "on the hill",
    "inside the tower",
    "at the station",
    "in the kitchen",
    "under the oak tree",
    "by the fountain",
    "in the library",
    "behind the school",
    "on the beach",
    "in the shed",
    "near the castle",
    "in the cave",
    "at the inn",
    "between two rocks",
    "in the tall grass",
];

pub(super) const WEATHER: &[&str] = &[
    "rainy", "sunny", "windy", "foggy", "cold", "hot", "snowy", "cloudy", "stormy", "warm", "frosty", "misty",
];

pub(super) const DAYS: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) const FOODS: &[&str] = &[
    "bread",
    "soup",
    "cheese",
    "plums",
    "cake",
    "apples",
    "honey",
    "pancakes",
    "nuts",
    "porridge",
    "pie",
    "pears",
    "carrots",
    "fish",
    "cherries",
    "potatoes",
    "noodles",
    "rice",
    "beans",
    "cookies",
    "grapes",
    "dumplings",
    "jam",
    "waffles",
];

pub(super) const NUMBERS: &[&str] =
    &["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty"];

pub(super) const JOBS: &[&str] = &[
    "baker",
    "sailor",
    "miller",
    "farmer",
    "doctor",
    "teacher",
    "tailor",
    "painter",
    "shepherd",
    "fisherman",
    "carpenter",
    "gardener",
    "blacksmith",
    "librarian",
    "cobbler",
    "musician",
];

pub(super) const FEELINGS: &[&str] = &[
    "sad",
    "tired",
    "happy",
    "worried",
    "angry",
    "nervous",
    "lonely",
    "excited",
    "surprised",
    "ashamed",
    "bored",
    "hopeful",
];
