//! The plots, as data: beats with their alternative lines, and the questions each plot can answer.
//!
//! In a line `{slot}` is a value of this story's cast, `[x|y]` one of its alternatives (they nest), `@` the article
//! `a` or `an`. A beat whose facts are asked about always appears.

/// One moment of a plot.
pub(super) struct Beat {
    /// How often it appears, in percent.
    pub percent: u32,
    /// Its ways of being told, equally likely.
    pub lines: &'static [&'static str],
}

/// A question about one slot; `relation` names the fact it asks for and `about` its subject.
pub(super) struct Ask {
    pub relation: &'static str,
    pub about: &'static str,
    pub slot: &'static str,
    pub question: &'static str,
}

/// A plot: what happens in order, and what can be asked afterwards.
pub(super) struct Plot {
    pub beats: &'static [Beat],
    pub asks: &'static [Ask],
}

const fn always(lines: &'static [&'static str]) -> Beat {
    Beat { percent: 100, lines }
}

const fn half(lines: &'static [&'static str]) -> Beat {
    Beat { percent: 50, lines }
}

const fn ask(relation: &'static str, about: &'static str, slot: &'static str, question: &'static str) -> Ask {
    Ask { relation, about, slot, question }
}

const PARAGRAPH: Beat = always(&["\n"]);

const WEATHER: Beat = always(&[
    "it was @ {weather} [morning|afternoon|evening|day] [in {town}|].",
    "on {day} the weather was {weather}.",
    "one {weather} {day}, [the streets of {town} were empty|everyone in {town} was busy|nobody wanted to work].",
]);

const INTRO: Beat = always(&[
    "{hero} was @ {trait} {child} who lived in {town}.",
    "{hero} lived in {town} with {his} [aunt|uncle|grandmother|grandfather|two sisters|three brothers].",
    "in {town} there lived @ {trait} {child} named {hero}.",
    "everyone in {town} knew {hero}, the most {trait} {child} [in the street|of all|at school].",
]);

const AND_PET: Beat = half(&[
    "{he} had @ {animal} named {pet}.",
    "{his} {animal} {pet} [always followed {him}|was still asleep|ran ahead|was hungry again].",
    "{pet} the {animal} [came along|watched everything|waited at the door].",
]);

const MOOD: Beat = half(&[
    "{hero} felt {feeling} [and sighed|but said nothing|].",
    "\"I am so {feeling},\" [said|whispered|cried] {hero}.",
    "{he} was {feeling} [all day|for an hour|and did not know why].",
]);

const TALK: Beat = half(&[
    "\"[What a day|How strange|Look at that|Wait for me|Let us hurry]!\" [said|called|shouted|laughed] \
     [{hero}|{friend}].",
    "they [talked|laughed|sang|walked] [for a while|for hours|until noon|together].",
    "[a cart|a tall stranger|an old man|a group of children|a noisy cart] [passed by|stopped and stared|came \
     down the road].",
    "[far away|somewhere near|outside], a [bell|dog|horn|door] could be heard.",
]);

const SCENE: Beat = Beat {
    percent: 70,
    lines: &[
        "@ [big|small|thin|old|young|lame|friendly|noisy] [man|woman|crow|dog|cat|child|horse|soldier|monk|goose] \
         [crossed the road|sat on a wall|slept in the sun|looked at them|ran past|was eating grass|wanted to \
         play|stood in the way][ and waved| for a moment| without a word|].",
        "the [sky|water|road|light|grass|smoke|snow|moon] [looked|was|seemed] [dark|bright|strange|silver|green|\
         soft|endless|pale][, like {material3}|, and nobody spoke|, almost {colour3}|].",
        "[{hero}|{friend}] [thought of|talked about|remembered|drew|wanted to buy] [@ {object3}|the {animal}|{town}|\
         the sea|the stars|{food2}|the {job2}|an uncle in {town2}][ again| all the time| with a smile|].",
        "{friend} [hummed a tune|tied a shoe|picked a flower|climbed a fence|threw a stone|kicked a ball|looked for \
         {food2}] [while|because|until] [{hero} was {feeling2}|it got late|the rain began|the {job2} came|nothing \
         happened].",
    ],
};

const MEAL: Beat = always(&[
    "[in the evening|later|at last|back home] they [ate|shared|cooked|had] {food} [together|by the fire|with \
     {friend_his} family|].",
    "then they [sat down|went inside|rested] and ate {food} [until they were full|in silence|and told jokes|].",
    "{friend}'s [mother|father|aunt] gave them {food} [and warm milk|and tea|for supper|].",
]);

const END: Beat = half(&[
    "that night {hero} [slept well|could not sleep|dreamed of {town}|wrote it all down].",
    "{hero} never forgot that {day}.",
    "and {friend} [smiled|nodded|laughed|waved goodbye].",
    "from then on, {hero} and {friend} were [best friends|always together|good neighbours].",
]);

const LOST: Plot = Plot {
    beats: &[
        WEATHER,
        INTRO,
        always(&[
            "{he} [owned|had|loved] @ {colour} {object} made of {material}.",
            "{his} [favourite thing|treasure|pride] was @ {colour} {object} made of {material}.",
            "for {his} birthday {he} had got @ {colour} {object} made of {material}.",
        ]),
        AND_PET,
        always(&[
            "but [today|that morning|after school] the {object} was gone.",
            "on {day} {hero} [lost|could not find] the {object}.",
            "suddenly the {object} was [missing|nowhere to be seen].",
        ]),
        MOOD,
        SCENE,
        PARAGRAPH,
        always(&[
            "{he} asked {friend} for help.",
            "{friend} [came over|heard about it|saw {his} face] and wanted to help.",
            "\"I will help you,\" said {friend}.",
        ]),
        always(&[
            "first they [looked|searched] {spot2}, but there was only @ [old|broken|dirty] {object2}.",
            "{spot2} they found nothing but @ [rusty|wet|broken] {object2}.",
        ]),
        TALK,
        SCENE,
        always(&[
            "[at last|in the end|after an hour] they found the {object} {spot}.",
            "then {friend} [saw|spotted|found] the {object} {spot}.",
            "the {colour} {object} was {spot}, [covered in mud|safe and dry|quite dusty].",
        ]),
        MEAL,
        END,
    ],
    asks: &[
        ask("lost", "{hero}", "object", "what did {hero} lose?"),
        ask("colour", "{object}", "colour", "what colour was the {object}?"),
        ask("material", "{object}", "material", "what was the {object} made of?"),
        ask("helper", "{hero}", "friend", "who helped {hero}?"),
        ask("found", "{object}", "spot", "where was the {object} found?"),
        ask("searched", "{hero}", "spot2", "where did they look first?"),
        ask("ate", "{hero}", "food", "what did they eat?"),
    ],
};

const GIFT: Plot = Plot {
    beats: &[
        INTRO,
        always(&[
            "{friend} was {his} [best friend|cousin|neighbour], and {friend_his} birthday was on {day}.",
            "on {day} it was the birthday of {friend}, {his} [best friend|cousin|neighbour].",
        ]),
        AND_PET,
        always(&[
            "{hero} [wanted to|decided to|had to] find a gift, but {he} had only {number} coins.",
            "{he} [counted|looked at] {his} money: {number} coins, [no more|and nothing else|not enough].",
        ]),
        MOOD,
        SCENE,
        PARAGRAPH,
        always(&[
            "so {he} worked {spot} for the {job}, [carrying water|sweeping the floor|feeding the animals|painting \
             a fence].",
            "{he} helped the {job} {spot} [all week|for two days|until dark].",
            "{spot} {he} met the {job}, who needed [a hand|help|somebody strong].",
        ]),
        always(&[
            "the {job} paid {him} well, and {hero} bought @ {colour} {object}.",
            "[as thanks|for this], the {job} gave {him} @ {colour} {object}.",
        ]),
        TALK,
        SCENE,
        always(&[
            "{hero} [wrapped|hid|packed] the {object} in @ {colour2} [cloth|bag|paper].",
            "{he} put the {object} into @ {colour2} [bag|box|sack] [with a ribbon|].",
        ]),
        always(&[
            "{friend} [loved it|cried with joy|could not believe it] and [hugged {him}|danced|thanked {him} \
             twice].",
            "\"[Thank you|How lovely|Is it for me],\" said {friend} and opened it.",
        ]),
        MEAL,
        END,
    ],
    asks: &[
        ask("gift", "{friend}", "object", "what did {friend} get?"),
        ask("colour", "{object}", "colour", "what colour was the {object}?"),
        ask("wrapping", "{object}", "colour2", "what colour was it wrapped in?"),
        ask("birthday", "{friend}", "day", "when was the birthday of {friend}?"),
        ask("coins", "{hero}", "number", "how many coins did {hero} have?"),
        ask("employer", "{hero}", "job", "who did {hero} work for?"),
        ask("worked", "{hero}", "spot", "where did {hero} work?"),
        ask("ate", "{hero}", "food", "what did they eat?"),
    ],
};

const TRADE: Plot = Plot {
    beats: &[
        WEATHER,
        always(&[
            "{hero} had @ {colour} {object}, and {friend} had @ {colour2} {object2}.",
            "{friend} carried @ {colour2} {object2}, while {hero} carried @ {colour} {object}.",
            "{hero} owned nothing but @ {colour} {object}. {friend} owned nothing but @ {colour2} {object2}.",
        ]),
        half(&[
            "they were both {feeling}.",
            "{hero} was {trait}, and {friend} was {feeling}.",
            "neither of them [was in a hurry|had slept well|knew what to do].",
        ]),
        always(&[
            "they met {spot} [by chance|at noon|as they always did].",
            "{spot} they [bumped into each other|stopped to talk|sat down to rest].",
        ]),
        TALK,
        SCENE,
        PARAGRAPH,
        always(&[
            "\"I [need|want|would like] your {object2},\" said {hero}. \"You can have my {object}.\"",
            "\"Will you give me the {object2} for my {object}?\" asked {hero}.",
        ]),
        always(&[
            "{friend} [thought about it|was not sure|laughed] and asked for {number} coins more.",
            "{friend} [agreed|nodded|smiled] but wanted {number} coins as well.",
        ]),
        always(&[
            "so they [traded|swapped|shook hands] [on it|at once|], and [both were content|nobody was sorry].",
            "{hero} [paid|counted the coins|sighed], and they [traded|swapped].",
        ]),
        AND_PET,
        always(&[
            "now {hero} had the {object2}, and {friend} had the {object}.",
            "{friend} went home with the {object}, and {hero} kept the {object2}.",
        ]),
        always(&[
            "{he} used the {object2} to make {friend} @ {colour3} {object3}.",
            "a week later {friend} [lost|broke|sold] the {object} and bought @ {colour3} {object3}.",
            "[the next day|on {day}] {friend} found @ {colour3} {object3} [in the street|on the road|by the door].",
        ]),
        END,
    ],
    asks: &[
        ask("had", "{hero}", "object", "what did {hero} have first?"),
        ask("had", "{friend}", "object2", "what did {friend} have first?"),
        ask("got", "{hero}", "object2", "what did {hero} get?"),
        ask("got", "{friend}", "object", "what did {friend} get?"),
        ask("colour", "{object}", "colour", "what colour was the {object}?"),
        ask("colour", "{object2}", "colour2", "what colour was the {object2}?"),
        ask("colour", "{object3}", "colour3", "what colour was the {object3}?"),
        ask("met", "{hero}", "spot", "where did they meet?"),
        ask("coins", "{friend}", "number", "how many coins did {friend} want?"),
    ],
};

const JOURNEY: Plot = Plot {
    beats: &[
        INTRO,
        always(&[
            "on {day} {he} [left|set out|started] for {town2} to visit {friend}.",
            "{friend} lived in {town2}, so on {day} {hero} [packed a bag|took the road|began to walk].",
            "one {day} {he} got a letter from {friend} in {town2} and [left at once|set out before breakfast].",
        ]),
        always(&[
            "{he} took @ {colour} {object} [and some bread|and a stick|] with {him}.",
            "in {his} bag there was @ {colour} {object} [for {friend}|and nothing else|].",
        ]),
        AND_PET,
        always(&[
            "{spot} {he} [met|saw|came upon] @ {job} who had [lost|dropped|broken] @ {object2}.",
            "@ {job} was sitting {spot}, looking for @ {object2}.",
        ]),
        MOOD,
        SCENE,
        PARAGRAPH,
        always(&[
            "\"[Please help me|I cannot find it|What shall I do],\" said the {job}.",
            "the {job} was [crying|very old|too tired to walk].",
        ]),
        always(&[
            "{hero} [searched|looked around|walked back] and found the {object2} {spot2}.",
            "{spot2} {hero} found the {object2} [at last|under a stone|in the dust].",
        ]),
        always(&[
            "the {job} gave {him} {number} {colour2} [stones|beads|stamps|feathers] [in return|to say thanks|].",
            "[as thanks|in return] the {job} gave {him} {number} {colour2} [stones|beads|stamps|feathers].",
        ]),
        TALK,
        SCENE,
        always(&[
            "it was {weather} when {he} [reached|came to] {town2}.",
            "{he} walked on, and it grew {weather} [before|when|as] {he} reached {town2}.",
        ]),
        MEAL,
        END,
    ],
    asks: &[
        ask("visited", "{hero}", "friend", "who did {hero} visit?"),
        ask("destination", "{hero}", "town2", "where did {friend} live?"),
        ask("carried", "{hero}", "object", "what did {hero} take along?"),
        ask("colour", "{object}", "colour", "what colour was the {object}?"),
        ask("looked for", "{object2}", "job", "who was looking for the {object2}?"),
        ask("lost", "{job}", "object2", "what was the {job} looking for?"),
        ask("found", "{object2}", "spot2", "where was the {object2} found?"),
        ask("reward", "{hero}", "number", "how many did the {job} give?"),
        ask("left", "{hero}", "day", "when did {hero} leave?"),
        ask("ate", "{hero}", "food", "what did they eat?"),
    ],
};

const HIDING: Plot = Plot {
    beats: &[
        WEATHER,
        always(&[
            "{hero}, {friend} and {third} [played|wanted to play] hide and seek.",
            "\"Let us play hide and seek,\" said {hero} to {friend} and {third}.",
            "{hero} was bored, so {he} played hide and seek with {friend} and {third}.",
        ]),
        always(&[
            "{hero} [closed {his} eyes|turned around|stood by a tree] and counted to {number}.",
            "{hero} had to seek, so {he} counted to {number} [slowly|aloud|twice].",
        ]),
        MOOD,
        SCENE,
        always(&[
            "{friend} [ran away and hid|hid|crept off and hid] {spot}.",
            "{spot} {friend} found a [good|dark|small|dusty] place to hide.",
        ]),
        always(&[
            "{third} hid {spot2}[, trying not to laugh|, as still as a stone|].",
            "{spot2} {third} lay [quite still|down|under a blanket].",
        ]),
        AND_PET,
        PARAGRAPH,
        always(&[
            "{hero} looked {spot3} first and found [only|nothing but] @ {colour} {object}.",
            "first {he} ran {spot3}. There was [only|just] @ {colour} {object}.",
        ]),
        TALK,
        SCENE,
        always(&[
            "[then|soon|a little later] {he} heard {third} [sneeze|laugh|cough] and found {third_him}.",
            "{third} [sneezed|laughed|moved] and was found first.",
        ]),
        always(&[
            "{friend} was the last, so {friend} won @ {object2}.",
            "nobody could find {friend}, who won @ {object2}.",
        ]),
        MEAL,
        END,
    ],
    asks: &[
        ask("hid", "{friend}", "spot", "where did {friend} hide?"),
        ask("hid", "{third}", "spot2", "where did {third} hide?"),
        ask("searched", "{hero}", "spot3", "where did {hero} look first?"),
        ask("counted", "{hero}", "number", "how far did {hero} count?"),
        ask("found first", "{hero}", "third", "who was found first?"),
        ask("won", "game", "friend", "who won?"),
        ask("prize", "{friend}", "object2", "what did {friend} win?"),
        ask("colour", "{object}", "colour", "what colour was the {object}?"),
        ask("ate", "{hero}", "food", "what did they eat?"),
    ],
};

const CHEST: Plot = Plot {
    beats: &[
        WEATHER,
        always(&[
            "{hero} found an old chest {spot}.",
            "there was an old chest {spot}, and {hero} [had never opened it|wondered what was inside].",
            "while {he} was {spot}, {hero} [saw|noticed|fell over] an old chest.",
        ]),
        always(&[
            "it was painted {colour} and [locked|shut tight|very heavy].",
            "its lid was {colour}, and [it was locked|it would not open|there was no key].",
        ]),
        MOOD,
        SCENE,
        always(&[
            "{he} [remembered|knew] that {friend} kept a key {spot2}.",
            "the key hung {spot2}, where {friend} had [left|hidden|forgotten] it.",
            "{friend} had once [seen|hidden] a key {spot2}.",
        ]),
        AND_PET,
        PARAGRAPH,
        always(&[
            "together they [fetched|took|carried back] the key and opened the chest.",
            "the key was {material2}, but it [turned|fitted|worked]. The chest was open.",
            "{friend} [turned the key|pushed the lid|counted to three], and the chest opened.",
        ]),
        TALK,
        SCENE,
        always(&[
            "inside lay {number} {colour2} [coins|buttons|marbles|candles] and @ {object}.",
            "they [saw|found] {number} {colour2} [coins|buttons|marbles|candles] and @ {object}.",
        ]),
        always(&[
            "{hero} kept the {object}, and {friend} gave the rest to the {job}.",
            "the rest went to the {job}, but {hero} kept the {object}.",
        ]),
        half(&[
            "the {job} was [very glad|speechless|not surprised] and gave them {food}.",
            "they bought {food} [at the market|for everyone|] and [went home|sang all the way].",
        ]),
        END,
    ],
    asks: &[
        ask("chest", "{hero}", "spot", "where was the chest?"),
        ask("key", "{friend}", "spot2", "where was the key?"),
        ask("colour", "chest", "colour", "what colour was the chest?"),
        ask("contents", "chest", "number", "how many of them were inside?"),
        ask("colour", "contents", "colour2", "what colour were they?"),
        ask("kept", "{hero}", "object", "what did {hero} keep?"),
        ask("received", "contents", "job", "who got the rest?"),
        ask("helper", "{hero}", "friend", "who helped {hero}?"),
    ],
};

pub(super) const PLOTS: &[&Plot] = &[&LOST, &GIFT, &TRADE, &JOURNEY, &HIDING, &CHEST];
